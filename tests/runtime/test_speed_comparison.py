"""Reports of `mt3 bench` compared: verdicts by a rule, on figures that are given."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.commands import bench_command as bench
from mt3_runtime.diagnostics.speed_comparison import (
    LEAST_RUNS,
    chance_of_slower,
    compare,
    read_report,
)
from mt3_runtime.errors import OptionError

BASE = (1.00, 1.01, 1.02, 0.99, 1.03)


def report(runs=BASE, *, peak=500 << 20, digest="aa", name="song.wav", **other):
    return {
        "model": {"name": "m", "export_id": "e"},
        "precision": "fp32",
        "device": "cpu",
        "machine": {"cpu": "Some Chip", "cores": 2},
        "peak_rss_bytes": peak,
        "recordings": [{"audio": name, "token_digest": digest, "runs_s": list(runs)}],
    } | other


def verdicts(old, new) -> list[str]:
    return [one.verdict for one in compare(old, new)]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (BASE, "same"),
        ([run * 1.2 for run in BASE], "slower"),
        ([run * 0.8 for run in BASE], "faster"),
        ([run * 1.04 for run in BASE], "same"),  # certain, and too little
        ([1.0, 1.01, 0.99, 9.0, 9.0], "same"),  # two slow runs decide nothing
        ([0.98, 1.2, 1.2, 1.2, 1.2], "same"),  # one as fast as ever: too likely
        ([1.2] * 9, "slower"),  # another number of runs
    ],
)
def test_the_verdict_of_a_recording(runs, expected):
    assert verdicts(report(), report(runs)) == [expected, "same"]


@pytest.mark.parametrize(
    ("peak", "expected"), [(500, "same"), (540, "same"), (551, "more"), (449, "less")]
)
def test_the_verdict_of_memory(peak, expected):
    assert verdicts(report(), report(peak=peak << 20))[1] == expected


def test_unknown_memory_is_not_compared():
    assert verdicts(report(peak=None), report()) == ["same"]


def by_hand(old, new) -> float:
    """The same by writing down every order."""
    pairs = lambda chosen: sum(a > b for a in chosen for b in set(everything) - set(chosen))  # noqa: E731
    everything = range(len(old) + len(new))
    ranked = sorted([*old, *new])
    reached = pairs([ranked.index(one) for one in new])
    orders = [pairs(c) for c in itertools.combinations(everything, len(new))]
    return sum(one >= reached for one in orders) / len(orders)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=9, unique=True), st.integers(1, 8))
def test_the_chance_is_that_of_all_orders(times, count):
    count = min(count, len(times) - 1)
    old, new = times[:count], times[count:]
    assert chance_of_slower(old, new) == pytest.approx(by_hand(old, new))


def test_equal_times_speak_for_chance():
    assert chance_of_slower([1.0] * 5, [1.0] * 5) > 0.4
    assert chance_of_slower([1.0] * 5, [2.0] * 5) == pytest.approx(1 / math.comb(10, 5))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": "fast"}, "precision fp32 and fast"),
        ({"device": "cuda:0"}, "device cpu and cuda:0"),
        ({"machine": {"cpu": "Other", "cores": 2}}, "CPU Some Chip and Other"),
        ({"machine": {"cpu": "Some Chip", "cores": 64}}, "cores 2 and 64"),
        ({"model": {"name": "m", "export_id": "f"}}, "model e and f"),
    ],
)
def test_other_work_is_refused(change, said):
    with pytest.raises(OptionError, match=said):
        compare(report(), report(**change))


def test_other_tokens_and_other_files_are_refused():
    with pytest.raises(OptionError, match="tokens of song.wav aa and bb"):
        compare(report(), report(digest="bb"))
    with pytest.raises(OptionError, match="share no recording: song.wav there, x.wav here"):
        compare(report(), report(name="x.wav"))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '"x"', json.dumps(report([1.0])), json.dumps(report([1.0] * 4)),
        json.dumps(report([0.0] * 5)), json.dumps(report([-1.0] * 5)),
        json.dumps(report(["x"] * 5)), json.dumps(report() | {"recordings": []}),
        json.dumps(report() | {"recordings": [{"audio": "a"}]}),
        json.dumps(report() | {"machine": 3}),
        json.dumps(report([math.nan] * 5)), json.dumps(report([math.inf] * 5)),
    ],
)  # fmt: skip
def test_what_is_no_report_is_one_error(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(OptionError, match="old.json"):
        read_report(path)
    with pytest.raises(OptionError, match="none.json"):
        read_report(tmp_path / "none.json")


def test_the_command_compares_itself_with_its_own_report(
    tiny_bundle, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bench, "TEST_SECONDS", 4)
    words = ["bench", "-m", str(tiny_bundle), "--runs", str(LEAST_RUNS), "--threads", "1", "--json"]
    assert main(words) == ExitCode.OK
    old = json.loads(capsys.readouterr().out)
    (row,) = old["recordings"]
    assert len(row["runs_s"]) == LEAST_RUNS
    assert sorted(row["runs_s"])[LEAST_RUNS // 2] == row["whole_s"]
    path = tmp_path / "old.json"
    # As if it had been a thousand times slower, and as much faster: no clock is that far out.
    for factor, code, verdict in (
        (1000.0, ExitCode.OK, "faster"),
        (0.001, ExitCode.FAILED, "slower"),
    ):
        row["runs_s"] = [one * factor for one in row["runs_s"]]
        path.write_text(json.dumps(old))
        before = path.read_bytes()
        assert main([*words[:-1], "--compare", str(path)]) == code
        shown = capsys.readouterr().out
        assert shown.splitlines()[-2].split()[-1] == verdict
        assert "peak memory" in shown
        assert path.read_bytes() == before
        row["runs_s"] = [one / factor for one in row["runs_s"]]


def test_what_was_measured_is_shown_though_it_cannot_be_compared(tiny_bundle, tmp_path, capsys,
                                                                 monkeypatch):  # fmt: skip
    monkeypatch.setattr(bench, "TEST_SECONDS", 4)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(report()))
    words = ["bench", "-m", str(tiny_bundle), "--runs", "5", "--compare", str(path), "--json"]
    assert main(words) == ExitCode.USAGE
    said = capsys.readouterr()
    assert json.loads(said.out)["runs"] == 5
    assert "cannot be compared, they have model e and" in said.err


def test_too_few_runs_are_refused_before_anything_is_measured(tmp_path, capsys):
    path = tmp_path / "old.json"
    path.write_text(json.dumps(report()))
    words = ["bench", "-m", "/nowhere", "--runs", "4", "--compare", str(path)]
    assert main(words) == ExitCode.USAGE
    assert "--compare needs --runs 5 or more, got 4" in capsys.readouterr().err
