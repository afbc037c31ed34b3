"""``instruments="auto"``: two passes, evidence between them, and what the result says of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from mt3_analysis.tagging.lineup_evidence import (
    NOTES_ALONE,
    OTHERS,
    WITH_TAGGER,
    LineupEvidence,
    judged,
)
from mt3_export.classifiers.classifier_writer import export_classifier
from mt3_runtime import cli
from mt3_runtime.errors import AudioError, MissingDependencyError, OptionError
from mt3_runtime.extensions import auto_lineup, evidence
from mt3_runtime.extensions.auto_lineup import transcribe_auto
from mt3_runtime.extensions.evidence import HeardRecording, LineupReport
from mt3_runtime.files.formats import render
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Progress, Transcription
from tests.classifier_networks import ast_folder

RATE = 16000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder without taggers."""
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def note(program, *, drum=False, pitch=60):
    return Note(0.0, 1.0, pitch, 100, program, drum)


class Scripted:
    """Stands for a model: gives notes by the line-up that is asked for."""

    def __init__(self, *free):
        self.free, self.calls = free, []

    def __call__(self, audio, sr=None, *, instruments=None, exclude=None, progress=None, **options):
        self.calls.append((instruments, exclude, options))
        notes = self.free if instruments is None else (note(min(instruments.programs, default=0)),)
        if progress:
            for done in (1.0, 2.0):
                progress(Progress(done, 2.0, 1))
        return Transcription(notes, (), 2.0, "scripted", "0" * 64)


class Says:
    def __init__(self, *programs, keys=()):
        self.report = LineupReport("a test", Lineup(frozenset(programs), frozenset(keys)), ())

    def identity(self):
        return "a test"

    def lineup(self, heard):
        self.heard = heard
        return self.report


SAMPLES = np.full(RATE, 0.1, np.float32)


def test_notes_of_nobody_else_are_the_result_at_once():
    once, says = Scripted(note(40), note(48)), Says(40, 48)
    result = transcribe_auto(once, SAMPLES, RATE, rate=RATE, source=says)
    assert len(once.calls) == 1
    assert result.notes == once.free
    assert result.lineup is not None
    assert not result.lineup.applied
    assert list(says.heard.notes) == list(once.free)


@pytest.mark.parametrize("stray", [note(0), note(0, drum=True, pitch=36), note(49)])
def test_notes_of_others_lead_to_a_second_pass(stray):
    once = Scripted(note(40), stray)
    result = transcribe_auto(once, SAMPLES, RATE, rate=RATE, source=Says(40), grammar=True)
    assert [call[0] for call in once.calls] == [None, Lineup(frozenset({40}), frozenset())]
    assert all(call[2] == {"grammar": True} for call in once.calls)
    assert result.lineup.applied
    assert [each.program for each in result.notes] == [40]


def test_what_is_excluded_stays_excluded():
    once = Scripted(note(40), note(0))
    transcribe_auto(once, SAMPLES, RATE, rate=RATE, exclude="piano", source=Says(0, 40, 41))
    assert once.calls[0][1] == "piano"
    assert once.calls[1][0] == Lineup(frozenset({40, 41}), frozenset())
    with pytest.raises(OptionError, match="No instrument is left"):
        transcribe_auto(once, SAMPLES, RATE, rate=RATE, exclude="violin", source=Says(40))


def test_both_passes_are_one_for_those_who_watch():
    told = []
    once = Scripted(note(40), note(0))
    transcribe_auto(once, SAMPLES, RATE, rate=RATE, source=Says(40), progress=told.append)
    assert [now.seconds_done for now in told] == [0.5, 1.0, 1.5, 2.0]


def test_a_family_needs_less_of_the_notes_the_better_it_is_heard():
    for share in (0.01, 0.1, 0.5):
        chances = [WITH_TAGGER.chance(score, 0.5, share) for score in (0.0, 0.01, 0.1, 0.5)]
        assert chances == sorted(chances)
        assert chances[0] < chances[-1]
    for score in (0.0, 0.2):
        chances = [WITH_TAGGER.chance(score, 0.5, share) for share in (0.0, 0.01, 0.1, 1.0)]
        assert chances == sorted(chances)


def test_a_wrong_tag_costs_little():
    """A tagger that is not sure leaves the notes as they are; one that is sure decides."""
    notes = {"strings": 0.6, "bass": 0.3, "drums": 0.1, "brass": 0.004}
    kept = {e.family for e in judged("t", {"flutes": 0.02}, notes).families if e.kept}
    assert {"strings", "bass", "drums"} <= kept
    assert "brass" not in kept
    report = judged("t", {"strings": 0.87, "brass": 0.001}, {"strings": 0.55, "brass": 0.30})
    assert {e.family for e in report.families if e.kept} == {"strings"}
    assert 40 in report.lineup.programs
    assert 56 not in report.lineup.programs


def test_nobody_is_left_out_of_what_the_tagger_is_not_sure_of():
    for share in (0.03, 0.3, 1.0):
        assert WITH_TAGGER.chance(0.0, 0.01, share) >= WITH_TAGGER.least
    assert NOTES_ALONE.chance(0.0, 0.0, 0.001) < NOTES_ALONE.least


def test_nothing_heard_limits_nothing():
    assert judged("t", None, {}).lineup == Lineup()


def test_programs_that_no_tagger_names_are_judged_by_their_notes():
    heavy = judged("t", {"piano": 0.9}, {"piano": 0.4, OTHERS: 0.6})
    light = judged("t", {"piano": 0.9}, {"piano": 0.99, OTHERS: 0.01})
    assert 104 in heavy.lineup.programs  # sitar
    assert 104 not in light.lineup.programs
    assert next(e.tagger for e in heavy.families if e.family == OTHERS) is None


def test_without_a_tagger_the_notes_speak_and_what_to_install_is_said():
    heard = HeardRecording(SAMPLES, RATE, [note(40)], 1.0)
    report = LineupEvidence().lineup(heard)
    assert report.source == "the notes alone"
    assert "mt3 export" in report.remarks[0]
    assert LineupEvidence().identity() == "notes"
    assert LineupEvidence(tagger=False).lineup(heard).remarks == ()


def test_a_tagger_is_asked_if_there_is_one(cache, tmp_path):
    export_classifier(ast_folder(tmp_path / "source"), cache / "classifiers" / "tiny", name="tiny")
    judge = LineupEvidence()
    report = judge.lineup(HeardRecording(SAMPLES, RATE, [note(40)], 1.0))
    assert report.source == "tiny and the notes"
    assert judge.identity().startswith("tiny ")
    assert report.remarks == ()


def test_nobody_to_ask_is_one_error_that_says_what_to_install(monkeypatch, tiny_model, audio):
    monkeypatch.setattr(evidence, "entry_points", lambda *, group: [])
    with pytest.raises(MissingDependencyError, match="pip install"):
        tiny_model.transcribe_notes(audio, instruments="auto")


def test_a_source_without_its_code_says_so(monkeypatch):
    class Entry:
        name = "gone"

        def load(self):
            raise ModuleNotFoundError("No module named 'gone'", name="gone")

    monkeypatch.setattr(evidence, "entry_points", lambda *, group: [Entry()])
    with pytest.raises(MissingDependencyError, match="cannot be loaded"):
        evidence.evidence_source()


@pytest.fixture
def asked(monkeypatch):
    """Nothing but strings plays."""
    says = Says(*range(40, 52))
    monkeypatch.setattr(auto_lineup, "evidence_source", lambda: says)
    for module in ("commands.transcribe_command", "batch.records.fingerprint"):
        monkeypatch.setattr(f"mt3_runtime.{module}.evidence_source", lambda: says)
    return says


def test_a_model_takes_auto_and_reports_it(asked, tiny_model, audio):
    plain = tiny_model.transcribe_notes(audio)
    assert plain.lineup is None
    result = tiny_model.transcribe_notes(audio, instruments=" Auto ")
    assert all(40 <= n.program < 52 and not n.is_drum for n in result.notes)
    asked_for = tiny_model.transcribe_notes(
        audio, instruments=Lineup(frozenset(range(40, 52)), frozenset())
    )
    assert result.notes == asked_for.notes
    document = json.loads(render(result, "json"))
    assert document["lineup"]["source"] == "a test"
    assert document["lineup"]["applied"] is True
    assert "lineup" not in json.loads(render(plain, "json"))


CALLS = {
    "transcribe_many": lambda model, audio: model.transcribe_many([audio], instruments="auto"),
    "stream": lambda model, audio: model.stream(audio, instruments="auto"),
    "forward": lambda model, audio: model.forward(model.preprocess(audio), instruments="auto"),
    "engine": lambda model, audio: model.engine().submit(audio, instruments="auto"),
}


@pytest.mark.parametrize("how", CALLS)
def test_auto_is_for_one_whole_recording(tiny_model, audio, how):
    with pytest.raises(OptionError, match="one whole recording at a time"):
        CALLS[how](tiny_model, audio)


def test_audio_that_cannot_be_read_is_the_usual_error(asked, tiny_model, tmp_path):
    with pytest.raises(AudioError):
        tiny_model.transcribe_notes(tmp_path / "missing.wav", instruments="auto")


def test_the_command_does_files_one_by_one(asked, tiny_bundle, audio, tmp_path, capsys):
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", audio, RATE)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    out = tmp_path / "out"
    call = ["transcribe", str(tmp_path), "-m", str(tiny_bundle), "-o", f"{out}/"]
    code = cli.main([*call, "-f", "json", "--instruments", "auto"])
    said = capsys.readouterr().err
    assert code == 1
    assert "c.wav" in said
    assert "instruments by a test" in said
    for name in ("a", "b"):
        document = json.loads((out / f"{name}.json").read_bytes())
        assert document["lineup"]["programs"] == list(range(40, 52))
        assert {n["program"] for n in document["notes"]} <= set(range(40, 52))
    code = cli.main([*call, "-f", "json"])  # the journal knows that these are other options
    assert "done before with other options" in capsys.readouterr().err


def test_a_file_that_takes_too_long_is_given_up(asked, tiny_bundle, audio, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", audio, RATE)
    call = ["transcribe", str(tmp_path / "a.wav"), "-m", str(tiny_bundle), "--instruments", "auto"]
    assert cli.main([*call, "--max-duration", "2"]) == 1
    assert "longer than 2 s" in capsys.readouterr().err
    assert cli.main([*call, "--timeout", "0.001"]) == 1
    assert "--timeout" in capsys.readouterr().err
    assert not (tmp_path / "a.mid").exists()
