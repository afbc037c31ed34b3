"""One-shot sample banks: single notes, rendered once, from which training audio is mixed.

A synthesiser makes some 50 segments a second on one core; mixing notes that were rendered before
makes hundreds, and moves to a GPU as a gather and a scatter.  So every instrument is played once:
every few semitones, at a few velocities, held until it has faded or for `BankSpec.seconds`.

The file is a NumPy archive (``.npz``, nothing pickled):

=======  ==========================================================================================
meta     One JSON text: ``format`` ("mt3-bank"), ``version`` (1), ``name``, ``role``, ``licence``,
         ``credit``, ``files`` (SHA-256 of every source file by name), ``spec``, and ``digest``:
         SHA-256 of the index's bytes followed by the audio's.
index    int32 [shots, 5], rows (instrument, pitch, velocity, start, length) in `Shot`'s order,
         sorted; instrument is a General MIDI program 0..127, or `DRUM_KIT` and up for drum kits.
audio    int16 [n], 16 kHz mono; `GUARD` zeros lie ahead of every shot and behind the last.
ogg      Instead of ``audio``: the same as an Ogg Vorbis file in uint8 [bytes], a tenth of the size
         and not exact; here ``digest`` covers these bytes.
=======  ==========================================================================================

Levels: each instrument is scaled so that its loudest layer has `LEVEL`, which makes the gains that
are drawn while mixing mean the same for all of them; the drums of a kit keep their proportions.
Onsets: silence ahead of a sound is cut off, so that a note's label is where it becomes audible.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_synthesis import rendering
from mt3_synthesis.parts import PROGRAMS, range_of
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Request, Sound
from mt3_synthesis.soundfonts import SoundSource, calibration_dir, find

GUARD = 2
"""Zeros around each shot: interpolation may read beyond its ends."""

LEVEL = 0.1
"""RMS of the first half second of an instrument's loudest layer (its median over the pitches)."""

FORMAT, VERSION = "mt3-bank", 1


class Shot(NamedTuple):
    """One row of the index: which sound, and where it is in the audio (in samples)."""

    instrument: int
    pitch: int
    velocity: int
    start: int
    length: int


@dataclass(frozen=True)
class BankSpec:
    """What of a collection goes into a bank.

    Attributes:
        programs: General MIDI programs.
        drum_keys: Percussion keys.
        kits: Drum kits, as programs of the percussion bank; those that a font lacks are left out.
        pitch_step: Semitones between two shots; notes between them are shifted by at most half.
        velocities: MIDI velocities of the layers, ascending.
        seconds: Longest shot; longer notes end there.
        drum_seconds: Longest drum.
    """

    programs: tuple[int, ...] = tuple(sorted({p for role in PROGRAMS.values() for p in role}))
    drum_keys: tuple[int, ...] = tuple(range(35, 83))
    kits: tuple[int, ...] = (0,)
    pitch_step: int = 4
    velocities: tuple[int, ...] = (60, 110)
    seconds: float = 4.0
    drum_seconds: float = 1.5

    def __post_init__(self) -> None:
        values = (*self.programs, *self.drum_keys, *self.kits, *self.velocities)
        if any(not 0 <= value <= 127 for value in values) or not self.velocities:
            raise OptionError("programs, drum keys, kits and velocities of a bank must be 0..127")
        if not 1 <= self.pitch_step <= 12 or min(self.seconds, self.drum_seconds) <= 0.1:
            raise OptionError(
                f"a bank with a shot every {self.pitch_step} semitones, of {self.seconds} and "
                f"{self.drum_seconds} s was asked for; expected 1..12 semitones and over 0.1 s"
            )

    def pitches(self, program: int) -> range:
        """Pitches to record of an instrument."""
        low, high = range_of(program)
        return range(low, high + self.pitch_step, self.pitch_step)


@dataclass(frozen=True, eq=False)
class Bank:
    """Sounds, ready to be mixed.

    Attributes:
        name: Name of the collection.
        audio: int16 [n] at `SAMPLE_RATE`.
        index: int32 [shots, 5], see `Shot`.
        meta: Origin: ``role``, ``licence``, ``credit``, ``files``, ``spec``.
    """

    name: str
    audio: npt.NDArray[np.int16]
    index: npt.NDArray[np.int32]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instruments(self) -> list[int]:
        """Programs in the bank, and `DRUM_KIT` and up if there are drums."""
        return sorted(set(self.index[:, 0].tolist()))

    def shots(self, instrument: int) -> list[Shot]:
        """The sounds of an instrument, by pitch and velocity."""
        return [Shot(*row) for row in self.index[self.index[:, 0] == instrument].tolist()]

    def save(self, path: str | Path, *, vorbis: bool = False) -> None:
        """Write the bank; see the module's docstring for the format.

        Args:
            path: A ``.npz`` file.
            vorbis: Compress the audio to a tenth, with losses; needs soundfile.

        Raises:
            OutputError: The file cannot be written.
        """
        content: npt.NDArray[Any] = self.audio
        if vorbis:
            content = np.frombuffer(rendering.to_ogg(self.audio, SAMPLE_RATE), np.uint8)
        meta = {
            **self.meta,
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "digest": _digest(self.index, content),
        }
        buffer = io.BytesIO()
        text = np.array(json.dumps(meta))
        if vorbis:
            np.savez(buffer, meta=text, index=self.index, ogg=content)
        else:
            np.savez(buffer, meta=text, index=self.index, audio=content)
        write_atomic(path, buffer.getvalue())


def load_bank(path: str | Path) -> Bank:
    """Read a bank that `Bank.save` wrote.

    Raises:
        BundleError: It cannot be read, it is no bank, or it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = {name: archive[name] for name in archive.files}
        meta = json.loads(str(stored["meta"]))
        index = np.asarray(stored["index"], np.int32)
        content = stored["ogg"] if "ogg" in stored else stored["audio"]
        known = (meta.pop("format"), meta.pop("version")) == (FORMAT, VERSION)
        intact = meta.pop("digest") == _digest(index, content)
        name = meta.pop("name")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path} is not a sample bank: {error}; build it again") from error
    if not known or not intact:
        raise BundleError(
            f"the sample bank {path} is {'damaged' if known else 'of another version'}; delete it "
            "and build it again"
        )
    audio = rendering.from_ogg(content.tobytes()) if "ogg" in stored else content
    return Bank(name, np.asarray(audio, np.int16), index, meta)


def build_bank(
    source: SoundSource, spec: BankSpec | None = None, *, folder: Path | None = None
) -> Bank:
    """The bank of a collection, from the cache or rendered anew.

    A cached bank is used if it was made from files with the same SHA-256, with the same spec, and
    is intact.

    Args:
        source: See `mt3_synthesis.soundfonts.SOURCES`.
        spec: What goes into it.
        folder: Where banks are kept; by default ``<cache>/calibration/banks``.

    Raises:
        MissingDependencyError: The collection, or what renders it, is not installed.
        BundleError: A cached bank is damaged.
        OutputError: The bank cannot be written.
    """
    spec = spec or BankSpec()
    paths = find(source)
    contents = [path.read_bytes() for path in paths]
    files = {
        path.name: hashlib.sha256(content).hexdigest()
        for path, content in zip(paths, contents, strict=True)
    }
    meta = {
        "role": source.role.value,
        "licence": source.licence,
        "credit": source.credit,
        "files": files,
        "spec": asdict(spec),
    }
    trimming = (rendering.AUDIBLE, rendering.FADED, rendering.LONGEST_DELAY, LEVEL)
    made_of = json.dumps([FORMAT, VERSION, trimming, meta], sort_keys=True)
    key = hashlib.sha256(made_of.encode()).hexdigest()
    path = (folder or calibration_dir() / "banks") / f"{source.name}-{key[:16]}.npz"
    if path.is_file():
        return load_bank(path)
    sounds: Iterable[Sound]
    if source.samples:
        sounds = (
            sound
            for sample, content in zip(source.samples, contents, strict=True)
            for sound in rendering.read_archive(content, sample, seconds=spec.seconds)
        )
    else:
        sounds = rendering.play_soundfont(contents[0], _wanted(spec))
    bank = assemble(source.name, sounds, meta=meta)
    make_folder(path.parent)
    bank.save(path)
    return bank


def assemble(name: str, sounds: Iterable[Sound], *, meta: Mapping[str, Any] | None = None) -> Bank:
    """Make a bank of single sounds: trimmed, brought to a common level, laid end to end.

    Args:
        name: Name of the bank.
        sounds: At 16 kHz, in any order; silent ones are left out.
        meta: See `Bank`.

    Raises:
        OptionError: There is no sound.
    """
    by_instrument: dict[int, list[Sound]] = {}
    for sound in sounds:
        trimmed = sound._replace(samples=rendering.trimmed(sound.samples))
        if len(trimmed.samples) >= SAMPLE_RATE // 50:
            by_instrument.setdefault(sound.instrument, []).append(trimmed)
    if not by_instrument:
        raise OptionError(f"the sample bank {name!r} would be empty; every sound was silent")
    pieces, rows, position = [], [], 0
    guard = np.zeros(GUARD, np.int16)
    for instrument, group in sorted(by_instrument.items()):
        gain = _gain(group)
        for sound in sorted(group, key=lambda sound: (sound.pitch, sound.velocity)):
            position += GUARD
            length = len(sound.samples)
            rows.append(Shot(instrument, sound.pitch, sound.velocity, position, length))
            pieces += [guard, np.rint(gain * sound.samples).astype(np.int16)]
            position += length
    audio = np.concatenate([*pieces, guard])
    return Bank(name, audio, np.array(rows, np.int32), dict(meta or {}))


def _wanted(spec: BankSpec) -> list[Request]:
    pitched = [
        Request(program, pitch, velocity, spec.seconds)
        for program in spec.programs
        for pitch in spec.pitches(program)
        if pitch <= 127
        for velocity in spec.velocities
    ]
    return pitched + [
        Request(DRUM_KIT + kit, key, velocity, spec.drum_seconds)
        for kit in spec.kits
        for key in spec.drum_keys
        for velocity in spec.velocities
    ]


def _gain(group: list[Sound]) -> float:
    """The factor to int16 that brings an instrument to `LEVEL`, or just below clipping."""
    top = max(sound.velocity for sound in group)
    heads = [sound.samples[: SAMPLE_RATE // 2] for sound in group if sound.velocity == top]
    levels = [float(np.sqrt(np.mean(np.square(head, dtype=np.float64)))) for head in heads]
    peak = max(float(np.abs(sound.samples).max()) for sound in group)
    return 32767.0 * min(LEVEL / float(np.median(levels)), 1.0 / peak)


def _digest(index: npt.NDArray[np.int32], content: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(index).tobytes())
    digest.update(np.ascontiguousarray(content).tobytes())
    return digest.hexdigest()
