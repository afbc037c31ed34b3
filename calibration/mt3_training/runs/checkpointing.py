"""Training run folders: configuration, checkpoints, position and logs.

Contract: whatever moment the power goes, the folder holds a complete earlier state, and a run that
is resumed from it goes on as if nothing had happened: what was logged after that state is cut off
the tables (`mt3_training.examples.tables`) and computed again.  One program at a time may work in
it.

::

    config.json      what the run does (`mt3_training.runs.config.TrainConfig`), written once
    sounds.json      what it sounds like: origin, licence and digests of the sample banks
    state.json       where it stands, and the names of the two files below; replaced in one step
    state-N.npz      weights, their average and the heads of the aids after step N, float32
    state-N.pt       the optimisers after step N, written by torch.save, read with weights_only
    best.npz         averaged weights of the best score so far
    best.json        that score
    start.npz        weights that the run began with, if they were not fresh
    origins.json     whose weights those are, and where the list of recordings lies
    log.csv          losses, a row every few steps
    scores.csv       scores, a row per evaluation
    progress.svg     a picture of both
    stop             make this file, and the run saves and ends
    pause            make this file, and the run waits until it is gone
    lock             held while a program works in the folder

This module does not import torch.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.weights import FloatArray
from mt3_runtime.errors import CheckpointError, OptionError, OutputError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.filesystem.ownership import is_regular
from mt3_training.runs.config import TrainConfig

#: Names that `RunFolder.save` gives; users keep other files beside them.
_STATE_FILE = re.compile(r"state-\d{8,}\.(npz|pt)")

CONFIG, STATE, BEST, SOUNDS = "config.json", "state.json", "best.json", "sounds.json"
START, ORIGINS = "start.npz", "origins.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        step: Steps done.
        stage: Number of the stage.
        taken: Batches taken in this stage.
        examples: Examples seen.
        seconds: Time spent, as the budget counts it.
        cpu_seconds: CPU time spent, by all processes of the run.
        evaluations: Evaluations done.
    """

    step: int = 0
    stage: int = 0
    taken: int = 0
    examples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    evaluations: int = 0


@dataclass(frozen=True, eq=False)
class State:
    """All that is needed to go on.

    Attributes:
        position: Where the run stands.
        arrays: float32 arrays by name.
        optimiser: What torch.save made of the optimisers.
    """

    position: Position
    arrays: Mapping[str, FloatArray]
    optimiser: bytes


@dataclass(frozen=True)
class Best:
    """The best averaged weights so far; later stages count more than higher scores.

    Attributes:
        step: When they were judged.
        stage: In which stage.
        onset_f1: Their score on the held-out examples of that stage.
    """

    step: int
    stage: int
    onset_f1: float

    def beats(self, other: Best | None) -> bool:
        """Whether these weights are to be kept instead of the others."""
        return other is None or (self.stage, self.onset_f1) > (other.stage, other.onset_f1)


class RunFolder:
    """A folder that exists and belongs to a configuration; see `prepare` and `existing`.

    Attributes:
        path: Where it is.
        config: What the run does.
        pausing: Other folders whose file ``pause`` pauses the run, too.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path, self.config = path, config
        self.pausing: tuple[Path, ...] = ()

    @classmethod
    def prepare(
        cls,
        path: str | os.PathLike[str],
        config: TrainConfig | None,
        start: Mapping[str, FloatArray] | None = None,
    ) -> RunFolder:
        """Opens the folder of a run, or makes it.

        Args:
            path: The folder.
            config: What the run does; None takes what the folder says.
            start: Weights that a new run begins with, those of ``config.start``.

        Raises:
            OptionError: The folder belongs to another configuration (the message says where they
                differ), holds other files, or there is no configuration.
            OutputError: It cannot be made.
        """
        folder = Path(path)
        if (folder / CONFIG).is_file():
            return cls.existing(folder, config)
        if config is None:
            raise OptionError(f"{folder} is no folder of a run; name a configuration to begin one")
        # What a beginning that was cut short leaves is begun anew.
        own = {START} if start is not None else set()
        if folder.exists() and (
            not folder.is_dir()
            or any(p.name not in own or not is_regular(p) for p in folder.iterdir())
        ):
            raise OptionError(f"{folder} holds something else; name a new folder for the run")
        make_folder(folder)
        if start is not None:
            write_atomic(folder / START, _npz(start))
        write_atomic(folder / CONFIG, config.to_json().encode())
        return cls(folder, config)

    @classmethod
    def existing(cls, path: str | os.PathLike[str], config: TrainConfig | None = None) -> RunFolder:
        """Opens the folder of a run.

        Raises:
            OptionError: There is no run, or it has another configuration.
        """
        folder = Path(path)
        file = folder / CONFIG
        try:
            text = file.read_bytes()
        except OSError as error:
            raise OptionError(f"{folder} is no folder of a run ({error.strerror})") from error
        found = TrainConfig.from_json(text, str(file))
        differences = found.differences(config) if config else []
        if differences:
            raise OptionError(
                f"{folder} is a run with another configuration: {'; '.join(differences)}. Resume "
                "it without naming one, or begin a run in a new folder."
            )
        return cls(folder, found)

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other programs from working in the folder; ends with this process at the latest.

        Raises:
            OptionError: Another program is at it.
        """
        return locked(self.path)

    def asked_to_stop(self) -> bool:
        """Whether somebody made the file ``stop``; it is removed, so that the run can go on."""
        return stop_requested(self.path)

    def pause_file(self) -> Path | None:
        """The file ``pause`` that holds the run, here or in `pausing`; None: go on."""
        files = (folder / "pause" for folder in (self.path, *self.pausing))
        return next((file for file in files if file.exists()), None)

    def save(self, state: State) -> None:
        """Keeps a state; the one before is removed only when this one is complete.

        Raises:
            OutputError: It cannot be written; the one before is still there.
        """
        stem = f"state-{state.position.step:08d}"
        write_atomic(self.path / f"{stem}.npz", _npz(state.arrays))
        write_atomic(self.path / f"{stem}.pt", state.optimiser)
        document = {"files": stem, **asdict(state.position)}
        write_atomic(self.path / STATE, json.dumps(document, indent=1).encode())
        for path in self.path.iterdir():
            if _STATE_FILE.fullmatch(path.name) and path.stem != stem and is_regular(path):
                with suppress(OSError):
                    path.unlink()

    def load(self) -> State | None:
        """The state that was kept last; None before the first.

        Raises:
            CheckpointError: The folder is damaged.
        """
        document = self._json(STATE)
        if document is None:
            return None
        stem = document.pop("files", None)
        with _reading(self.path):
            position = Position(**document)
            with (self.path / f"{stem}.npz").open("rb") as file:
                arrays = _arrays(file.read())
            return State(position, arrays, (self.path / f"{stem}.pt").read_bytes())

    def load_position(self) -> Position | None:
        """Where the run stands, without its weights; None before the first state.

        Raises:
            CheckpointError: The folder is damaged.
        """
        document = self._json(STATE)
        if document is None:
            return None
        document.pop("files", None)
        with _reading(self.path):
            return Position(**document)

    def save_best(self, best: Best, weights: Mapping[str, FloatArray]) -> None:
        """Keeps weights with their score.

        Raises:
            OutputError: They cannot be written.
        """
        write_atomic(self.path / "best.npz", _npz(weights))
        write_atomic(self.path / BEST, json.dumps(asdict(best)).encode())

    def best(self) -> Best | None:
        """The score of the best weights; None if none were judged yet."""
        document = self._json(BEST)
        with _reading(self.path):
            return None if document is None else Best(**document)

    def best_weights(self) -> dict[str, FloatArray]:
        """The best averaged weights.

        Raises:
            CheckpointError: None were judged yet, or the file is damaged.
        """
        with _reading(self.path):
            return _arrays((self.path / "best.npz").read_bytes())

    def start_weights(self) -> dict[str, FloatArray]:
        """The weights that the run began with.

        Raises:
            CheckpointError: It began with fresh ones, or the file is missing or damaged.
        """
        with _reading(self.path):
            return _arrays((self.path / START).read_bytes())

    def origins(self) -> dict[str, str]:
        """Where weights and recordings come from: ``start`` and ``index``, as far as there are any.

        Raises:
            CheckpointError: The file is damaged.
        """
        found = self._json(ORIGINS) or {}
        return {name: str(value) for name, value in found.items()}

    def remember(self, **origins: str) -> None:
        """Writes down origins, beside those known.

        Raises:
            OutputError: They cannot be written.
        """
        known = self.origins()
        if known | origins != known:
            write_atomic(self.path / ORIGINS, json.dumps(known | origins, indent=1).encode())

    def _json(self, name: str) -> dict[str, Any] | None:
        try:
            with _reading(self.path):
                document = json.loads((self.path / name).read_bytes())
        except CheckpointError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        if not isinstance(document, dict):
            raise CheckpointError(f"{self.path / name} is damaged: expected an object")
        return document


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other programs from training in a folder; see `RunFolder.locked`."""
    try:
        import fcntl  # noqa: PLC0415  not on Windows, where nobody is kept out
    except ModuleNotFoundError:
        yield
        return
    try:
        file = (folder / "lock").open("a")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OptionError(f"another program is training in {folder}") from error
        yield


def stop_requested(folder: Path) -> bool:
    """Whether somebody made the file ``stop``; it is removed, so that the work can go on."""
    path = folder / "stop"
    if not is_regular(path):
        return False
    path.unlink(missing_ok=True)
    return True


def _npz(arrays: Mapping[str, FloatArray]) -> bytes:
    buffer = io.BytesIO()
    # Not savez(**arrays): a tensor may be called "file".
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _arrays(data: bytes) -> dict[str, FloatArray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Reports whatever a damaged file does to its reader as one kind of error."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"the run in {path} cannot be read: {reason}") from error
