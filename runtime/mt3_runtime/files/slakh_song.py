"""Slakh's metadata.yaml: which stem of a song has which program.

Contract: `read_song` reads what the renderer of Slakh2100 wrote about one song, without
constructing anything but plain values: PyYAML's safe loader, no aliases (they can make a small file
endless), little nesting, a limit of size.  A stem that makes no sense is named with its reason; a
file that makes none is one error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_runtime.errors import OptionError
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.stems import Stem, stem_named, stem_of_program

METADATA = "metadata.yaml"
"""Name of the file in a song's folder."""

AUDIO_FOLDER, LABELS_FOLDER = "stems", "MIDI"
"""Names of the folders beside it."""

DRUM_PROGRAM = 128
"""Slakh's program of a drum kit."""

MOST_BYTES = 1 << 20
"""Of a file; those of Slakh have 3 to 10 KB."""

_DEEPEST = 16
"""Levels of nesting; Slakh has three."""


@dataclass(frozen=True)
class SlakhStem:
    """A stem as the file describes it.

    Attributes:
        id: Such as ``S00``; its files are named by it.
        program: MIDI program, or `DRUM_PROGRAM`; -1 where the file makes no sense.
        rendered: Whether it has a plug-in or a loudness: only then there is audio of it.  What the
            file says of ``audio_rendered`` is false for all stems of BabySlakh.
        metadata: Everything that is said about it, as plain values of JSON.
        problem: Why it cannot be used; empty if it can.
    """

    id: str
    program: int
    rendered: bool
    metadata: Mapping[str, Any]
    problem: str = ""

    @property
    def is_drum(self) -> bool:
        """Whether it is a drum kit."""
        return self.program == DRUM_PROGRAM

    @property
    def stem(self) -> Stem:
        """The stem it belongs to, drum kits to the drums."""
        return stem_named("drums") if self.is_drum else stem_of_program(self.program)


def read_song(path: Path) -> tuple[SlakhStem, ...]:
    """The stems of a song, in the order of their ids.

    Args:
        path: Its `METADATA`.

    Raises:
        MissingDependencyError: PyYAML is not installed.
        OptionError: The file cannot be read, is not YAML, or names no stems.
    """
    document = _load(path)
    stems = document.get("stems") if isinstance(document, dict) else None
    if not isinstance(stems, dict) or not stems:
        raise OptionError(
            f"{path} names no stems; expected a mapping `stems` of ids to facts, as Slakh has it."
        )
    found = [_stem(key, value) for key, value in stems.items()]
    return tuple(sorted(found, key=lambda stem: stem.id))


def _load(path: Path) -> Any:
    yaml = require("yaml", f"Reading {path}", "calibration")
    if not os.path.isfile(path):  # noqa: PTH113  False for names that no file can have
        raise OptionError(f"{path} is missing, or is no file; Slakh says there what a stem is.")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MOST_BYTES:
        raise OptionError(f"{path} has more than {MOST_BYTES} bytes, and is not read.")
    try:
        _check(yaml, data)
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # ValueError: a date or number that is none; TypeError: keys of several types
        said = " ".join(str(error).split())
        raise OptionError(f"{path} is not YAML that is read here: {said[:200]}") from error


def _check(yaml: Any, data: bytes) -> None:
    """Refuses what would take long or much memory to construct."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it holds aliases")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {_DEEPEST} levels deep")


def _stem(key: Any, value: Any) -> SlakhStem:
    name = str(key)
    if not isinstance(value, dict):
        return SlakhStem(name, -1, rendered=False, metadata={}, problem="metadata are no mapping")
    metadata = {str(word): _plain(said) for word, said in value.items()}
    named = str(value.get("plugin_name")) not in ("None", "")
    rendered = named or "integrated_loudness" in value or value.get("audio_rendered") is True
    problem = "" if isinstance(key, str) and _is_name(name) else "the id is no file name"
    program, wrong = _program(value)
    return SlakhStem(name, program, rendered, metadata, problem or wrong)


def _program(value: Mapping[Any, Any]) -> tuple[int, str]:
    """The program, or -1 and what is wrong."""
    drum = value.get("is_drum", False)
    if type(drum) is not bool:
        return -1, f"is_drum is {_short(drum)}, expected true or false"
    program = value.get("program_num", DRUM_PROGRAM if drum else None)
    if type(program) is not int or not 0 <= program <= DRUM_PROGRAM:
        return -1, f"program_num is {_short(program)}, expected 0 to {DRUM_PROGRAM}"
    return (DRUM_PROGRAM if drum else program), ""


def _is_name(name: str) -> bool:
    """Whether a name is one in a folder, and not a way out of it."""
    return name not in ("", ".", "..") and not set("/\\\0:") & set(name)


def _short(value: Any) -> str:
    return repr(value)[:40]


def _plain(value: Any) -> Any:
    """A value of YAML as one of JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(said) for key, said in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        return [_plain(said) for said in value]
    return str(value)
