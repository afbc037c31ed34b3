"""Running networks that assess performances: tokens, spans, clips, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_analysis.assessment_networks import network_session
from mt3_analysis.assessment_networks.network_session import (
    normalised_clip,
    open_assessor_networks,
)
from mt3_analysis.assessment_networks.octuple_tokens import (
    FIELDS,
    check_notes,
    note_spans,
    octuple_tokens,
)
from mt3_export.assessors.assessor_writer import export_assessors
from mt3_runtime.errors import BundleError, BundleNotFoundError, OptionError
from tests.assessor_folders import CLIP, DIMENSIONS, MOST_NOTES, assessors_folder, network_folder
from tests.parity.recipes.assessor_networks import samples

NOTES = [[0.05, 0.4, 60, 64], [0.3, 0.31, 67, 100], [0.31, 2.0, 72, 1]]


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assessors")
    export_assessors(assessors_folder(folder / "s"), folder / "b", name="all", storage="fp32")
    return open_assessor_networks(folder / "b", threads=1)


def test_tokens_are_as_published():
    """At 120 quarter notes a minute a beat is 0.5 s, a place in it 31.25 ms."""
    notes = [[0.0, 0.015, 21, 1], [0.53, 3.0, 60, 64], [2.0, 2.5, 108, 127], [2.0, 2.1, 5, 30]]
    found = octuple_tokens(notes)
    assert " ".join(FIELDS) == "type beat position pitch duration velocity instrument bar"
    assert found.tolist() == [
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 1, 0, 39, 127, 64, 0, 0],
        [0, 0, 0, 0, 10, 30, 0, 1],
        [0, 0, 0, 87, 50, 127, 0, 1],
    ]


def test_tokens_follow_another_tempo_and_end_with_the_table():
    found = octuple_tokens([[10.0, 11.0, 60, 64]], tempo=60)
    assert found[0, [1, 2, 7]].tolist() == [2, 0, 2]
    assert octuple_tokens([[5000.0, 5001.0, 60, 64]])[0, 7] == 511


def test_the_earliest_notes_are_read_and_fewer_are_filled_up():
    notes = [[i / 10, i / 10 + 0.1, 60, 64] for i in range(9, -1, -1)]
    assert octuple_tokens(notes, most=3)[:, 2].tolist() == [0, 3, 6]
    filled = octuple_tokens(notes[:2], most=5, fill=True)
    assert filled.shape == (5, 8)
    assert not filled[2:].any()


@pytest.mark.parametrize(
    "notes",
    [[1, 2, 3], [[1.0, 2, 3]], [[2.0, 1, 60, 64]], [[0.0, 1, 128, 64]], [[0.0, 1, 60, -1]],
     [[np.nan, 1, 60, 64]], "notes", [["a", 1, 60, 64]]],
)  # fmt: skip
def test_what_are_no_notes_is_refused(notes):
    with pytest.raises(OptionError, match="note"):
        check_notes(notes)


@pytest.mark.parametrize("tempo", [0.0, -3.0, np.nan, np.inf])
def test_a_tempo_is_positive(tempo):
    with pytest.raises(OptionError, match="tempo"):
        octuple_tokens(NOTES, tempo=tempo)


def test_a_note_is_paired_with_its_own_frames():
    found = note_spans([0.0, 0.5, 0.99, 7.0, -1.0], 10, frame_seconds=0.1, heard=0.3)
    assert found.tolist() == [[0, 3], [5, 8], [9, 10], [9, 10], [0, 1]]
    with pytest.raises(OptionError, match="no frame"):
        note_spans([0.0], 0, frame_seconds=0.1)


def test_a_clip_is_normalised_with_the_divisor_of_a_sample():
    clip = np.array([1.0, 2, 3, 4], np.float32)
    assert normalised_clip(clip).std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    assert not normalised_clip(np.zeros(5, np.float32)).any()
    assert np.isfinite(normalised_clip(np.ones(1, np.float32))).all()


@pytest.mark.parametrize("name", ["gated", "concat", "cross", "audio", "midi"])
def test_every_network_assesses_a_clip(networks, name):
    frames = networks.frames(samples())
    said = networks.assess(name, frames=frames, notes=NOTES)
    assert said.dimensions == DIMENSIONS
    assert said.scores.shape == (3,)
    assert ((said.scores >= 0) & (said.scores <= 100)).all()
    assert said["pedal"] == pytest.approx(float(said.scores[1]))
    assert said.ordinal.shape == (4,)
    assert ((said.ordinal > 0) & (said.ordinal < 1)).all()
    assert said.inside["steps_attention"].sum() == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(KeyError):
        said["nothing"]


def test_gates_and_attention_are_given_out(networks):
    frames = networks.frames(samples())
    gates = networks.assess("gated", frames=frames, notes=NOTES).inside["gates"]
    assert gates.shape == (3, 24)
    crossed = networks.assess("cross", frames=frames, notes=NOTES).inside
    assert crossed["audio_to_midi"].shape == (len(frames), 3)
    assert crossed["midi_to_audio"].sum(axis=1) == pytest.approx(np.ones(3), abs=1e-5)


def test_the_audio_encoder_runs_once_for_all_networks(networks):
    for name in ("gated", "concat"):
        networks.assess(name, frames=networks.frames(samples()), notes=NOTES)
    assert sum(role == "audio_encoder" for _, role in networks._sessions) == 1


def test_a_recording_is_cut_into_clips(networks):
    audio = np.concatenate([samples(), samples(), samples()[:300]])
    notes = [*NOTES, [1.25, 1.505, 50, 60]]
    said = networks.assess_recording("gated", samples=audio, notes=notes)
    assert said.starts == (0.0, 1.0)
    assert said.left_out == 1  # 300 samples are no frame
    alone = networks.assess(
        "gated", frames=networks.frames(samples()), notes=[[0.25, 0.505, 50, 60]]
    )
    assert said.clips[1].scores == pytest.approx(alone.scores, abs=1e-4)
    assert said.scores == pytest.approx((said.clips[0].scores + said.clips[1].scores) / 2)


def test_clips_without_notes_are_left_out_and_counted(networks):
    said = networks.assess_recording("midi", notes=[[0.1, 0.2, 60, 60], [3.5, 3.6, 60, 60]])
    assert (said.starts, said.left_out) == ((0.0, 3.0), 2)


def test_more_notes_than_a_network_reads_are_cut(networks):
    notes = [[i / 100, i / 100 + 0.1, 60, 64] for i in range(MOST_NOTES + 20)]
    frames = networks.frames(samples())
    assert len(networks.assess("gated", frames=frames, notes=notes).inside["gates"]) == MOST_NOTES


def test_the_published_padding_is_read_as_notes(tmp_path):
    answers = []
    for fill in (False, True):
        folder = network_folder(tmp_path / f"n{fill}", "midi", fill=fill)
        export_assessors(folder, tmp_path / f"b{fill}", name="x")
        answers.append(open_assessor_networks(tmp_path / f"b{fill}").assess("midi", notes=NOTES))
    assert answers[1].inside["steps_attention"].shape == (MOST_NOTES,)
    assert np.abs(answers[0].scores - answers[1].scores).max() > 0.01


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda n: n.assess("gated", notes=NOTES), "needs audio"),
        (lambda n: n.assess("audio", frames=np.zeros((0, 48))), "needs audio"),
        (lambda n: n.assess("audio", frames=np.zeros((3, 47))), r"finite frames \[t, 48\]"),
        (lambda n: n.assess("audio", frames=np.full((3, 48), np.nan)), "finite frames"),
        (lambda n: n.assess("audio", frames="frames"), "finite frames"),
        (lambda n: n.frames("samples"), "one row"),
        (lambda n: n.frames([[1], [2, 3]]), "one row"),
        (lambda n: n.assess_recording("audio", samples=["a"]), "one row"),
        (lambda _: open_assessor_networks(None), "path is None"),
        (lambda n: n.assess("midi"), "needs notes"),
        (lambda n: n.assess("midi", notes=np.zeros((0, 4))), "needs notes"),
        (lambda n: n.frames(np.zeros(100)), "a clip has 400 to 24,000 samples"),
        (lambda n: n.frames(np.zeros(CLIP + 1)), "a clip has"),
        (lambda n: n.frames(np.full(800, np.nan)), "finite"),
        (lambda n: n.frames(np.zeros((2, 800))), "one row"),
        (lambda n: n.assess_recording("cross", notes=NOTES), "needs samples and notes"),
        (lambda n: n.assess_recording("gated", samples=np.zeros(9000)), "needs samples and notes"),
        (
            lambda n: n.assess_recording(
                "gated", samples=np.zeros(9000), notes=[[9.0, 9.5, 60, 64]]
            ),
            "the last note begins at 9.0 s, the audio ends at 0.4 s",
        ),
        (lambda n: n.assess_recording("audio", samples=np.zeros(90)), "nothing to assess"),
        (lambda n: n.assess_recording("midi", notes=np.zeros((0, 4))), "nothing to assess"),
    ],
)
def test_what_is_missing_is_named(networks, call, said):
    with pytest.raises(OptionError, match=said):
        call(networks)


def test_silence_is_assessed_and_gives_numbers(networks):
    said = networks.assess_recording("audio", samples=np.zeros(CLIP))
    assert np.isfinite(said.scores).all()


def test_a_graph_that_is_damaged_is_one_error(tmp_path):
    export_assessors(assessors_folder(tmp_path / "s", ("midi",)), tmp_path / "b", name="x")
    path = tmp_path / "b" / "midi.head.cpu.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="is not the file that was exported"):
        open_assessor_networks(tmp_path / "b").assess("midi", notes=NOTES)
    with pytest.raises(BundleNotFoundError):
        open_assessor_networks(tmp_path / "nowhere")
    assert network_session.QUIETEST > 0
