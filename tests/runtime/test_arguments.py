"""Wrong values for every argument of the public functions: the project's own error, and no other.

Each row of the table says which of the values an argument takes: those must work, and all others
must be refused, with a message that names something and is not Python's.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mido
import numpy as np
import pytest

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.engine import Engine
from mt3_runtime.errors import AudioWarning, MT3Error, OptionError, ResultWarning
from mt3_runtime.files import formats, midi, midi_reader
from mt3_runtime.loading import load_model, transcribe
from mt3_runtime.model import Model, token_digest
from mt3_runtime.models.catalogue import download_model, get_model_info
from mt3_runtime.notes.note import Note, Probabilities
from mt3_runtime.transcription import Transcription

NOTE = Note(0.0, 1.0, 60, 100)


#: Makes the values, by name; generators can be gone through once.
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "nothing of that name",
    "empty text": str,
    "text with NUL": lambda: "a\0b",
    "True": lambda: True,
    "3": lambda: 3,
    "-1": lambda: -1,
    "larger than every float": lambda: 10**400,
    "0.5": lambda: 0.5,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "complex": lambda: 1j,
    "bytes": lambda: b"xx",
    "no bytes": bytes,
    "empty list": list,
    "empty tuple": tuple,
    "empty set": set,
    "empty generator": lambda: (item for item in ()),
    "list of text": lambda: ["x"],
    "list of None": lambda: [None],
    "list of lists": lambda: [[1], [2, 3]],
    "list of numbers": lambda: [1, 2],
    "dictionary": lambda: {"a": 1},
    "empty dictionary": dict,
    "array": lambda: np.zeros(3),
    "empty array": lambda: np.zeros(0),
    "array of NaN": lambda: np.full(3, math.nan),
    "array of text": lambda: np.array(["a"]),
    "notes": lambda: [NOTE],
    "module": lambda: math,
    "object": object,
}


EMPTY = ("empty list", "empty tuple", "empty set", "empty generator", "empty array")
FLAG = ("None", "True")
RATE = ("None",)
PROGRAMS = ("None", "3", "list of numbers")

#: What only Python itself says.
PYTHONS_OWN = re.compile(
    r"has no attribute|not subscriptable|not iterable|unsupported operand|not supported between|"
    r"object cannot be interpreted|truth value|unhashable|NoneType' object"
)


@dataclass
class There:
    """What the calls are made on."""

    model: Model
    engine: Engine
    folder: Path

    audio = np.zeros(1600, np.float32)

    @cached_property
    def result(self) -> Transcription:
        return self.model.transcribe_notes(self.audio)

    @cached_property
    def features(self) -> np.ndarray:
        return self.model.preprocess(self.audio)

    def load(self, **options: Any) -> None:
        load_model(self.model.path, **({"device": "cpu"} | options)).close()

    def submit(self, *arguments: Any, **options: Any) -> None:
        self.engine.submit(*(arguments or (self.audio,)), **options).result()

    def drain(self, timeout: Any) -> None:
        with self.model.engine() as engine:
            engine.drain(timeout)

    def feed(self, block: Any) -> None:
        with self.engine.open_live() as live:
            live.feed(block)


def drained(items: Any) -> None:
    deque(items, maxlen=0)


def ended(engine: Engine) -> None:
    engine.close()


def written(name: str, value: Any) -> None:
    for file_format in formats.FORMATS:
        formats.render(
            [Note(**({"onset": 0, "offset": 1, "pitch": 60, "velocity": 1} | {name: value}))],
            file_format,
        )


def option(name: str) -> Callable[[There, Any], Any]:
    """Calls everything that takes an option of a transcription."""

    def call(at: There, value: Any) -> None:
        kind, outcomes = {name: value}, list[str]()
        for made in (
            lambda: at.model.transcribe_notes(at.audio, **kind),
            lambda: drained(at.model.transcribe_many([at.audio], **kind)),
            lambda: at.submit(**kind),
        ):
            try:
                made()
                outcomes.append("works")
            except OptionError as error:
                outcomes.append(str(error))
        assert len(set(outcomes)) == 1
        if outcomes[0] != "works":
            raise OptionError(outcomes[0])

    return call


#: Argument -> (the call, the values it takes).
TABLE: dict[str, tuple[Callable[[There, Any], Any], tuple[str, ...]]] = {
    "load_model(model)": (lambda _, v: load_model(v, device="cpu"), ("None",)),
    "load_model(device)": (lambda at, v: at.load(device=v), ()),
    "load_model(threads)": (lambda at, v: at.load(threads=v), ("None", "3")),
    "load_model(auto_filter)": (lambda at, v: at.load(auto_filter=v), ("True",)),
    "load_model(decoding)": (lambda at, v: at.load(decoding=v), ()),
    "load_model(profile)": (lambda at, v: at.load(profile=v), ("None",)),
    "transcribe(audio)": (lambda at, v: transcribe(v, at.model), ("array",)),
    "transcribe(model)": (lambda at, v: transcribe(at.audio, v), ("None",)),
    "transcribe(device)": (lambda at, v: transcribe(at.audio, at.model.path, device=v), ()),
    "auto_filter": (option("auto_filter"), FLAG),
    "decoding": (option("decoding"), ("None",)),
    "instruments": (option("instruments"), PROGRAMS),
    "exclude": (option("exclude"), (*PROGRAMS, "empty text", *EMPTY)),
    "grammar": (option("grammar"), FLAG),
    "min_confidence": (option("min_confidence"), ("0.5",)),
    "smooth": (option("smooth"), FLAG),
    "upstream_quirks": (option("upstream_quirks"), FLAG),
    "transcribe_notes(audio)": (lambda at, v: at.model.transcribe_notes(v), ("array",)),
    "transcribe_notes(sr)": (lambda at, v: at.model.transcribe_notes(at.audio, v), RATE),
    "transcribe_notes(progress)": (
        lambda at, v: at.model.transcribe_notes(at.audio, progress=v),
        ("None",),
    ),
    "transcribe_many(sources)": (
        lambda at, v: drained(at.model.transcribe_many(v)),
        tuple(name for name in EMPTY if name != "empty array"),
    ),
    "transcribe_many(sr)": (
        lambda at, v: drained(at.model.transcribe_many([at.audio], sr=v)),
        RATE,
    ),
    "transcribe_many(return_exceptions)": (
        lambda at, v: drained(at.model.transcribe_many([at.audio], return_exceptions=v)),
        FLAG,
    ),
    "transcribe_many(progress)": (
        lambda at, v: drained(at.model.transcribe_many([at.audio], progress=v)),
        ("None",),
    ),
    "stream(audio)": (lambda at, v: drained(at.model.stream(v)), ("array",)),
    "stream(audio), live": (lambda at, v: drained(at.model.stream(v, live=True)), ()),
    "stream(sr)": (lambda at, v: drained(at.model.stream(at.audio, v)), RATE),
    "stream(live)": (lambda at, v: drained(at.model.stream(at.audio, live=v)), ("None",)),
    "stream_events(audio)": (lambda at, v: drained(at.model.stream_events(v)), ("array",)),
    "engine(max_recordings)": (
        lambda at, v: ended(at.model.engine(max_recordings=v)),
        ("3", "larger than every float"),
    ),
    "engine(max_seconds)": (
        lambda at, v: ended(at.model.engine(max_seconds=v)),
        ("3", "0.5", "infinity"),
    ),
    "engine(max_live)": (
        lambda at, v: ended(at.model.engine(max_live=v)),
        ("3", "larger than every float"),
    ),
    "submit(audio)": (lambda at, v: at.submit(v), ("array",)),
    "submit(sr)": (lambda at, v: at.submit(at.audio, v), RATE),
    "submit(priority)": (lambda at, v: at.submit(priority=v), ()),
    "submit(events)": (lambda at, v: at.submit(events=v), ("None",)),
    "open_live(sr)": (lambda at, v: at.engine.open_live(v).cancel(), RATE),
    "drain(timeout)": (
        lambda at, v: at.drain(v),
        ("None", "3", "-1", "0.5", "infinity"),
    ),
    "feed(block)": (
        lambda at, v: at.feed(v),
        ("array", "array of NaN", "empty array", "empty list", "empty tuple"),
    ),
    "preprocess(audio)": (lambda at, v: at.model.preprocess(v), ("array",)),
    "preprocess(sr)": (lambda at, v: at.model.preprocess(at.audio, v), RATE),
    "forward(features)": (lambda at, v: at.model.forward(v), ()),
    "forward(decoding)": (lambda at, v: at.model.forward(at.features, decoding=v), ("None",)),
    "forward(instruments)": (lambda at, v: at.model.forward(at.features, instruments=v), PROGRAMS),
    "forward(grammar)": (lambda at, v: at.model.forward(at.features, grammar=v), FLAG),
    "decode(tokens)": (lambda at, v: at.model.decode(v), EMPTY),
    "assemble(tokens)": (lambda at, v: at.model.assemble(v), EMPTY),
    "assemble(upstream_quirks)": (
        lambda at, v: at.model.assemble([], upstream_quirks=v),
        FLAG,
    ),
    "warmup(live)": (lambda at, v: at.model.warmup(live=v), FLAG),
    "token_digest": (lambda _, v: token_digest(v), EMPTY),
    "to_midi(tempo)": (lambda at, v: at.result.to_midi(tempo=v), ()),
    "save(path)": (lambda at, v: at.result.save(v), ()),
    "save(format)": (lambda at, v: at.result.save(at.folder / "x.mid", v), ("None",)),
    "save(tempo)": (lambda at, v: at.result.save(at.folder / "x.mid", tempo=v), ()),
    **{
        f"render(source, {name!r})": (
            lambda _, v, name=name: formats.render(v, name),
            (*EMPTY, "notes"),
        )
        for name in formats.FORMATS
    },
    "render(format)": (lambda _, v: formats.render([NOTE], v), ()),
    "render(tempo)": (lambda _, v: formats.render([NOTE], "midi", tempo=v), ()),
    "load_notes(path)": (lambda _, v: formats.load_notes(v), ()),
    "load_notes(path), with a format": (lambda _, v: formats.load_notes(v, "json"), ()),
    "load_notes(format)": (
        lambda at, v: formats.load_notes(at.folder / "notes.json", v),
        ("None",),
    ),
    "parse_json": (lambda _, v: formats.parse_json(v), ()),
    "parse_jsonl": (lambda _, v: formats.parse_jsonl(v), ("empty text", "no bytes")),
    "parse_csv": (lambda _, v: formats.parse_csv(v), ()),
    "parse_midi": (lambda _, v: formats.parse_midi(v), ()),
    "read_midi": (lambda _, v: midi_reader.read_midi(v), ()),
    "note_to_json_line": (lambda _, v: formats.note_to_json_line(v), ()),
    "to_midi(notes)": (lambda _, v: midi.to_midi(v), (*EMPTY, "notes")),
    "from_midi": (lambda _, v: midi.from_midi(v), ()),
    "Note.onset": (lambda _, v: written("onset", v), ("True", "0.5")),
    "Note.offset": (lambda _, v: written("offset", v), ("True", "0.5", "3")),
    "Note.pitch": (lambda _, v: written("pitch", v), ("True", "3")),
    "Note.program": (lambda _, v: written("program", v), ("True", "3")),
    "Note.is_drum": (lambda _, v: written("is_drum", v), ("True",)),
    "Note.confidence": (lambda _, v: written("confidence", v), ("True", "0.5")),
    "Note.probabilities": (lambda _, v: written("probabilities", v), ()),
    "Probabilities.onset": (
        lambda _, v: written("probabilities", Probabilities(onset=v)),
        ("None", "True", "0.5"),
    ),
    "Bundle": (lambda _, v: Bundle(v), ()),
    "get_model_info": (lambda _, v: get_model_info(v), ()),
    "download_model": (lambda _, v: download_model(v), ()),
}


@pytest.fixture
def at(tiny_model, tmp_path, monkeypatch) -> There:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MT3_MODEL", str(tiny_model.path))
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    (tmp_path / "notes.json").write_bytes(formats.render([NOTE], "json"))
    with tiny_model.engine() as engine:
        yield There(tiny_model, engine, tmp_path)


@pytest.mark.parametrize("argument", TABLE)
def test_wrong_values_are_refused_in_our_words(at, argument):
    call, takes = TABLE[argument]
    assert set(takes) <= set(VALUES)
    wrong = []
    for name, make in VALUES.items():
        try:
            with warnings.catch_warnings():
                for ours in (AudioWarning, ResultWarning):
                    warnings.simplefilter("ignore", ours)
                call(at, make())
        except MT3Error as error:
            if name in takes:
                wrong.append(f"{name} is refused: {error}")
            elif PYTHONS_OWN.search(str(error)):
                wrong.append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001  what this test looks for
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if name not in takes:
                wrong.append(f"{name} is taken")
    assert wrong == []


def test_no_wrong_argument_leaves_a_file(at):
    for argument in ("save(path)", "save(tempo)", "load_notes(path)"):
        call, _ = TABLE[argument]
        for make in VALUES.values():
            with pytest.raises(MT3Error):
                call(at, make())
    assert [path.name for path in at.folder.iterdir()] == ["notes.json"]


@pytest.mark.parametrize("deadline", [1e10, 1e300, math.inf])
def test_a_deadline_far_away_stops_no_engine(at, deadline):
    """Locks cannot wait so long."""
    assert at.engine.submit(at.audio, deadline=deadline).result().duration == 0.1
    assert at.engine.submit(at.audio).result().duration == 0.1
    assert at.engine.health().healthy


def test_an_audio_stream_is_one_recording(at):
    from mt3_runtime.audio.sources import open_audio

    with pytest.raises(OptionError, match="put a single one into a list"):
        at.model.transcribe_many(open_audio(at.audio))


def test_numbers_of_numpy_are_numbers(at):
    half = np.float32(0.5)
    assert at.model.transcribe_notes(at.audio, min_confidence=half, grammar=np.bool_(True))
    note = Note(np.float32(0), np.float64(1), np.int64(60), np.int32(100), is_drum=np.bool_(False))
    for name in formats.FORMATS:
        assert formats.render([note], name) == formats.render([NOTE], name)
    assert isinstance(midi.to_midi([note], tempo=np.float32(90)), mido.MidiFile)


def test_what_has_notes_is_written_as_its_notes():
    assert formats.render(SimpleNamespace(notes=(NOTE,)), "csv") == formats.render([NOTE], "csv")
