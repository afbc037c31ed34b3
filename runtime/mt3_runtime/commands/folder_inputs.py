"""Audio files of folders: which are taken, and which look like audio and are passed over.

Contract: `find_inputs` replaces a folder by the audio files directly in it, by their suffixes, and
names in one line what else looks like audio.  Passed over are

* formats of an optional package (`AUDIO_SUFFIXES`) that is not installed;
* hidden files with a suffix of audio (macOS leaves ._NAME.wav beside NAME.wav; those are no audio
  and not named);
* files whose suffix says nothing, or that have none, and whose first bytes are those of audio;
* what has a suffix of audio and is no file: a link that leads nowhere, a pipe.

An empty file with a suffix of audio is taken, and reported when it cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from mt3_runtime.cli import talk
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.filesystem.atomic import is_folder
from mt3_runtime.imports.extras import pip, requirement

SNDFILE, PYAV = "soundfile", "av"
"""Packages that read audio, by their import names; the second comes with the extra *formats*."""

# fmt: off
AUDIO_SUFFIXES: Mapping[str, str] = dict.fromkeys((
    ".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".mp3", ".mp2", ".mp1", ".mpga", ".m2a",
    ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".voc", ".sf",
    ".ircam", ".nist", ".sph", ".paf", ".fap", ".svx", ".8svx", ".avr", ".pvf", ".wve",
), SNDFILE) | dict.fromkeys((
    ".m4a", ".m4b", ".m4r", ".mp4", ".aac", ".adts", ".alac", ".wma", ".asf", ".webm", ".weba",
    ".mka", ".mkv", ".mov", ".3gp", ".3g2", ".amr", ".awb", ".ac3", ".eac3", ".ec3", ".dts",
    ".ape", ".wv", ".tta", ".tak", ".mpc", ".ra", ".rm", ".spx", ".dsf", ".dff",
), PYAV)
# fmt: on
"""What a folder is searched for: suffixes of audio, and the package that reads it.  Left out are
those under which mostly other things are found (.mat, .xi, .iff), and samples without header."""

Passed = dict[str, list[str]]
"""Names of files that are passed over, by the reason."""

_SHOWN = 5
"""File names in a message."""

_MAGIC: tuple[tuple[int, tuple[bytes, ...]], ...] = (
    (0, (b"fLaC", b"OggS", b"ID3", b"caff", b".snd", b"RF64", b"BW64", b"riff\x2e\x91\xcf\x11")),
    (0, (b"wvpk", b"MAC ", b"TTA1", b"#!AMR", b"Creative Voice File\x1a")),
    (4, (b"ftypM4A", b"ftypM4B")),
    (8, (b"WAVE", b"AIFF", b"AIFC", b"8SVX")),  # behind RIFF or FORM and the size
)
"""First bytes of audio, by their place.  Bare MPEG frames are not told from other data."""


def find_inputs(names: Sequence[str], *, tell: Callable[[str], None] | None = None) -> list[Path]:
    """Files as they are (existing or not), folders replaced by the audio files directly in them.

    Args:
        names: As a user gave them.
        tell: Is told, in one line a folder, what was passed over; None says it on stderr.

    Raises:
        AudioError: A folder holds no audio file that can be read, or cannot be read itself.
        OptionError: A name is empty.
    """
    found: list[Path] = []
    for name in names:
        if not name:
            raise OptionError("The name of an input file is empty.")  # to Path: all files here
        path = Path(name)
        found += _audio_files(path, tell or _warn) if is_folder(path) else [path]
    return found


def _audio_files(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    taken, over = look_into(folder)
    if not taken:
        raise no_audio(f"directly in {folder}", over)
    if over:
        tell(passed_over(folder, over))
    return taken


def look_into(folder: Path) -> tuple[list[Path], Passed]:
    """The audio files directly in a folder, in the order of their names, and what is passed over.

    Raises:
        AudioError: The folder cannot be read.
    """
    readers = _readers()
    taken: list[Path] = []
    over: Passed = {}
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: os.path.normcase(entry.name))
        for entry in found:
            reason = _reason(entry, readers)
            if reason == "":
                taken.append(folder / entry.name)
            elif reason is not None:
                over.setdefault(reason, []).append(entry.name)
    except OSError as error:
        raise AudioError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    return taken, over


def no_audio(where: str, over: Passed) -> AudioError:
    """Says that there is no audio file in a place, and what else is there."""
    suffixes = " ".join(suffix for suffix, by in AUDIO_SUFFIXES.items() if by in _readers())
    return AudioError(
        f"There is no audio file {where} (looked for {suffixes}); name the files or another folder."
        + (f" Passed over: {_named(over)}." if over else "")
    )


def passed_over(folder: Path, over: Passed) -> str:
    """One line about what looks like audio in a folder and is passed over."""
    number = sum(map(len, over.values()))
    what = "1 file that looks" if number == 1 else f"{number} files that look"
    return f"{folder}: passed over {what} like audio: {_named(over)}"


def _named(over: Passed) -> str:
    return "; ".join(f"{_some(names)} ({reason})" for reason, names in over.items())


def _readers() -> set[str]:
    return {SNDFILE} | ({PYAV} if find_spec(PYAV) else set())


def _reason(entry: os.DirEntry[str], readers: Iterable[str]) -> str | None:
    """Why a file that looks like audio is not taken; "" if it is, None if it is something else."""
    package = AUDIO_SUFFIXES.get(os.path.splitext(entry.name)[1].lower())  # noqa: PTH122  10,000 files
    if entry.name.startswith("._") or _is(entry.is_dir):
        return None
    if package is None:
        return "the suffix does not say so: name it to take it" if _sounds(entry) else None
    if not _is(entry.is_file):
        return "no regular file"
    if entry.name.startswith("."):
        return "hidden"
    return "" if package in readers else f"to read it: {pip(requirement(PYAV, 'formats'))}"


def _is(ask: Callable[[], bool]) -> bool:
    """What a folder's entry says of itself; False where it cannot be asked, as of a link's loop."""
    try:
        return ask()
    except OSError:
        return False


def _sounds(entry: os.DirEntry[str]) -> bool:
    """Whether a file begins as audio does; files that cannot be read do not."""
    try:
        if not entry.is_file():
            return False
        with Path(entry.path).open("rb") as file:
            head = file.read(32)
    except OSError:
        return False
    return any(head.startswith(marks, place) for place, marks in _MAGIC)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _warn(message: str) -> None:
    talk(f"warning: {message}")
