"""Scores by stem, and songs of several stems to score."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from mt3_evaluation.evaluation import Evaluation, Findings, Recording, score
from mt3_evaluation.labels import Labels, read_labels
from mt3_evaluation.scoreboards.stem_scores import ALL, by_stem, stem_document, stem_table
from mt3_evaluation.scoreboards.stem_songs import write_stem_songs
from mt3_runtime.cli import main
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import load_notes, render
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import split
from tests.synthesis.sounds import tiny_palette


def bass(onset: float, pitch: int = 40, program: int = 33) -> Note:
    return Note(onset, onset + 0.2, pitch, 90, program)


def hit(onset: float, key: int) -> Note:
    return Note(onset, onset, key, 90, is_drum=True)


LABELS = (bass(0.5), bass(1.0), bass(3.0), hit(0.5, 36), hit(1.0, 42))


def judged(*notes: Note, **known) -> Evaluation:
    recording = Recording("a", Labels(LABELS, **known))
    return Evaluation((score(recording, Findings(notes)),), resamples=50)


def test_a_note_on_another_stem_is_wrong_there_and_missing_here():
    found = stem_document(
        judged(bass(0.5, program=38), bass(1.0, program=0), hit(0.51, 35), hit(1.0, 46), hit(2, 49))
    )
    assert [*found] == ["bass", "piano", "drums", "high_percs", ALL]
    assert (found["bass"]["matched"], found["bass"]["labels"], found["bass"]["notes"]) == (1, 3, 1)
    assert found["bass"]["value"] == pytest.approx(0.5)
    assert (found["piano"]["value"], found["piano"]["recall"]) == (0.0, None)
    assert found["drums"]["value"] == 1.0  # a kick is a kick
    assert found["high_percs"]["precision"] == 0.5
    assert (found[ALL]["matched"], found[ALL]["labels"], found[ALL]["notes"]) == (3, 5, 5)
    assert found[ALL]["value"] == pytest.approx(0.6)


def test_what_labels_do_not_know_is_not_scored():
    assert [*by_stem(judged(*LABELS, drums=False))] == ["bass", ALL]
    assert [*by_stem(judged(*LABELS, programs=False))] == ["drums", "high_percs", ALL]
    assert by_stem(judged(*LABELS, drums=False, programs=False)) == {}
    assert stem_table(judged(*LABELS, drums=False)).splitlines()[0].split() == [
        *("stem", "recordings", "labels", "notes", "precision", "recall", "F1", "from", "to")
    ]


def test_the_command(tmp_path, capsys):
    for name in ("labels", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "labels" / "a.mid").write_bytes(render(LABELS, "midi"))
    (tmp_path / "notes" / "a.json").write_bytes(render(LABELS, "json"))
    words = ["evaluate", "--notes", str(tmp_path / "notes"), "--labels", str(tmp_path / "labels")]
    assert main([*words, "--by-stem"]) == 0
    shown = capsys.readouterr().out
    assert "high_percs" in shown
    assert main([*words, "--by-stem", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stems"][ALL]["value"] == 1.0
    assert main([*words, "--json", "-"]) == 0
    assert "stems" not in json.loads(capsys.readouterr().out)
    assert main([*words, "--by-stem", "--confidence"]) == 2
    assert "--by-stem is about notes" in capsys.readouterr().err


def test_songs_of_several_stems(tmp_path):
    made = write_stem_songs(tmp_path, tiny_palette(), count=2, seconds=6.0)
    for song in made:
        assert len(song.stems) == 4
        assert "drums" in song.stems
        every = load_notes(song.folder / "mix.mid")
        own = [load_notes(path.with_suffix(".mid")) for path in song.files]
        assert sum(map(len, own)) == len(every)
        for stem, notes in zip(song.stems, own, strict=True):
            assert {*split(notes)} <= ({"drums", "high_percs"} if stem == "drums" else {stem})
    again = write_stem_songs(tmp_path, tiny_palette(), count=2, seconds=6.0)
    assert again == made
    with pytest.raises(OptionError, match="no song of 9 stems"):
        write_stem_songs(tmp_path, tiny_palette(), count=1, seconds=2.0, stems=9)


def test_stems_bleed_as_much_as_is_asked_for(tmp_path):
    def sounds(folder, bleed):
        (song,) = write_stem_songs(folder, tiny_palette(), count=1, seconds=4.0, bleed=bleed)
        return [soundfile.read(path)[0] for path in song.files]

    clean, bleeding = sounds(tmp_path / "a", None), sounds(tmp_path / "b", -20.0)
    whole = np.sum(clean, axis=0)
    for alone, heard in zip(clean, bleeding, strict=True):
        rest = heard - alone
        assert np.std(rest) == pytest.approx(0.1 * np.std(alone), rel=0.05)
        assert np.corrcoef(rest, whole - alone)[0, 1] > 0.95


def test_stems_one_by_one_are_better_than_the_mix_at_once(tmp_path, default_bundle):
    """Of bare tones, which the model has never heard; benchmarks/per_stem.py has instruments."""
    found = {"mix": [], "stems": []}
    for song in write_stem_songs(tmp_path, tiny_palette(), count=2, seconds=8.0):
        labels = read_labels([song.mix.with_suffix(".mid")])
        for way, inputs in (("mix", [song.mix]), ("stems", [*song.files, "--per-stem"])):
            out = tmp_path / f"{song.folder.name}-{way}.json"
            words = [*map(str, inputs), "-m", str(default_bundle), "-q", "-o", str(out)]
            assert main(["transcribe", *words]) == 0
            notes = Findings(tuple(load_notes(out)))
            found[way].append(score(Recording(song.folder.name, labels), notes))
    f1 = {way: stem_document(Evaluation(tuple(some)))[ALL]["value"] for way, some in found.items()}
    assert f1["stems"] > f1["mix"]
