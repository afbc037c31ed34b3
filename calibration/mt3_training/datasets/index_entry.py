"""Index files of stems: one entry per stem of a song, written and read as a stream of JSON.

Contract: `write_index` writes ``{"format", "version", "tracks": {ID: ENTRY}, "metadata"}``, an
entry a line, in one step and without ever holding all entries; `read_index` reads it back the same
way, whatever its white space.  Paths are relative to the folder of the index and have forward
slashes.  Equal entries give equal bytes.

The names ``tracks``, ``wav_path``, ``midi_path``, ``program``, ``track``, ``stem_id``, ``metadata``
and, of the whole, ``dataset``, ``num_tracks``, ``filter_instruments`` are those of
midi-extractor's indices, so that its data loaders read these files, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TextIO

from mt3_runtime.errors import OptionError
from mt3_runtime.filesystem.atomic import write_atomic_parts
from mt3_runtime.notes.stems import STEMS, Role

FORMAT = "mt3-runtime.stems"
VERSION = 1

DRUM_PROGRAM = 128
"""What data sets write for the program of a drum kit."""

SPLITS = ("train", "validation", "test")
"""What an entry may be used for."""

_CHUNK = 1 << 16
_LONGEST = 1 << 24  # characters of one value; entries have about a thousand
_SHOWN = 5


@dataclass(frozen=True)
class IndexEntry:
    """A stem of a song: its audio, its labels and what is known of both.

    Attributes:
        id: Unique in the index, such as ``Track00001-S02``.
        track: The song.
        stem_id: The stem's name in the song.
        audio: The recording; absolute where it was read from an index.
        labels: Its notes, in a format of `mt3_runtime.files.formats.load_notes`.
        program: MIDI program, or `DRUM_PROGRAM`.
        stem: Name of one of `mt3_runtime.notes.stems.STEMS`.
        role: That stem's.
        is_drum: Whether labels are percussion keys.
        keys: Of drums, the percussion keys among the labels that belong to this entry; others are
            no labels of it.  Nothing for pitched stems.
        seconds: Length of the audio.
        onsets: Labels that belong to this entry and begin within the audio.
        digest: Of all notes of the labels file: pitches, times and kind, not instruments.
        split: One of `SPLITS`; songs that share a digest share it.
        licence: Of the data set, as far as it is known.
        low_db: Energy of 40 to 300 Hz against 3 to 8 kHz, in decibels, where drums had to be told
            from cymbals by their sound (`mt3_training.datasets.drum_sound`).
        unsure: The stem was told by sound, and the sound is neither clearly low nor high.
        metadata: What the data set says about the stem, with ``is_drum`` and ``role``.
    """

    id: str
    track: str
    stem_id: str
    audio: Path
    labels: Path
    program: int
    stem: str
    role: Role
    is_drum: bool
    seconds: float
    onsets: int
    digest: str
    split: str
    keys: tuple[int, ...] = ()
    licence: str = ""
    low_db: float | None = None
    unsure: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


def write_index(
    path: str | os.PathLike[str], entries: Iterable[IndexEntry], metadata: Mapping[str, Any]
) -> int:
    """Writes an index atomically, and returns the number of its entries.

    Args:
        path: The file.
        entries: In the order they are to have.
        metadata: About the whole, behind the entries; ``num_tracks`` is added.

    Raises:
        OutputError: It cannot be written.
        OptionError: Two entries have one name.
    """
    place = Path(path)
    folder = Path(os.path.abspath(place)).parent  # noqa: PTH100  no links are followed
    names: set[str] = set()

    def parts() -> Iterator[bytes]:
        yield f'{{\n"format": {_text(FORMAT)},\n"version": {VERSION},\n"tracks": {{'.encode()
        for entry in entries:
            if entry.id in names:
                raise OptionError(f"{place}: two stems are called {entry.id!r}; rename one song.")
            line = f"{',' if names else ''}\n{_text(entry.id)}: {_text(_object(entry, folder))}"
            names.add(entry.id)
            yield line.encode()
        about = {**metadata, "num_tracks": len(names)}
        yield f'\n}},\n"metadata": {_text(about)}\n}}\n'.encode()

    write_atomic_parts(place, parts())
    return len(names)


def read_index(path: str | os.PathLike[str]) -> Iterator[IndexEntry]:
    """Entries of an index, one after another.

    Raises:
        OptionError: It cannot be read, is no index, is of another version, or an entry is damaged.
    """
    place = Path(path)
    folder = Path(os.path.abspath(place)).parent  # noqa: PTH100
    for name, value in _values(place, "tracks"):
        yield _entry(name, value, folder, place)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What an index says about the whole.

    Raises:
        OptionError: As of `read_index`.
    """
    return dict(_values(Path(path), "metadata"))


def require_files(path: str | os.PathLike[str]) -> int:
    """The number of entries of an index whose files are all there.

    Raises:
        OptionError: Some are not; the first are named and all are counted.  Or as of `read_index`.
    """
    absent: list[Path] = []
    number = count = 0
    for entry in read_index(path):
        number += 1
        for file in (entry.audio, entry.labels):
            if not os.path.isfile(file):  # noqa: PTH113  False for names that no file can have
                count += 1
                absent += [file] if count <= _SHOWN else []
    if count:
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        raise OptionError(
            f"{path}: {count} files of the index are not where it says: "
            f"{', '.join(map(str, absent))}{more}. Put the data back, or make the index again with "
            "`mt3 calibrate index`."
        )
    return number


def _object(entry: IndexEntry, folder: Path) -> dict[str, Any]:
    return {
        "wav_path": _relative(entry.audio, folder),
        "midi_path": _relative(entry.labels, folder),
        "program": entry.program,
        "track": entry.track,
        "stem_id": entry.stem_id,
        "stem": entry.stem,
        "role": str(entry.role),
        "is_drum": entry.is_drum,
        "keys": list(entry.keys),
        "seconds": round(entry.seconds, 6),
        "onsets": entry.onsets,
        "low_db": None if entry.low_db is None else round(entry.low_db, 2),
        "unsure": entry.unsure,
        "split": entry.split,
        "digest": entry.digest,
        "licence": entry.licence,
        "metadata": {**entry.metadata, "is_drum": entry.is_drum, "role": str(entry.role)},
    }


def _relative(path: Path, folder: Path) -> str:
    try:
        return PurePath(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return PurePath(path).as_posix()


def _entry(name: str, value: Any, folder: Path, place: Path) -> IndexEntry:
    """An entry from its JSON object.

    Raises:
        OptionError: It is damaged; the message says where.
    """

    def take(key: str, *kinds: type) -> Any:
        found = value.get(key) if isinstance(value, dict) else None
        if type(found) not in kinds:  # a bool is no number here
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise OptionError(
                f"{place}: {key} of the entry {name!r} is {found!r}; expected {wanted}. Make the "
                "index again with `mt3 calibrate index`."
            )
        return found

    def one_of(key: str, known: Iterable[str]) -> str:
        found: str = take(key, str)
        if found not in known:
            raise OptionError(f"{place}: {key} of the entry {name!r} is {found!r}, which is none.")
        return found

    roles = {stem.name: stem.role for stem in STEMS}
    low = take("low_db", float, int, type(None))
    return IndexEntry(
        id=name,
        track=take("track", str),
        stem_id=take("stem_id", str),
        audio=_absolute(folder, take("wav_path", str)),
        labels=_absolute(folder, take("midi_path", str)),
        program=take("program", int),
        stem=one_of("stem", roles),
        role=Role(one_of("role", set(Role))),
        is_drum=take("is_drum", bool),
        seconds=float(take("seconds", float, int)),
        onsets=take("onsets", int),
        digest=take("digest", str),
        split=one_of("split", SPLITS),
        keys=tuple(_keys(take("keys", list), name, place)),
        licence=take("licence", str),
        low_db=None if low is None else float(low),
        unsure=take("unsure", bool),
        metadata=take("metadata", dict),
    )


def _keys(found: list[Any], name: str, place: Path) -> list[int]:
    if not all(type(key) is int and 0 <= key < 128 for key in found):
        raise OptionError(f"{place}: keys of the entry {name!r} are no percussion keys: {found!r}.")
    return found


def _absolute(folder: Path, path: str) -> Path:
    return Path(os.path.normpath(folder / path))


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)  # ASCII: file names may hold what UTF-8 cannot


def _values(place: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """Members of one of the objects of an index.

    Raises:
        OptionError: As of `read_index`.
    """
    try:
        with place.open(encoding="utf-8") as file:
            yield from _members(_Reader(file), wanted, place)
    except OSError as error:
        raise OptionError(
            f"The index {place} cannot be read: {error.strerror}. `mt3 calibrate index` makes one."
        ) from error
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OptionError(f"{place} is not a whole JSON file: {error}. Make it again.") from error


def _members(reader: _Reader, wanted: str, place: Path) -> Iterator[tuple[str, Any]]:
    seen: dict[str, Any] = {}
    for key in reader.members():
        if key in ("tracks", "metadata"):
            _check_version(seen, place)
            for name in reader.members():
                value = reader.value()
                if key == wanted:
                    yield name, value
        else:
            seen[key] = reader.value()
    reader.end()
    _check_version(seen, place)


def _check_version(seen: Mapping[str, Any], place: Path) -> None:
    if seen.get("format") != FORMAT:
        raise OptionError(f"{place} is not an index of stems; `mt3 calibrate index` makes one.")
    if seen.get("version") != VERSION:
        raise OptionError(
            f"{place} is an index of version {seen.get('version')!r}, and this program reads "
            f"{VERSION}; make it again with `mt3 calibrate index`."
        )


class _Reader:
    """Takes JSON values from a text file one by one, keeping no more than one in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._place = 0
        self._whole = False
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[str]:
        """Names in an object; the caller takes the value behind each."""
        self._expect("{")
        if self._peek() == "}":
            self._place += 1
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self._wrong("expected a name")
            self._expect(":")
            yield key
            if self._peek() == "}":
                self._place += 1
                return
            self._expect(",")

    def value(self) -> Any:
        """The next value."""
        self._peek()
        while True:
            try:
                found, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError:
                if self._whole or len(self._text) - self._place > _LONGEST:
                    raise
                self._more()
                continue
            if end == len(self._text) and not self._whole:  # a number may go on
                self._more()
                continue
            self._place = end
            return found

    def end(self) -> None:
        """Checks that nothing follows."""
        if self._peek():
            raise self._wrong("expected the end")

    def _expect(self, mark: str) -> None:
        if self._peek() != mark:
            raise self._wrong(f"expected {mark!r}")
        self._place += 1

    def _peek(self) -> str:
        """The next character that is no white space; nothing at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in " \t\r\n":
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if self._whole:
                return ""
            self._more()

    def _more(self) -> None:
        new = self._file.read(max(_CHUNK, len(self._text) - self._place))
        self._whole = not new
        self._text, self._place = self._text[self._place :] + new, 0

    def _wrong(self, what: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(what, self._text, self._place)
