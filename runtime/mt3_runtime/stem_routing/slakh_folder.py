"""Finds the stems of a song of Slakh, whose files are called S00 and so on, by its metadata.yaml.

Contract: `slakh_files` understands the folder of a song and the folder of its stems.  A song needs
all its stems: what is said to be rendered and is not there, or is there and not said to be, is one
error before anything is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mt3_runtime.errors import OptionError
from mt3_runtime.files.slakh_song import AUDIO_FOLDER, METADATA, SlakhStem, read_song
from mt3_runtime.filesystem.atomic import exists, is_folder
from mt3_runtime.per_stem import StemFile, with_lineups

_SUFFIXES = (".wav", ".flac")


def slakh_files(names: Sequence[str], tell: Callable[[str], None]) -> list[StemFile] | None:
    """The files of a song of Slakh with their stems; None if this is none.

    Args:
        names: What a user named: one folder, or this is none.
        tell: Is told of stems without audio.

    Raises:
        MissingDependencyError: PyYAML is not installed.
        OptionError: The metadata cannot be read, or do not fit the files.
    """
    song = _song(names)
    if song is None:
        return None
    stems = read_song(song / METADATA)
    there = {path.stem: path for path in reversed(_audio(song / AUDIO_FOLDER))}
    known = {stem.id for stem in stems}
    _refuse([path.name for name, path in there.items() if name not in known], song, "not named in")
    silent = [stem.id for stem in stems if stem.id not in there and not stem.rendered]
    _refuse(
        [stem.id for stem in stems if stem.id not in there and stem.rendered], song, "missing, by"
    )
    if silent:
        tell(f"{song.name}: {', '.join(silent)} never rendered, as {METADATA} says")
    found = [stem for stem in stems if stem.id in there]
    for stem in found:
        if stem.problem:
            raise OptionError(f"{song / METADATA}: of the stem {stem.id}, {stem.problem}.")
    if not found:
        raise OptionError(f"There is no audio of any stem in {song / AUDIO_FOLDER}.")
    files = with_lineups([there[stem.id] for stem in found], [stem.stem for stem in found])
    return [replace(file, program=_program(stem)) for file, stem in zip(files, found, strict=True)]


def _song(names: Sequence[str]) -> Path | None:
    """The folder of a song that was named, or whose stems were."""
    if len(names) != 1 or not is_folder(names[0]):
        return None
    folder = Path(os.path.abspath(names[0]))  # noqa: PTH100  the name, not where links lead
    for song in (folder, folder.parent):
        stems = song / AUDIO_FOLDER
        if exists(song / METADATA) and is_folder(stems) and folder in (song, stems):
            return song
    return None


def _audio(folder: Path) -> list[Path]:
    """Audio of stems, of one name WAV before FLAC."""
    try:
        found = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES]
    except OSError as error:
        raise OptionError(f"{folder} cannot be read: {error.strerror}.") from error
    audible = [path for path in found if not path.name.startswith(".")]
    return sorted(audible, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.name))


def _refuse(names: Sequence[str], song: Path, how: str) -> None:
    if names:
        raise OptionError(
            f"{', '.join(sorted(names))} of {song}: {how} its {METADATA}. A song needs all its "
            "stems; mend the folder, or name files whose names say what they hold."
        )


def _program(stem: SlakhStem) -> int | None:
    return None if stem.is_drum else stem.program
