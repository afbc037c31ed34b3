"""Whether confidence can be trusted, on notes of which the truth is known."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_evaluation.confidences.confidence_fit import (
    BINS,
    Verdict,
    assess,
    average_precision,
    fit,
    trust,
    verdicts,
)
from mt3_evaluation.confidences.confidence_report import reliability_plot, table
from mt3_evaluation.labels import Labels
from mt3_evaluation.plots import to_bytes
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import render
from mt3_runtime.notes.confidence import Calibration, Weights
from mt3_runtime.notes.note import Note, Probabilities

TRUTH = Calibration(
    Weights(bias=-0.5, onset=0.4, pitch=0.8, program=0.0, offset=0.3),
    Weights(bias=0.3, onset=0.2, pitch=0.5, program=0.0, offset=0.0),
)


def simulated(seed: int, count: int, *, drums: float = 0.4) -> list[Verdict]:
    """Notes that are right as often as `TRUTH` says."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        is_drum = rng.random() < drums
        chances = [rng.betavariate(2, 1) for _ in range(4)]
        if is_drum:
            chances[2:] = [None, None]
        elif rng.random() < 0.3:
            chances[3] = None
        start = number / 10
        known = Probabilities(*chances)
        note = Note(start, start + 0.1, 60, 100, is_drum=is_drum, probabilities=known)
        confidence = TRUTH.confidence(note)
        note = replace(note, confidence=confidence)
        made.append(Verdict(note, rng.random() < confidence))
    return made


def plain_average_precision(right, scores) -> float:
    """From the definition, score by score."""
    total, found, previous = sum(right), 0.0, 0.0
    for score in sorted(set(scores), reverse=True):
        taken = [r for r, s in zip(right, scores, strict=True) if s >= score]
        recall = sum(taken) / total
        found += (recall - previous) * sum(taken) / len(taken)
        previous = recall
    return found


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.4, 0.5, 0.9])), min_size=1))
def test_average_precision_by_its_definition(notes):
    right, scores = map(list, zip(*notes, strict=True))
    found = average_precision(np.array(right), np.array(scores))
    if all(right) or not any(right):
        assert found is None
    else:
        assert found == pytest.approx(plain_average_precision(right, scores))


def test_average_precision_of_nothing_and_of_everything():
    right = np.array([True, False, False, True])
    assert average_precision(right, np.full(4, 0.3)) == 0.5
    assert average_precision(right, np.array([0.9, 0.1, 0.2, 0.8])) == 1.0
    assert average_precision(right, np.array([0.1, 0.9, 0.8, 0.2])) == pytest.approx(5 / 12)


def test_calibration_error_and_bins():
    found = trust(np.array([True, False, True, True]), np.array([0.05, 0.05, 0.95, 1.0]))
    assert found.base == 0.75
    assert found.bins[0] == (2, 0.05, 0.5)
    assert found.bins[-1] == (2, 0.975, 1.0)
    assert found.bins[1:-1] == (None,) * (BINS - 2)
    assert found.error == pytest.approx((0.45 + 0.025) / 2)


def test_a_fit_finds_the_truth():
    found = fit(simulated(1, 20000))
    for kind in ("pitched", "drums"):
        wanted, got = getattr(TRUTH, kind), getattr(found, kind)
        for name, value in vars(wanted).items():
            assert getattr(got, name) == pytest.approx(value, abs=0.1), (kind, name)


def test_no_surer_token_makes_a_note_less_sure():
    """What would say so is left out of the fit, and the rest is fitted without it."""
    some = simulated(4, 4000, drums=0.0)
    turned = [
        verdict._replace(
            note=replace(verdict.note, probabilities=known._replace(pitch=1 - known.pitch))
        )
        for verdict in some
        for known in [verdict.note.probabilities]
    ]
    found = fit(turned).pitched
    assert found.pitch == 0.0
    assert min(found.onset, found.program, found.offset) >= 0.0
    assert found.onset == pytest.approx(TRUTH.pitched.onset, abs=0.1)


def test_a_fit_to_little():
    nothing = Weights(0, 0, 0, 0, 0)
    assert fit([]) == Calibration(nothing, nothing)
    some = simulated(2, 30, drums=0.0)
    sure = fit([verdict._replace(right=True) for verdict in some])
    assert sure.drums == nothing
    assert all(0.8 < sure.confidence(verdict.note) < 1.0 for verdict in some)


def test_what_is_right():
    labels = Labels(
        (Note(1.0, 2.0, 60, 1, 40), Note(1.0, 1.0, 36, 1, is_drum=True), Note(3.0, 4.0, 62, 1, 40)),
        drum_keys=False,
    )
    notes = [
        Note(1.04, 1.5, 60, 1, 0),  # on another instrument
        Note(1.06, 1.5, 60, 1, 40),  # too late, and taken
        Note(1.0, 1.01, 35, 1, is_drum=True),  # a kick, too
        Note(1.0, 1.01, 38, 1, is_drum=True),
        Note(3.0, 4.0, 62, 1, 40),
        Note(3.0, 3.01, 62, 1, is_drum=True),
    ]
    assert [verdict.right for verdict in verdicts(labels, notes)] == [1, 0, 1, 0, 1, 0]
    only_drums = replace(labels, pitched=False)
    found = verdicts(only_drums, notes)
    assert [verdict.note for verdict in found] == [note for note in notes if note.is_drum]
    assert [verdict.right for verdict in found] == [True, False, False]


def test_a_refit_never_saw_the_recording():
    recordings = {name: simulated(seed, 300) for seed, name in enumerate("abc")}
    before = assess(recordings)
    recordings["a"] = [verdict._replace(right=not verdict.right) for verdict in recordings["a"]]
    after = assess(recordings)

    def predicted(found, index):
        bins = found.recordings[index].refitted.bins
        return [(b.notes, b.confidence) if b else None for b in bins]

    assert predicted(before, 0) == predicted(after, 0)
    assert predicted(before, 1) != predicted(after, 1)


def test_true_confidences_are_calibrated_and_so_is_a_refit():
    found = assess({str(seed): simulated(seed, 1500) for seed in range(4)})
    assert found.pooled.notes == 6000
    for judged in (found.pooled.given, found.pooled.refitted):
        assert judged.error < 0.03
        assert judged.average_precision > judged.base + 0.05
    assert [judged.name for judged in found.recordings] == ["0", "1", "2", "3"]


def test_one_recording_cannot_be_left_out():
    found = assess({"only": simulated(3, 50)})
    assert found.pooled.refitted is None
    assert "-" in table(found).splitlines()[1].split()


def test_what_cannot_be_judged_is_refused():
    unknown = Verdict(Note(0, 1, 60, 100), right=True)
    with pytest.raises(OptionError, match="song do not have the probabilities"):
        assess({"song": [unknown]})
    with pytest.raises(OptionError, match="No note is of a kind"):
        assess({"song": []})


def test_the_plot_is_a_picture_that_can_be_repeated():
    found = assess({str(seed): simulated(seed, 40) for seed in range(2)})
    pictures = {to_bytes(reliability_plot(found, title="model"), "png") for _ in range(2)}
    assert len(pictures) == 1
    assert pictures.pop().startswith(b"\x89PNG")


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Notes of two recordings with probabilities, and labels that make half of them right."""
    for seed, name in enumerate(("one", "two")):
        some = simulated(seed, 40)
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "labels").mkdir(exist_ok=True)
        notes = [verdict.note for verdict in some]
        (tmp_path / "notes" / f"{name}.json").write_bytes(render(notes, "json"))
        right = [verdict.note for verdict in some if verdict.right]
        (tmp_path / "labels" / f"{name}.mid").write_bytes(render(right, "midi"))
    return tmp_path


def run(folder, *more) -> int:
    places = ["--notes", str(folder / "notes"), "--labels", str(folder / "labels")]
    return main(["evaluate", *places, "--confidence", *map(str, more)])


def test_evaluate_confidence(folder, capsys):
    assert run(folder, "--plot", folder / "trust.png", "--json", folder / "trust.json") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[2].split()[:5] == ["recording", "notes", "right", "AP", "gain"]
    assert "fit to all of them:" in text
    assert (folder / "trust.png").read_bytes().startswith(b"\x89PNG")
    document = json.loads((folder / "trust.json").read_text())
    assert document["format"] == "mt3-runtime.confidence"
    assert [item["name"] for item in document["recordings"]] == ["one", "two"]
    assert document["pooled"]["notes"] == 80
    assert len(document["pooled"]["given"]["bins"]) == BINS
    Calibration.from_dict(document["fitted"])
    right = [v.right for seed in range(2) for v in simulated(seed, 40)]
    assert document["pooled"]["right"] == pytest.approx(sum(right) / 80)
    assert math.isfinite(document["pooled"]["refitted"]["error"])


def test_evaluate_confidence_as_json_alone(folder, capsys):
    assert run(folder, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1


def test_notes_without_probabilities_are_refused(folder, capsys):
    for path in (folder / "notes").glob("*.json"):
        path.with_suffix(".mid").write_bytes((folder / "labels" / f"{path.stem}.mid").read_bytes())
        path.unlink()
    assert run(folder) == ExitCode.USAGE
    assert "do not have the probabilities" in capsys.readouterr().err
