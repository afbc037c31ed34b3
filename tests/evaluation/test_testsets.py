"""Test sets and the demonstration recording: files that agree with their labels."""

from __future__ import annotations

import hashlib
import wave
from pathlib import Path

import numpy as np
import pytest

from mt3_evaluation.scoreboards import testsets
from mt3_evaluation.scoreboards.testsets import TEST_SETS, SetSpec, set_named, write_test_set
from mt3_runtime.errors import MissingDependencyError, OptionError, OutputError
from mt3_runtime.files.formats import load_notes
from mt3_synthesis import demo
from mt3_synthesis.bank import assemble
from mt3_synthesis.rendering import Sound
from mt3_synthesis.soundfonts import Role, find, source_named
from tests import needs
from tests.synthesis.sounds import tiny_bank, tone
from tests.trees import snapshot

DEMO = Path(__file__).parents[2] / "calibration" / "demo"


def read(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16000, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767.0


def test_a_set_is_made_of_recordings_and_labels(tmp_path):
    paths = write_test_set(
        set_named("e2"), tmp_path / "set", count=5, seconds=3.0, banks=[tiny_bank()]
    )
    assert [path.name for path in paths] == [f"e2-{k:03d}.wav" for k in range(5)]
    for path in paths:
        audio, notes = read(path), load_notes(path.with_suffix(".mid"))
        assert len(audio) == 3 * 16000
        assert notes
        assert all(note.onset < 2.5 for note in notes)
        assert 0.03 < np.abs(audio).max() <= 1.0
        start = round(min(note.onset for note in notes) * 16000)
        assert np.abs(audio[start : start + 2000]).max() > 5 * np.abs(audio[: start - 32]).max(
            initial=0.0
        )
    assert (tmp_path / "set" / "CREDITS.txt").read_text() == "tiny: made of sines (none)\n"


def test_equal_arguments_give_equal_files(tmp_path):
    spec = SetSpec("own", (), augment=None)
    for name in ("one", "two"):
        write_test_set(spec, tmp_path / name, count=2, seconds=2.0, banks=[tiny_bank()])
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 5
    for path in files:
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_sets_differ_in_their_music(tmp_path):
    for name in ("e1", "e2"):
        write_test_set(set_named(name), tmp_path, count=1, seconds=2.0, banks=[tiny_bank()])
    assert load_notes(tmp_path / "e1-000.mid") != load_notes(tmp_path / "e2-000.mid")


def test_banks_are_built_from_the_sources(tmp_path, monkeypatch):
    asked = []

    def build(source):
        asked.append(source.name)
        return assemble("x", [Sound(0, 60, 100, tone(60, 0.5))])

    monkeypatch.setattr(testsets, "build_bank", build)
    write_test_set(set_named("e3"), tmp_path, count=1, seconds=1.5)
    assert asked == ["salamander", "tonejs"]


def test_no_set_but_the_first_uses_sounds_of_the_training():
    roles = {s.name: {source_named(name).role for name in s.sources} for s in TEST_SETS}
    assert roles == {
        "e1": {Role.TRAIN},
        "choice": {Role.CHOICE},
        "e2": {Role.TEST},
        "e3": {Role.TEST},
        "trust": {Role.TRAIN, Role.CHOICE},
    }


def test_unknown_sets_are_refused_with_the_known_ones():
    with pytest.raises(OptionError, match="e1, choice, e2, e3, trust"):
        set_named("e9")


@pytest.mark.parametrize("name", ["e1-000.wav", "e1-000.mid", "CREDITS.txt"])
def test_a_set_replaces_no_file_of_anybody_else(tmp_path, name):
    (tmp_path / name).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=rf"holds {name}.*new folder"):
        write_test_set(set_named("e1"), tmp_path, count=1, seconds=2.0, banks=[tiny_bank()])
    assert snapshot(tmp_path) == before


def test_a_set_that_was_interrupted_goes_on_beside_other_files(tmp_path):
    wanted = {"count": 2, "seconds": 2.0, "banks": [tiny_bank()]}
    write_test_set(set_named("e1"), tmp_path, **wanted)
    whole = snapshot(tmp_path)
    (tmp_path / "e1-001.wav").unlink()
    (tmp_path / "notes.txt").write_text("mine")
    write_test_set(set_named("e1"), tmp_path, **wanted)
    assert snapshot(tmp_path) == whole | {"notes.txt": b"mine"}
    (tmp_path / "e1-001.wav").write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match="not replaced"):
        write_test_set(set_named("e1"), tmp_path, **wanted)
    assert snapshot(tmp_path) == before


# --- the demonstration ---------------------------------------------------------------------------


def test_the_demonstration_is_a_short_piece_for_four():
    notes = demo.demo_notes()
    assert {(note.program, note.is_drum) for note in notes} == {
        (0, False), (33, False), (48, False), (0, True),
    }  # fmt: skip
    assert 12.0 < max(note.offset for note in notes) < 15.0
    assert notes[0].onset == 0.0


def test_the_recording_in_the_repository_is_the_piece():
    soundfile = needs.package("soundfile")
    audio, rate = soundfile.read(DEMO / "demo.flac")
    assert rate == demo.DEMO_RATE
    assert (DEMO / "demo.flac").stat().st_size < 400_000
    notes = demo.demo_notes()
    assert 12.0 < len(audio) / rate < 15.0
    assert np.abs(audio).max() == pytest.approx(demo.PEAK, abs=0.01)
    labels = load_notes(DEMO / "demo.mid")
    assert [(n.pitch, n.program, n.is_drum, n.velocity) for n in labels] == [
        (n.pitch, n.program, n.is_drum, n.velocity) for n in sorted(labels)
    ]
    assert len(labels) == len(notes)
    for label, note in zip(labels, notes, strict=True):
        assert label.onset == pytest.approx(note.onset, abs=0.001)
    assert "Frank Wen" in (DEMO / "LICENSE").read_text(encoding="utf-8")


def test_the_recording_can_be_made_again(tmp_path, capsys):
    needs.package("tinysoundfont", "soundfonts")
    soundfile = needs.package("soundfile")
    try:
        find(source_named("fluidr3mono"))
    except MissingDependencyError as error:
        needs.missing("soundfonts", str(error))
    assert demo.main([str(tmp_path / "new")]) == 0
    paths = capsys.readouterr().out.split()
    assert [Path(path).name for path in paths] == ["demo.flac", "demo.mid"]
    (new, _), (old, _) = (soundfile.read(path) for path in (paths[0], DEMO / "demo.flac"))
    assert len(new) == len(old)
    assert np.abs(new - old).max() < 1e-3
    assert hashlib.sha256(Path(paths[1]).read_bytes()).digest() == (
        hashlib.sha256((DEMO / "demo.mid").read_bytes()).digest()
    )
    Path(paths[1]).write_text("mine")
    assert demo.main([str(tmp_path / "new")]) == 1
    assert "demo.mid is there" in capsys.readouterr().err
    assert Path(paths[1]).read_text() == "mine"


def test_the_command_of_the_demonstration_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    assert demo.main([]) == 2
    assert "usage" in capsys.readouterr().err

    def absent(source):
        raise MissingDependencyError("not installed; run: apt-get")

    monkeypatch.setattr(demo, "find", absent)
    assert demo.main([str(tmp_path)]) == 1
    assert "apt-get" in capsys.readouterr().err
