"""The examples and the demo run, and say what the library says."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
from concurrent.futures import CancelledError
from pathlib import Path

import pytest
import soundfile

from examples import live_input, pipeline_stage, rhythm_kit_stage, song_to_midi
from examples.rhythm_kit_stage import KIT, RhythmKitStage, keep_drums, onsets
from mt3_runtime.errors import AudioWarning, DeadlineError
from mt3_runtime.files.formats import load_notes, render
from mt3_runtime.files.midi import from_midi, to_midi
from mt3_runtime.model import Model
from mt3_runtime.notes.note import Note
from tests.export.writers import write_kunato
from tests.pace import HANGS
from tests.trees import snapshot

ROOT = Path(__file__).parents[1]
STAGE = ROOT / "examples" / "rhythm_kit_stage.py"
DEMO = ROOT / "scripts" / "demo"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

#: Two bars of a band: (onset, offset, pitch, program, is_drum).
BAND = [
    Note(0.0, 0.01, 36, 127, is_drum=True),
    Note(0.0, 0.01, 42, 127, is_drum=True),
    Note(0.5, 0.51, 38, 127, is_drum=True),
    Note(0.5, 0.51, 40, 127, is_drum=True),  # the other snare, at the same time
    Note(0.75, 0.76, 56, 127, is_drum=True),  # a cowbell
    Note(0.0, 1.0, 36, 127, 33),  # a bass note on the key of the kick
    Note(0.25, 2.0, 60, 127, 0),
    Note(1.0, 1.01, 35, 127, is_drum=True),
]


@pytest.fixture
def recording(tmp_path, audio):
    path = tmp_path / "take 1.wav"
    soundfile.write(path, audio, 16000, subtype="FLOAT")
    return path


def test_a_stage_finds_what_the_model_finds(tiny_bundle, tiny_model, recording, tmp_path):
    written = tmp_path / "drums.mid"
    parts = RhythmKitStage(str(tiny_bundle), device="cpu").run(recording, written)
    drums = [note for note in tiny_model.transcribe_notes(recording).notes if note.is_drum]
    assert len(drums) > 10
    assert list(parts) == [*KIT, "other"]
    found = sorted({onset for times in parts.values() for onset in times})
    assert found == pytest.approx(sorted({note.onset for note in drums}), abs=2e-4)
    again = load_notes(written)
    assert all(note.is_drum for note in again)
    assert [note.pitch for note in again] == [note.pitch for note in sorted(drums)]


def test_only_drums_are_kept_and_their_times_stay():
    drums = keep_drums(to_midi(BAND))
    assert from_midi(drums) == from_midi(to_midi([note for note in BAND if note.is_drum]))
    assert [track.name for track in drums.tracks] == ["mt3-runtime", "Drums"]


def test_times_stay_where_instruments_share_a_track():
    """Other writers put everything into one track: the times of what goes must not be lost."""
    song = to_midi(BAND)
    merged = type(song)(type=0, ticks_per_beat=song.ticks_per_beat)
    merged.tracks.append(song.merged_track)
    expected = [(note.onset, note.pitch) for note in sorted(BAND) if note.is_drum]
    found = [(round(note.onset, 3), note.pitch) for note in from_midi(keep_drums(merged))]
    assert found == expected


def test_hits_go_to_the_parts_of_the_kit():
    assert onsets(keep_drums(to_midi(BAND))) == {
        "kick": [0.0, 1.0],
        "snare": [0.5],
        "hi-hat": [0.0],
        "tom": [],
        "cymbal": [],
        "other": [0.75],
    }


def test_no_key_belongs_to_two_parts():
    keys = [key for part in KIT.values() for key in part]
    assert len(keys) == len(set(keys))


def test_the_stage_needs_one_name_of_this_project():
    """What the page on migration promises: the import is the only line to change."""
    tree = ast.parse(STAGE.read_text(encoding="utf-8"))
    ours = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mt3_")
    ]
    assert [ast.unparse(node) for node in ours] == ["from mt3_runtime import load_model"]
    assert f"+{ast.unparse(ours[0])}" in (ROOT / "docs" / "MIGRATION.md").read_text("utf-8")


def test_the_stage_as_a_program(tiny_bundle, recording, tmp_path, monkeypatch, capsys):
    written = tmp_path / "drums.mid"
    monkeypatch.setattr(sys, "argv", ["stage", str(tiny_bundle), str(recording), str(written)])
    assert rhythm_kit_stage.main() == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [*KIT, "other"]
    assert written.exists()
    monkeypatch.setattr(sys, "argv", ["stage", "model"])
    assert rhythm_kit_stage.main() == 2


def test_a_song_to_midi(tiny_bundle, tiny_model, recording, tmp_path, monkeypatch, capsys):
    written = tmp_path / "song.mid"
    arguments = ["song_to_midi", str(recording), str(written), str(tiny_bundle)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert song_to_midi.main() == 0
    expected = tiny_model.transcribe_notes(recording)
    assert written.read_bytes() == render(expected, "midi")
    assert capsys.readouterr().out == f"{expected.summary()}\n"
    monkeypatch.setattr(sys, "argv", arguments[:2])
    assert song_to_midi.main() == 2


def test_quiet_songs_are_told_of(tiny_bundle, audio, tmp_path, monkeypatch, capsys):
    soundfile.write(tmp_path / "quiet.wav", audio[:32000] / 1000, 16000, subtype="FLOAT")
    arguments = ["x", str(tmp_path / "quiet.wav"), str(tmp_path / "x.mid"), str(tiny_bundle)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.warns(AudioWarning, match="quiet"):
        assert song_to_midi.main() == 0
    assert "very quiet" in capsys.readouterr().err


def test_notes_of_live_input_come_while_it_is_recorded(default_bundle, monkeypatch, capsys):
    """The first note is printed before the last block is there."""
    events = []
    recorded = live_input.recorded

    def watched(seconds):
        yield from recorded(seconds)
        events.append("end")

    monkeypatch.setattr(live_input, "recorded", watched)
    monkeypatch.setattr(sys.stdout, "write", lambda text: events.append("note"))
    notes = live_input.transcribe_live(str(default_bundle), seconds=6.0, pace=0.5)
    assert events[0] == "note"
    assert "end" in events
    played = [(0.5 * n, live_input.MELODY[n % len(live_input.MELODY)]) for n in range(12)]
    found = {(round(note.onset * 2) / 2, note.pitch) for note in notes}
    assert len(found & set(played)) >= 8  # 10 with the weights of today
    assert len(found - set(played)) <= 2


def test_arrays_need_no_packages_for_files(default_bundle):
    """In a process of its own, in which neither soundfile nor soxr can be imported."""
    program = (
        "import sys\n"
        "sys.modules['soundfile'] = sys.modules['soxr'] = None\n"
        "from examples.notes_from_arrays import RATE, melody, transcribed\n"
        "notes, midi = transcribed(melody(), RATE, sys.argv[1])\n"
        "print(bytes(midi[:4]), *[note.pitch for note in notes])\n"
    )
    arguments = [sys.executable, "-c", program, str(default_bundle)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    head, *pitches = done.stdout.split()
    assert head == "b'MThd'"
    scale = {"60", "62", "64", "65", "67", "69", "71", "72"}
    assert len(scale & set(pitches)) >= 6  # 7 with the weights of today
    assert set(pitches) <= scale


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_short_and_says_how_to_start(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 105
    assert f"    python examples/{path.name}" in text
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def demo(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(DEMO), *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def installed(tmp_path):
    """What the demo would have installed: an `mt3` of this environment."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    program = "import sys; from mt3_runtime.cli import main; sys.exit(main())"
    command = venv / "bin" / "mt3"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{program}' \"$@\"\n")
    command.chmod(0o755)
    (venv / "installed").touch()
    return venv


@pytest.mark.skipif(os.name == "nt", reason="the demo is a bash script")
def test_the_demo_exports_once_and_transcribes(installed, tiny_weights, recording, tmp_path):
    write_kunato(tmp_path / "port", tiny_weights)
    here = tmp_path / "here"
    here.mkdir()
    variables = {"MT3_DEMO_VENV": str(installed)}
    first = demo(here, str(tmp_path / "port"), str(recording), **variables)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in here.iterdir()] == ["take 1.mid"]
    assert load_notes(here / "take 1.mid")
    assert "parameters" in first.stderr
    assert "notes" in first.stderr

    second = demo(here, "../port", str(recording), **variables)
    assert second.returncode == 0, second.stderr
    assert "parameters" not in second.stderr  # the bundle was there

    (tmp_path / "port" / "mt3.pth").touch()
    third = demo(here, str(tmp_path / "port"), str(recording), **variables)
    assert "parameters" in third.stderr  # the weights are newer than the bundle
    assert len(list((installed / "bundles").iterdir())) == 1


@pytest.mark.skipif(os.name == "nt", reason="the demo is a bash script")
def test_the_demo_explains_mistakes_before_it_installs(recording, tmp_path):
    variables = {"MT3_DEMO_VENV": str(tmp_path / "none")}
    usage = demo(tmp_path, "magenta_mt3", **variables)
    assert (usage.returncode, usage.stderr) == (2, "usage: scripts/demo CHECKPOINT AUDIO\n")
    missing = demo(tmp_path, "magenta_mt3", "nothing.wav", **variables)
    assert missing.returncode == 1
    assert "no audio file nothing.wav" in missing.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.skipif(os.name == "nt", reason="the demo is a bash script")
def test_the_demo_takes_names_of_the_catalogue(installed, recording, tmp_path):
    variables = {"MT3_DEMO_VENV": str(installed), "MT3_CACHE": str(tmp_path), "MT3_OFFLINE": "1"}
    ended = demo(tmp_path, "magenta_mt3", str(recording), **variables)
    assert ended.returncode == 3
    assert "MT3_OFFLINE" in ended.stderr


def home(folder: Path) -> None:
    (folder / "Documents").mkdir(parents=True)
    (folder / "Documents" / "thesis.txt").write_text("years of work")


def environment_of_a_user(folder: Path) -> None:
    for name in ("bin", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("version = 3.11.0")


def ours_with_notes(folder: Path) -> None:
    environment_of_a_user(folder)
    (folder / ".mt3-venv").touch()
    (folder / "notes.txt").write_text("mine")


def ours_in_the_name_of_a_file(folder: Path) -> None:
    folder.write_text("mine")


def only_a_hidden_file(folder: Path) -> None:
    folder.mkdir()
    (folder / ".profile").write_text("mine")


@pytest.mark.skipif(os.name == "nt", reason="the scripts are for bash")
@pytest.mark.parametrize(
    "fill",
    [
        home,
        environment_of_a_user,
        ours_with_notes,
        ours_in_the_name_of_a_file,
        only_a_hidden_file,
    ],
)
def test_no_folder_of_anybody_else_becomes_an_environment(tmp_path, recording, fill):
    fill(tmp_path / "place")
    before = snapshot(tmp_path)
    command = [DEMO.with_name("new-venv"), tmp_path / "place"]
    direct = subprocess.run(command, capture_output=True, text=True, check=False)
    assert direct.returncode == 1
    assert "place" in direct.stderr
    ended = demo(tmp_path, "magenta_mt3", str(recording), MT3_DEMO_VENV=str(tmp_path / "place"))
    assert ended.returncode == 1
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="the scripts are for bash")
def test_an_environment_of_ours_is_made_anew(tmp_path):
    variables = os.environ | {"PYTHON": sys.executable}
    command = [DEMO.with_name("new-venv"), tmp_path / "place"]
    subprocess.run(command, check=True, env=variables)
    (tmp_path / "place" / "bundles").mkdir()
    (tmp_path / "place" / "installed").touch()
    subprocess.run(command, check=True, env=variables)
    assert (tmp_path / "place" / "bin" / "python").exists()
    assert not (tmp_path / "place" / "installed").exists()


def test_programs_can_be_started():
    for path in (*EXAMPLES, DEMO, DEMO.with_name("new-venv")):
        assert path.stat().st_mode & stat.S_IXUSR, path


# --- a stage with a budget ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budgeted(tiny_bundle):
    with pipeline_stage.TranscriptionStage(str(tiny_bundle), budget_seconds=HANGS) as stage:
        yield stage


@pytest.fixture
def tune(audio, tmp_path):
    path = tmp_path / "tune.wav"
    soundfile.write(path, audio, 16000)
    return path


def test_a_stage_gives_the_notes_and_tells_how_far_it_is(budgeted, tiny_model, tune):
    parts: list[float] = []
    notes = budgeted.run(str(tune), on_progress=parts.append)
    assert notes == tiny_model.transcribe_notes(tune).notes
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1.0)


def test_a_stage_ends_when_its_budget_is_spent_and_goes_on(budgeted, tune, monkeypatch):
    monkeypatch.setattr(budgeted, "_budget", 1e-6)
    with pytest.raises(DeadlineError):
        budgeted.run(str(tune))
    monkeypatch.undo()
    assert budgeted.run(str(tune))


def test_a_stage_is_called_off_from_another_thread_and_goes_on(budgeted, tune):
    """From within the first segment, so that it is under way however fast the machine is."""
    called_off: list[float] = []

    def stop(part: float) -> None:
        if not called_off:
            called_off.append(part)
            budgeted.cancel()

    with pytest.raises(CancelledError):
        budgeted.run(str(tune), on_progress=stop)
    assert called_off[0] < 1.0
    assert budgeted.run(str(tune))


def test_a_stage_is_warm_when_the_first_recording_comes(tiny_bundle, tune, monkeypatch):
    warmed = []
    monkeypatch.setattr(Model, "warmup", lambda *_, **__: warmed.append(True))
    with pipeline_stage.TranscriptionStage(str(tiny_bundle), budget_seconds=HANGS) as stage:
        assert warmed == [True]
        stage.run(str(tune))
        stage.cancel()  # of what is done nothing is left to end
    assert warmed == [True]
