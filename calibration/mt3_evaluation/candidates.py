"""Models and earlier results under evaluation: transcribes now, or reads notes written before.

Both are context managers with a ``title`` for people, an ``about`` for the document, and ``find``,
which gives the notes of a recording.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from mt3_evaluation.evaluation import Findings, Recording
from mt3_runtime.audio.sources import open_audio
from mt3_runtime.cli import talk
from mt3_runtime.errors import OptionError
from mt3_runtime.files.csv_table import decode_text
from mt3_runtime.files.formats import SUFFIXES, load_notes
from mt3_runtime.files.midi import port_warning
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.notes.note import MAX_TIME
from mt3_runtime.progress import Meter

TAIL = 10.0
"""Seconds transcribed behind an excerpt, so that notes which sound at its end get their ends."""


class NotesFolder:
    """Notes of an earlier transcription, as something to judge."""

    about: dict[str, Any] | None = None

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.title = f"notes in {folder}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def find(self, recording: Recording) -> Findings:
        """The notes of a recording.

        Raises:
            OptionError: There are none, or they are the labels themselves.
        """
        name = recording.audio.stem if recording.audio else recording.name
        found = read_findings(name, self._folder)
        if any(found.source and found.source.samefile(file) for file in recording.labels.files):
            raise OptionError(f"{found.source} would be compared with itself; name another folder.")
        return found


class ModelRun:
    """A model, as something to judge."""

    def __init__(self, args: argparse.Namespace) -> None:
        from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --notes

        self._args = args
        self._model = load_model(
            resolve_model(args.model),
            device=args.device,
            threads=args.threads,
            auto_filter=AUTO_FILTERS[args.auto_filter],
            decoding=args.decoding,
            profile=args.profile,
        )
        info = self._model.info
        self.title = f"{info.name} ({info.precision}, {args.decoding})"
        self.about: dict[str, Any] | None = {
            "name": info.name,
            "variant": info.variant,
            "export_id": info.export_id,
            "precision": info.precision.name,
            "device": self._model.device,
            "decoding": args.decoding,
            "auto_filter": AUTO_FILTERS[args.auto_filter],
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def find(self, recording: Recording) -> Findings:
        """Transcribes a recording, or as much of it as is scored.

        Raises:
            AudioError: It cannot be read.
        """
        path, rate = recording.audio, self._model.sample_rate
        if path is None:
            raise OptionError(f"There is no audio of {recording.name}.")
        seconds = self._args.seconds
        with Meter(recording.name, unit="s", quiet=self._args.quiet) as meter:
            result = self._model.transcribe_notes(
                path if seconds is None else excerpt(path, seconds, rate=rate),
                progress=lambda now: meter.update(now.seconds_done, now.seconds_total),
            )
        for message in result.warnings:
            # Others are Python warnings, which the command shows.
            said = (result.audio_warning, port_warning(result.notes), *result.remarks)
            if message not in said:
                talk(f"warning: {path}: {message}")
        return Findings(result.notes, result.duration, result.token_digest)


def read_findings(name: str, folder: Path) -> Findings:
    """The notes of a recording that was transcribed before.

    Args:
        name: Of the recording; the file is NAME.json, .jsonl, .mid or .csv.
        folder: Where it lies.

    Raises:
        OptionError: There is no such file, or it is damaged.
    """
    order = sorted(SUFFIXES, key=lambda suffix: suffix.startswith(".m"))  # MIDI says least
    path = next((p for suffix in order if (p := folder / (name + suffix)).is_file()), None)
    if path is None:
        raise OptionError(f"There are no notes of {name} in {folder} ({name}.json or the like).")
    notes = tuple(load_notes(path))
    if path.suffix != ".json":
        return Findings(notes, source=path)
    document = json.loads(decode_text(path.read_bytes()))
    duration, digest = document.get("duration"), document.get("token_digest")
    known = isinstance(duration, int | float) and 0 <= duration <= MAX_TIME
    if duration is not None and not known:
        raise OptionError(f"{path}: the duration is {duration!r}, expected seconds.")
    if digest is not None and not isinstance(digest, str):
        raise OptionError(f"{path}: the token digest is {digest!r}, expected a text.")
    return Findings(notes, duration, digest, path)


def excerpt(path: Path, seconds: float, *, rate: int) -> npt.NDArray[np.float32]:
    """The beginning of a recording and `TAIL`, float32 [n] at ``rate`` Hz.

    Raises:
        AudioError: It cannot be read.
    """
    wanted = int((seconds + TAIL) * rate)
    with open_audio(path, target_rate=rate) as stream:
        return np.concatenate(list(_until(stream, wanted)))[:wanted]


def _until(
    blocks: Iterator[npt.NDArray[np.float32]], wanted: int
) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks until they hold enough samples."""
    for block in blocks:
        yield block
        wanted -= len(block)
        if wanted <= 0:
            return
