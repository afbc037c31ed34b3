"""Reads a folder per song with stems named by what they hold, and labels beside them.

Contract: `folder_stems` takes every folder below a root that holds audio for a song.  The name of a
file says the stem, as in `mt3 transcribe --per-stem`; where it does not, the notes have to.  Labels
are files of the audio's name (`mt3_evaluation.labels`).  Mixes are no stems.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mt3_evaluation.labels import DRUMS_SUFFIX, find_labels
from mt3_runtime.commands.folder_inputs import AUDIO_SUFFIXES
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.stems import Role, Stem, told_stems
from mt3_training.datasets.found_stem import (
    Found,
    FoundStem,
    LeftOut,
    folders,
    leads_out,
    links,
    song_names,
    split_of_folder,
)

_MIX = re.compile(r"(^|[^a-z])(mix|mixture|mixdown|master|full ?mix|linear_mixture)([^a-z]|$)")


def folder_stems(root: Path) -> Found:
    """The stems below a folder.

    Raises:
        OptionError: It is no folder, cannot be read, or holds no audio.
    """
    lost: list[LeftOut] = []
    songs: dict[Path, list[str]] = {}
    for place, names, files in folders(root):
        audio = [name for name in files if _is_audio(name)]
        if audio:
            songs[place] = audio
        lost += links(place, names)
    if not songs:
        raise OptionError(f"There is no audio in {root} or the folders in it.")
    yield from lost
    for song, name in sorted(song_names(songs, root).items(), key=lambda item: item[1]):
        split = split_of_folder(song, root)
        yield from _stems(song, name, root, [song / file for file in songs[song]], split)


def _is_audio(name: str) -> bool:
    return Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")


def _stems(song: Path, name: str, root: Path, files: Sequence[Path], split: str | None) -> Found:
    taken: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: (path.stem, path.suffix.lower() != ".wav", path)):
        if path.stem in taken:
            yield LeftOut(name, path.stem, "the same stem in another format", str(path))
        else:
            taken[path.stem] = path
    paths = list(taken.values())
    for path, told in zip(paths, told_stems(paths), strict=True):
        stem = told if isinstance(told, Stem) else None
        if stem is None and _MIX.search(path.stem.lower()):
            yield LeftOut(name, path.stem, "a mix", str(path))
        else:
            yield _stem(song, name, root, path, stem, split)


def _stem(
    song: Path, name: str, root: Path, path: Path, stem: Stem | None, split: str | None
) -> FoundStem | LeftOut:
    percussive = stem is not None and stem.role is Role.PERCUSSIVE
    labels = sorted(
        find_labels(path.stem, song),
        key=lambda file: file.name.endswith(DRUMS_SUFFIX) != percussive,
    )
    if not labels:
        return LeftOut(name, path.stem, "no labels", f"beside {path}")
    for file in (path, labels[0]):
        if leads_out(file, root):
            return LeftOut(name, path.stem, "a link leads out of the data set", str(file))
    return FoundStem(name, path.stem, path, labels[0], stem, is_drum=percussive, split=split)
