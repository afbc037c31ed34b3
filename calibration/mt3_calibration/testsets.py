"""Test sets made of the same kinds of music as the training data: recordings with true notes.

Contract: `write_test_set` fills a folder with ``NAME-000.wav`` (16 kHz, 16 bit) and
``NAME-000.mid`` (every note that sounds, with its program and its percussion key), which is what
``mt3 evaluate`` reads, and a ``CREDITS.txt`` that says what the sounds are.  Equal arguments give
equal files.

======  ==================  =======================================================================
set     sounds              says
======  ==================  =======================================================================
e1      of the training     whether the training worked at all: new pieces, known sounds
choice  gmbank              which of several models is better, during development
e2      timgm6mb            how good it is with sounds it never heard; scored at the end
e3      salamander, tonejs  the same with recorded instruments; scored at the end
trust   of the training,    how far confidence can be trusted (`mt3_calibration.confidence`): music
        and gmbank          as people record it, without unrelated notes or noise
======  ==================  =======================================================================

The pieces of no set occur in training, as they are drawn from other seeds.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mt3_calibration.augment import PREROLL, AugmentConfig, Augmenter, draw
from mt3_calibration.bank import Bank, build_bank
from mt3_calibration.dataset import playable
from mt3_calibration.mixer import Palette, perform, render
from mt3_calibration.music import MusicConfig, compose
from mt3_calibration.rendering import SAMPLE_RATE, Samples
from mt3_calibration.soundfonts import source_named
from mt3_runtime.errors import OptionError
from mt3_runtime.formats import render as render_notes
from mt3_runtime.output import make_folder, write_atomic

MUSIC = (
    MusicConfig.piano(),
    MusicConfig.line(),
    MusicConfig.drums_only(),
    MusicConfig.piano_and_drums(),
    MusicConfig.band(),
)
"""Kinds of music, in turn."""

SEED = 0x7E57
"""First half of every seed of a test set; training's are not as long."""


@dataclass(frozen=True)
class SetSpec:
    """A test set.

    Attributes:
        name: Name of the set, and beginning of its files' names.
        sources: Names of collections, see `mt3_calibration.soundfonts`.
        music: Kinds of music, in turn.
        augment: What is done to the recordings; None for nothing.
    """

    name: str
    sources: tuple[str, ...]
    music: tuple[MusicConfig, ...] = MUSIC
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)


TEST_SETS: tuple[SetSpec, ...] = (
    SetSpec("e1", ("fluidr3mono", "musescore")),
    SetSpec("choice", ("gmbank",)),
    SetSpec("e2", ("timgm6mb",)),
    SetSpec(
        "e3",
        ("salamander", "tonejs"),
        music=(MusicConfig.piano(), MusicConfig.line(), MusicConfig(drums=0.0)),
    ),
    SetSpec(
        "trust",
        ("fluidr3mono", "musescore", "gmbank"),
        music=(
            MusicConfig.solo(0, 0, 0, 1, chaos=0.0),
            MusicConfig.line(),
            MusicConfig.drums_only(),
            MusicConfig(chaos=0.0),
        ),
        augment=AugmentConfig(band_limits=0.0, saturation=0.0, noise=0.0, level=(-12.0, -0.5)),
    ),
)
"""The sets of the table above."""


def set_named(name: str) -> SetSpec:
    """The test set of that name.

    Raises:
        OptionError: There is none.
    """
    for spec in TEST_SETS:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in TEST_SETS)
    raise OptionError(f"there is no test set {name!r}; expected one of {known}")


def write_test_set(
    spec: SetSpec,
    folder: Path,
    *,
    count: int = 20,
    seconds: float = 12.0,
    banks: Sequence[Bank] | None = None,
) -> list[Path]:
    """Make a test set.

    Args:
        spec: Which one.
        folder: Where to; it is made if it is not there.
        count: Number of recordings.
        seconds: Length of each.
        banks: The sounds; by default those of ``spec.sources``.

    Returns:
        The audio files.

    Raises:
        MissingDependencyError: A collection is not installed; the message says how to install it.
        OutputError: A file cannot be written.
    """
    if banks is None:
        banks = [build_bank(source_named(name)) for name in spec.sources]
    palette = Palette(banks)
    samples = round(seconds * SAMPLE_RATE)
    augmenter = Augmenter(samples)
    make_folder(folder)
    written = []
    for number in range(count):
        rng = np.random.default_rng((SEED, *spec.name.encode(), number))
        music = playable(spec.music[number % len(spec.music)], palette)
        piece = compose(music, int(rng.integers(1 << 62)), seconds=seconds - 0.5)
        voices, notes = perform(piece, palette, rng, start=-PREROLL, samples=PREROLL + samples)
        audio = render(voices, palette, samples=PREROLL + samples)
        if spec.augment is None:
            audio = audio[PREROLL:] / max(1.0, float(np.abs(audio).max()))
        else:
            audio = augmenter(audio, draw(spec.augment, rng))
        path = folder / f"{spec.name}-{number:03d}.wav"
        write_atomic(path, wav(audio))
        write_atomic(path.with_suffix(".mid"), render_notes(notes, "midi"))
        written.append(path)
    write_atomic(folder / "CREDITS.txt", credits_of(banks).encode())
    return written


def credits_of(banks: Sequence[Bank]) -> str:
    """Who made the sounds, under which licences, and from exactly which files."""
    lines = []
    for bank in banks:
        lines.append(f"{bank.name}: {bank.meta.get('credit')} ({bank.meta.get('licence')})")
        lines += [f"    {name} sha256:{sha}" for name, sha in bank.meta.get("files", {}).items()]
    return "\n".join([*lines, ""])


def wav(audio: Samples) -> bytes:
    """A 16 bit WAV file of mono audio at 16 kHz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.rint(np.clip(audio, -1.0, 1.0) * 32767.0).astype("<i2").tobytes())
    return buffer.getvalue()
