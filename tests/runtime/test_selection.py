"""What a result is left without is said: by a threshold, a filter, or a choice of instruments."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from mt3_runtime.errors import AudioWarning, OptionError, ResultWarning
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.selection import Selection
from mt3_runtime.per_stem import merge

LOW, HIGH = Note(0, 1, 60, 90, confidence=0.3), Note(1, 2, 62, 90, confidence=0.7)
HIT, CRASH = (
    Note(0.5, 0.6, 36, 90, is_drum=True, confidence=0.4),
    Note(3, 3.1, 49, 90, is_drum=True, confidence=0.58),
)


@pytest.mark.parametrize(
    ("least", "notes", "words"),
    [
        (0.0, [LOW, HIT], []),
        (0.5, [LOW, HIGH], []),
        (0.5, [LOW, HIGH, HIT, CRASH], []),
        (
            0.6,
            [LOW, HIGH, HIT, CRASH],
            ["none of 2 drum hits: the surest has a confidence of 0.58"],
        ),
        (0.5, [LOW, HIT, CRASH], ["none of 1 pitched notes: the surest has a confidence of 0.30"]),
        (0.8, [LOW, HIGH, HIT], ["none of 2 pitched notes", "none of 1 drum hits"]),
        (1.0, [HIT], ["min_confidence=1 leaves none of 1 drum hits"]),
    ],
)
def test_kinds_that_are_gone(least, notes, words):
    selection = Selection(least)
    kept = [note for some in (notes[:1], notes[1:]) for note in selection.keep(some)]
    assert kept == [note for note in notes if note.confidence >= least]
    assert selection.removed == len(notes) - len(kept)
    sentences = selection.sentences(len(notes))
    assert len(sentences) == len(words)
    assert all(some in sentence for some, sentence in zip(words, sentences, strict=True))


def test_results_without_notes():
    assert Selection(0.0).sentences(0) == ["no notes were found"]
    assert Selection(0.0, limited=True).sentences(0) == [
        "no notes were found of the instruments asked for"
    ]
    assert Selection(0.9).sentences(7) == [
        "the leakage filter removed all 7 notes: see auto_filter"
    ]


@pytest.mark.parametrize("call", ["transcribe_notes", "transcribe_many", "stream", "live"])
def test_every_way_to_notes_says_so(tiny_model, audio, call):
    """What is said is a Python warning each time, and in the result where there is one."""
    loud = np.round(audio * 20000)
    calls = {
        "transcribe_notes": lambda: [tiny_model.transcribe_notes(loud, min_confidence=1.0)],
        "transcribe_many": lambda: list(tiny_model.transcribe_many([loud], min_confidence=1.0)),
        "stream": lambda: list(tiny_model.stream(loud, min_confidence=1.0)),
        "live": lambda: list(tiny_model.stream(iter(np.split(loud, 5)), min_confidence=1.0)),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = calls[call]()
    said = [(warning.category, str(warning.message)) for warning in caught]
    assert [kind for kind, _ in said] == [AudioWarning, *[ResultWarning] * (len(said) - 1)]
    assert "16-bit integers cast to float" in said[0][1]
    assert "min_confidence=1 leaves none of" in said[1][1]
    if call.startswith("transcribe"):
        (result,) = found
        assert result.notes == ()
        assert result.remarks[1:] == tuple(message for _, message in said[1:])
        assert "16-bit integers cast to float" in result.remarks[0]  # and the final peak
        assert set(result.remarks) <= set(result.warnings)
        assert json.loads(render(result, "json"))["warnings"] == result.warnings
    else:
        assert found == []


def test_an_empty_result_says_so(tiny_bundle, tiny_model, audio, tmp_path):
    """The small network knows drums, and a bit of piano."""
    words = "no notes were found of the instruments asked for"
    with pytest.warns(ResultWarning, match=words):
        assert words in tiny_model.transcribe_notes(audio, exclude="drums").warnings
    with pytest.warns(ResultWarning, match=words):
        assert list(tiny_model.stream(audio, exclude="drums")) == []
    with pytest.warns(ResultWarning, match=words):
        tiny_model.transcribe(audio, exclude="drums")
    path = shutil.copytree(tiny_bundle, tmp_path / "short")
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["decoding"]["max_tokens"] = 20
    manifest["notes"]["quirks"] = ["empty_without_eos"]
    (path / "bundle.json").write_text(json.dumps(manifest))
    with load_model(path) as model, pytest.warns(ResultWarning, match="no notes were found$"):
        result = model.transcribe_notes(audio, upstream_quirks=True)
    assert result.warnings[0] == "no notes were found"


def test_a_good_result_has_nothing_to_say(tiny_model, audio):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = tiny_model.transcribe_notes(audio)
        assert len(list(tiny_model.stream(audio))) > 0
    assert result.remarks == ()


def test_preprocess_warns_of_levels(tiny_model, audio):
    with pytest.warns(AudioWarning, match="cancel each other"):
        tiny_model.preprocess(np.stack([audio, -audio], 1))


def test_remarks_of_stems_are_kept_each_once(tiny_model, audio):
    one = replace(tiny_model.transcribe_notes(audio), remarks=("a is silent", "b"))
    assert merge([one, replace(one, remarks=("b", "c"))]).remarks == ("a is silent", "b", "c")


@pytest.mark.parametrize(
    "sources", [np.zeros(9), np.zeros((9, 2)), np.zeros((100, 1), np.int16), np.float32(1)]
)
def test_an_array_of_samples_is_no_list_of_recordings(tiny_model, sources):
    with pytest.raises(OptionError, match="put a single one into a list"):
        tiny_model.transcribe_many(sources)


def test_arrays_of_recordings_are_a_list(tiny_model, audio):
    found = list(tiny_model.transcribe_many(audio[:96000].reshape(2, 48000)))
    assert [result.duration for result in found] == [3.0, 3.0]
    missing = list(tiny_model.transcribe_many(np.array(["no.wav"]), return_exceptions=True))
    assert isinstance(missing[0], FileNotFoundError)


@pytest.mark.parametrize("tempo", [60.0, 133.3])
def test_a_result_is_saved_with_a_tempo(tiny_model, audio, tmp_path, tempo):
    result = tiny_model.transcribe_notes(audio[:40000])
    path = result.save(tmp_path / "song.mid", tempo=tempo)
    assert path.read_bytes() == render(result, "midi", tempo=tempo)
    with pytest.raises(OptionError, match="tempo"):
        result.save(tmp_path / "other.mid", tempo=5.0)
    assert not (tmp_path / "other.mid").exists()
