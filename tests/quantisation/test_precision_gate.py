"""The gates, as functions of counted matches."""

from __future__ import annotations

import pytest

from mt3_evaluation.scoring import Score
from mt3_quantisation.gates.gate import (
    Change,
    Scored,
    mean_change,
    packaging,
    pooled_change,
    relaxed,
)


def change(name: str, exact: int, other: int, *, of: int = 100, drums: bool = False) -> Change:
    """A file with so many matches among as many labels and notes."""
    sides = (Score(matched, of, of) for matched in (exact, other))
    return Change(name, *(Scored(None, s) if drums else Scored(s, None) for s in sides))


def test_a_file_counts_all_that_is_labelled():
    both = Scored(Score(3, 4, 4), Score(1, 4, 4))
    assert both.whole == Score(4, 8, 8)
    assert Change("a", both, Scored(Score(4, 4, 4), Score(1, 4, 4))).f1 == pytest.approx(0.125)
    silent = Scored(Score(0, 0, 0), None)
    assert Change("b", silent, silent).f1 == 0.0


@pytest.mark.parametrize(("other", "names"), [(81, []), (79, []), (82, ["a"]), (78, ["a"])])
def test_packaging_bounds_every_file_both_ways(other: int, names: list[str]):
    faults = packaging([change("a", 80, other), change("b", 50, 50)])
    assert [fault.partition(":")[0] for fault in faults] == names


def test_the_relaxed_gate_lets_files_rise():
    assert relaxed([change("a", 50, 90), change("b", 80, 78)]) == []


def test_the_relaxed_gate_bounds_each_part_by_itself():
    files = [change("a", 800, 790, of=1000), change("b", 500, 520, of=1000, drums=True)]
    assert relaxed(files) == ["pooled onset F1 falls by 0.0100, more than 0.005"]
    assert pooled_change(files, "onsets") == pytest.approx(-0.01)
    assert pooled_change(files, "drums") == pytest.approx(0.02)
    assert mean_change(files) == pytest.approx(0.005)


def test_the_relaxed_gate_bounds_the_mean_of_the_files():
    small = [change(f"s{k}", 80, 78) for k in range(3)]
    faults = relaxed([*small, change("big", 8000, 8000, of=10000)])
    assert faults == ["the files' mean F1 falls by 0.0150, more than 0.005"]


def test_the_relaxed_gate_bounds_single_files():
    files = [change("a", 80, 76), change("b", 50, 60)]
    assert relaxed(files) == ["a: F1 falls by 0.0400, more than 0.03"]
    assert relaxed([change("a", 80, 77), change("b", 50, 60)]) == []


def test_nothing_labelled_breaks_nothing():
    nothing = Change("a", Scored(None, None), Scored(None, None))
    assert relaxed([nothing]) == packaging([nothing]) == relaxed([]) == []
    assert pooled_change([nothing], "drums") is None
    assert mean_change([]) == 0.0
