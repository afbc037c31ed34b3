"""Recordings to judge instrument leakage by."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mt3_evaluation.leakage_study import leakage_set
from mt3_evaluation.leakage_study.leakage_set import (
    KINDS,
    LEAKAGE_SETS,
    LeakageSet,
    banks_for,
    compose,
    kit_banks,
    set_named,
    write_leakage_set,
)
from mt3_runtime.errors import MissingDependencyError, OptionError, OutputError
from mt3_runtime.files.formats import load_notes
from mt3_synthesis.rendering import DRUM_KIT, Sound
from mt3_synthesis.soundfonts import Role, source_named
from tests import needs
from tests.evaluation.test_testsets import read
from tests.synthesis.sounds import hertz_of, tiny_bank, tone
from tests.trees import snapshot

SMALL = LeakageSet("small", (), counts=(("drums", 2),), count=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("leakage")
    return write_leakage_set(SMALL, folder, banks=[tiny_bank()], seconds=4.0)


def test_a_set_has_every_kind_with_its_labels(written: list[Path]):
    names = [path.stem for path in written]
    assert sorted(names) == sorted(["drums-001", *(f"{kind}-000" for kind in KINDS)])
    for path in written:
        notes = load_notes(path.with_suffix(".mid"))
        kind = KINDS[path.stem.rsplit("-", 1)[0]]
        assert len(read(path)) == 4 * 16000
        assert kind.drums or not any(note.is_drum for note in notes)
        assert kind.players or all(note.is_drum for note in notes)
    assert (written[0].parent / "CREDITS.txt").read_text() == "tiny: made of sines (none)\n"


def test_equal_arguments_give_equal_files(written: list[Path], tmp_path: Path):
    again = write_leakage_set(SMALL, tmp_path, banks=[tiny_bank()], seconds=4.0)
    for one, other in zip(written, again, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.with_suffix(".mid").read_bytes() == other.with_suffix(".mid").read_bytes()


@pytest.mark.parametrize("name", ["drums-001.wav", "drums-000.mid", "CREDITS.txt"])
def test_a_set_replaces_no_file_of_anybody_else(tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(OutputError, match=f"holds {name}, which would be replaced"):
        write_leakage_set(SMALL, tmp_path, banks=[tiny_bank()], seconds=4.0)
    assert snapshot(tmp_path) == before


def test_another_name_is_other_music(written: list[Path], tmp_path: Path):
    (other, *_) = write_leakage_set(
        replace(SMALL, name="other"), tmp_path, banks=[tiny_bank()], seconds=4.0
    )
    assert other.read_bytes() != written[0].read_bytes()


@pytest.mark.parametrize("seed", range(5))
def test_a_pedal_stays_on_one_pitch_or_two(seed: int):
    piece = compose(KINDS["pedal_drums"], seed, seconds=8.0)
    bass = next(part for part in piece.parts if not part.is_drum)
    assert 1 <= len({note.pitch for note in bass.notes}) <= 2
    assert len(bass.notes) >= 4


@pytest.mark.parametrize("seed", range(8))
def test_chops_are_short_and_few(seed: int):
    piece = compose(KINDS["chops_drums"], seed, seconds=12.0)
    for part in piece.parts:
        if not part.is_drum:
            assert max(note.offset - note.onset for note in part.notes) <= 0.26
            assert len({note.pitch for note in part.notes}) <= 12


@pytest.mark.parametrize("seed", range(8))
def test_a_riff_has_two_to_four_pitches(seed: int):
    piece = compose(KINDS["riff_drums"], seed, seconds=12.0)
    (riff,) = [part for part in piece.parts if not part.is_drum]
    assert 1 <= len({note.pitch for note in riff.notes}) <= 4
    assert max(note.offset - note.onset for note in riff.notes) <= 0.21


def test_a_band_behind_its_drummer_is_soft():
    loud = replace(KINDS["rock_drums"], loudness=1.0)
    soft, full = (compose(kind, 3, seconds=8.0) for kind in (KINDS["rock_drums"], loud))
    for one, other in zip(soft.parts, full.parts, strict=True):
        ratio = sum(n.velocity for n in one.notes) / sum(n.velocity for n in other.notes)
        assert ratio == pytest.approx(1.0 if one.is_drum else 0.45, abs=0.02)


def test_what_is_tuned_on_and_what_is_not_share_no_sounds():
    tune, *others = LEAKAGE_SETS
    assert not any(set(tune.sources) & set(other.sources) for other in others)
    assert all(source_named(name).role is not Role.TEST for name in tune.sources)
    assert [spec.name for spec in LEAKAGE_SETS] == ["tune", "check", "last"]
    with pytest.raises(OptionError, match="tune, check, last"):
        set_named("test")


def test_kits_are_tuned_in_turn(monkeypatch: pytest.MonkeyPatch):
    needs.package("soxr")

    def play(data: bytes, wanted):
        for kit, key, velocity, _ in wanted:
            if kit != DRUM_KIT + 9:  # a kit that the font lacks
                yield Sound(kit, key, velocity, tone(69.0, 0.3))

    monkeypatch.setattr(leakage_set, "play_soundfont", play)
    banks = kit_banks("font", b"", (0, 8, 9), (1.0, 1.25))
    assert [bank.name for bank in banks] == ["font kit 0", "font kit 8"]
    for bank, hertz in zip(banks, (440.0, 550.0), strict=True):
        assert bank.instruments == [DRUM_KIT]
        shot = bank.shots(DRUM_KIT)[0]
        samples = bank.audio[shot.start : shot.start + shot.length].astype(np.float32)
        assert hertz_of(samples) == pytest.approx(hertz, rel=0.01)


def test_banks_of_a_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "font.sf2").write_bytes(b"font")
    monkeypatch.setattr(leakage_set, "find", lambda _source: (tmp_path / "font.sf2",))
    monkeypatch.setattr(leakage_set, "build_bank", lambda source, _spec=None: source.name)
    monkeypatch.setattr(leakage_set, "kit_banks", lambda name, data, *_: [f"{name} {data!r}"])
    assert banks_for(set_named("check")) == ["timgm6mb", "timgm6mb", "timgm6mb b'font'"]


def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    made = []
    monkeypatch.setattr(leakage_set, "write_leakage_set", lambda *args: made.append(args))
    monkeypatch.setattr(sys, "argv", ["leakage_set", "check", str(tmp_path)])
    assert leakage_set.main() == 0
    assert made == [(set_named("check"), tmp_path)]

    def fails(*_args):
        raise MissingDependencyError("install it")

    monkeypatch.setattr(leakage_set, "write_leakage_set", fails)
    assert leakage_set.main() == 1
    assert capsys.readouterr().err == "error: install it\n"
