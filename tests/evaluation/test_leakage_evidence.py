"""What the thresholds of the leakage filter rest on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_evaluation.leakage_study import leakage_evidence
from mt3_evaluation.leakage_study.leakage_evidence import (
    LEAKED,
    OTHER,
    TRUE,
    constants_table,
    filters_table,
    read,
    signs_table,
    tells,
    truths,
)
from mt3_runtime.errors import OptionError
from mt3_runtime.files.formats import load_notes, render
from mt3_runtime.leakage import drum_evidence
from mt3_runtime.notes.note import Note
from tests.runtime.test_filtering import LEAKED as LEAK
from tests.runtime.test_filtering import TRUE as MELODY
from tests.runtime.test_filtering import drum, drum_loop, melody


def test_truths():
    labels = [Note(1.0, 2.0, 60, 100, 73), drum(1.5, 38), drum(3.0, 36), drum(4.0, 36)]
    notes = [
        Note(1.02, 1.5, 60, 100, 40),  # another instrument
        Note(1.03, 1.5, 72, 100, 0),  # the label is taken
        Note(1.5, 1.6, 48, 100, 32),  # a repetition of what still sounds
        Note(1.05, 1.2, 65, 100, 0),  # a wrong pitch beside the right one
        Note(3.02, 3.1, 40, 100, 32),  # a kick
        Note(3.4, 3.5, 40, 100, 32),  # nothing at all
    ]
    assert truths(labels, notes) == [TRUE, OTHER, OTHER, OTHER, LEAKED, OTHER]
    assert truths(labels, notes[1:2]) == [TRUE]  # another octave
    assert truths(labels[1:], notes) == [LEAKED] * 6
    assert truths(labels, []) == []


def test_tells():
    assert tells(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert tells(np.array([0.0]), np.array([1.0])) == 0.0
    assert tells(np.array([1.0, 1.0]), np.array([1.0])) == 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drum loop and a melody over it, with what a model may make of them."""
    place = tmp_path_factory.mktemp("set")
    hits = [drum(k / 2, 42 if k % 2 else 36) for k in range(24)]
    for name, audio, labels, found in (
        ("drums-000", drum_loop(), hits, LEAK),
        ("mallets_drums-000", drum_loop() + melody(), [*hits, *MELODY], [*hits[1::2], *MELODY]),
    ):
        soundfile.write(place / f"{name}.wav", audio, 16000)
        (place / f"{name}.mid").write_bytes(render(labels, "midi"))
        (place / f"{name}.json").write_bytes(render(found, "json"))
    return place


def transcribe(path: Path) -> list[Note]:
    return load_notes(path.with_suffix(".json"))


def test_tables(folder: Path):
    pieces = read(folder, transcribe, rate=16000)
    assert [(p.kind, p.is_stem) for p in pieces] == [("drums", True), ("mallets_drums", False)]
    lines = [line.split() for line in filters_table(pieces, rate=16000).splitlines()]
    cells = {(line[0], line[1]): " ".join(line[3:10]) for line in lines[1:]}
    assert cells["drums", "off"].startswith("0 / 0 12 / 12 50.0%")
    assert cells["drums", "on"].startswith("0 / 0 0 / 12 100.0%")
    assert cells["mallets_drums", "on"].startswith("0 / 24 0 / 0 33.3%")
    signs = signs_table(pieces)
    assert "clear: 100.0% of the true notes, 0.0% of the leaked ones" in signs
    assert signs.splitlines()[1].split()[:2] == ["clarity", "1.000"]
    before = {name: getattr(drum_evidence, name) for name in leakage_evidence.CONSTANTS}
    rows = {tuple(line.split()[:2]): line for line in constants_table(pieces).splitlines()}
    assert "0 / 24" in rows["as", "they"]
    assert "0 / 12" in rows["as", "they"]
    assert ("CLEAR", "0.8") in rows
    assert ("MELODY_TONES", "3.6") in rows
    assert before == {name: getattr(drum_evidence, name) for name in leakage_evidence.CONSTANTS}


def test_from_the_command_line(folder, tiny_bundle, tmp_path, monkeypatch, capsys):
    notes = tmp_path / "notes"
    arguments = ["evidence", str(folder), "-m", str(tiny_bundle), "--notes", str(notes)]
    monkeypatch.setattr(sys, "argv", arguments)
    assert leakage_evidence.main() == 0
    first = capsys.readouterr().out
    assert "no sign can be judged" in first  # the tiny model hears nothing right
    assert sorted(path.name for path in notes.iterdir()) == [
        "drums-000.json", "mallets_drums-000.json",
    ]  # fmt: skip
    assert leakage_evidence.main() == 0
    assert capsys.readouterr().out == first

    def fails(*_args, **_options):
        raise OptionError("no such thing")

    monkeypatch.setattr(leakage_evidence, "read", fails)
    assert leakage_evidence.main() == 1
    assert capsys.readouterr().err == "error: no such thing\n"
