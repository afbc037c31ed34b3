"""Reads Slakh2100 and BabySlakh: songs as folders with metadata.yaml, stems/ and MIDI/.

Contract: `slakh_stems` finds songs at any depth below a folder (``Track00001``,
``train/Track00001``, or the folder itself), and yields the stems that have audio and labels.
Labels are those of ``MIDI/SNN.mid``, which were rendered, not of ``all_src.mid``.  Programs decide
what a stem is: classes and names of plug-ins contradict them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mt3_runtime.errors import OptionError
from mt3_runtime.files.slakh_song import (
    AUDIO_FOLDER,
    LABELS_FOLDER,
    METADATA,
    SlakhStem,
    read_song,
)
from mt3_training.datasets.found_stem import (
    Found,
    FoundStem,
    LeftOut,
    folders,
    is_file,
    leads_out,
    links,
    song_names,
    split_of_folder,
)

AUDIO_SUFFIXES = (".wav", ".flac")
"""In the order in which they are taken."""

LABEL_SUFFIX = ".mid"


def is_slakh(root: Path) -> bool:
    """Whether a folder looks like Slakh: the first folders with content are songs of it."""
    for _, names, files in folders(root):
        if METADATA in files or {AUDIO_FOLDER, LABELS_FOLDER} <= set(names):
            return True
        if any(name.endswith(AUDIO_SUFFIXES) for name in files):
            return False
    return False


def slakh_stems(root: Path) -> Found:
    """The stems below a folder.

    Raises:
        OptionError: It is no folder, cannot be read, or holds no song.
        MissingDependencyError: PyYAML is not installed.
    """
    lost: list[LeftOut] = []
    songs = list(_songs(root, lost))
    if not songs:
        raise OptionError(
            f"There is no song of Slakh in {root}; expected folders with {METADATA}, "
            f"{AUDIO_FOLDER}/ and {LABELS_FOLDER}/."
        )
    yield from lost
    for song, name in sorted(song_names(songs, root).items(), key=lambda item: item[1]):
        yield from _stems(song, name, root)


def _songs(root: Path, lost: list[LeftOut]) -> Iterator[Path]:
    for place, names, files in folders(root):
        if METADATA in files or {AUDIO_FOLDER, LABELS_FOLDER} & set(names):
            names.clear()
            yield place
        lost += links(place, names)


def _stems(song: Path, name: str, root: Path) -> Found:
    try:
        stems = read_song(song / METADATA)
    except OptionError as error:
        yield LeftOut(name, "", f"no usable {METADATA}", str(error))
        return
    split = split_of_folder(song, root)
    for stem in stems:
        yield from _stem(song, name, root, stem, split)
    known = {stem.id for stem in stems}
    for path in _files(song / AUDIO_FOLDER):
        if path.suffix.lower() in AUDIO_SUFFIXES and path.stem not in known:
            yield LeftOut(name, path.stem, f"not in {METADATA}", str(path))


def _stem(song: Path, name: str, root: Path, stem: SlakhStem, split: str | None) -> Found:
    if stem.problem:
        yield LeftOut(name, stem.id, f"{METADATA} makes no sense", stem.problem)
        return
    audio = [song / AUDIO_FOLDER / (stem.id + suffix) for suffix in AUDIO_SUFFIXES]
    there = [path for path in audio if is_file(path)]
    labels = song / LABELS_FOLDER / (stem.id + LABEL_SUFFIX)
    if not there:
        reason = "no audio" if stem.rendered else "not rendered"
        yield LeftOut(name, stem.id, reason, f"there is no {audio[0].name} or {audio[1].name}")
        return
    if not is_file(labels):
        yield LeftOut(name, stem.id, "no labels", f"there is no {labels}")
        return
    for path in (there[0], labels):
        if leads_out(path, root):
            yield LeftOut(name, stem.id, "a link leads out of the data set", str(path))
            return
    for path in there[1:]:
        yield LeftOut(name, stem.id, "the same stem in another format", str(path))
    yield FoundStem(
        track=name,
        stem_id=stem.id,
        audio=there[0],
        labels=labels,
        stem=None if stem.is_drum else stem.stem,  # the keys say which drums
        program=stem.program,
        is_drum=stem.is_drum,
        split=split,
        metadata=stem.metadata,
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []
