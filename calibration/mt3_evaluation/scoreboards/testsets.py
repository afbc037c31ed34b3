"""Makes synthetic test sets: recordings of generated music with their true notes.

Contract: `write_test_set` fills a folder with ``NAME-000.wav`` (16 kHz, 16 bit) and
``NAME-000.mid`` (every note that sounds, with its program and its percussion key), which is what
``mt3 evaluate`` reads, and a ``CREDITS.txt`` that says what the sounds are.  Equal arguments give
equal files.  `cached_test_set` does so when a set is first asked for, and checks its digests from
then on.

======  ==================  =======================================================================
set     sounds              says
======  ==================  =======================================================================
e1      of the training     whether the training worked at all: new pieces, known sounds
choice  gmbank              which of several models is better, during development
e2      timgm6mb            how good it is with sounds it never heard; scored at the end
e3      salamander, tonejs  the same with recorded instruments; scored at the end
trust   of the training,    how far confidence can be trusted
        (`mt3_evaluation.confidences.confidence_fit`): music and gmbank          as people record
        it, without unrelated notes or noise
======  ==================  =======================================================================

The pieces of no set occur in training, as they are drawn from other seeds.
"""

from __future__ import annotations

import hashlib
import io
import os
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mt3_runtime.errors import BundleError, OptionError, OutputError
from mt3_runtime.files.formats import render as render_notes
from mt3_runtime.filesystem.atomic import make_folder, write_atomic, write_new
from mt3_runtime.filesystem.ownership import is_regular, listed
from mt3_synthesis import augment, bank, mixer, music, parts, rendering, timbres
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, draw
from mt3_synthesis.bank import Bank, build_bank
from mt3_synthesis.mixer import Palette, perform, playable, render
from mt3_synthesis.music import MusicConfig, compose
from mt3_synthesis.rendering import SAMPLE_RATE, Samples
from mt3_synthesis.soundfonts import calibration_dir, find, source_named

MUSIC: Mapping[str, MusicConfig] = {
    "piano": MusicConfig.piano(),
    "line": MusicConfig.line(),
    "drums": MusicConfig.drums_only(),
    "piano and drums": MusicConfig.piano_and_drums(),
    "band": MusicConfig.band(),
}
"""Kinds of music, in turn."""

COUNT, SECONDS = 75, 12.0
"""Recordings of a set, and the length of each."""

CREDITS = "CREDITS.txt"
"""Whose sounds the recordings of a folder are; it tells a set of ours from other files."""

SUMS = "SHA256SUMS"
"""Digests of a cached set's files, as sha256sum writes them."""

SEED = 0x7E57
"""First half of every seed of a test set; training's are not as long."""


@dataclass(frozen=True)
class SetSpec:
    """A test set.

    Attributes:
        name: Name of the set, and beginning of its files' names.
        sources: Names of collections, see `mt3_synthesis.soundfonts`.
        music: Kinds of music by name, in turn.
        augment: What is done to the recordings; None for nothing.
    """

    name: str
    sources: tuple[str, ...]
    music: Mapping[str, MusicConfig] = field(default_factory=lambda: MUSIC)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)

    def kind(self, number: int) -> str:
        """Which kind of music a recording holds."""
        return list(self.music)[number % len(self.music)]


TEST_SETS: tuple[SetSpec, ...] = (
    SetSpec("e1", ("fluidr3mono", "musescore")),
    SetSpec("choice", ("gmbank",)),
    SetSpec("e2", ("timgm6mb",)),
    SetSpec(
        "e3",
        ("salamander", "tonejs"),
        music={
            "piano": MusicConfig.piano(),
            "line": MusicConfig.line(),
            "ensemble": MusicConfig(drums=0.0),
        },
    ),
    SetSpec(
        "trust",
        ("fluidr3mono", "musescore", "gmbank"),
        music={
            "piano": MusicConfig.solo(0, 0, 0, 1, chaos=0.0),
            "line": MusicConfig.line(),
            "drums": MusicConfig.drums_only(),
            "band": MusicConfig(chaos=0.0),
        },
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


@dataclass(frozen=True)
class MadeSet:
    """A set on disk.

    Attributes:
        folder: Where it is.
        digest: SHA-256 over the digests of its files: two sets of one digest are the same.
        recordings: Its audio files, in order.
    """

    folder: Path
    digest: str
    recordings: tuple[Path, ...]


def cached_test_set(
    spec: SetSpec, *, count: int = COUNT, seconds: float = SECONDS, folder: Path | None = None
) -> MadeSet:
    """The set from the cache, or made anew.

    What is in the cache was made from the same sounds, by the same version of the modules that
    decide what a set is.

    Args:
        spec: Which one.
        count: Number of recordings.
        seconds: Length of each.
        folder: Where sets are kept; by default ``<cache>/calibration/testsets``.

    Raises:
        BundleError: A cached set is damaged.
        MissingDependencyError: As in `write_test_set`.
        OutputError: The set cannot be written.
    """
    folder = folder or calibration_dir() / "testsets"
    place = folder / f"{spec.name}-{_key(spec, count, seconds)}"
    sums = place / SUMS
    if not sums.is_file():
        recordings = write_test_set(spec, place, count=count, seconds=seconds)
        files = sorted([*recordings, *(p.with_suffix(".mid") for p in recordings), place / CREDITS])
        lines = [f"{sha256(path)}  {path.name}\n" for path in files]
        write_atomic(sums, "".join(lines).encode())  # last: without it a set is not complete
    text = sums.read_text(encoding="utf-8")
    found = []
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        if not (place / name).is_file() or sha256(place / name) != digest:
            raise BundleError(f"{place / name} is damaged; delete {place}, it is made again")
        found += [place / name] if name.endswith(".wav") else []
    return MadeSet(place, hashlib.sha256(text.encode()).hexdigest(), tuple(sorted(found)))


def _key(spec: SetSpec, count: int, seconds: float) -> str:
    """What a set is made of: arguments, sounds, and the code that makes it."""
    sounds = [sha256(path) for name in spec.sources for path in find(source_named(name))]
    modules = (augment, bank, mixer, music, parts, rendering, timbres)
    code = [sha256(Path(str(module.__file__))) for module in modules]
    made_of = repr((spec, count, seconds, sounds, code, sha256(Path(__file__))))
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_test_set(
    spec: SetSpec,
    folder: Path,
    *,
    count: int = COUNT,
    seconds: float = SECONDS,
    banks: Sequence[Bank] | None = None,
) -> list[Path]:
    """Make a test set.

    Args:
        spec: Which one.
        folder: Where to; it is made if it is not there.  Equal files that are there stay.
        count: Number of recordings.
        seconds: Length of each.
        banks: The sounds; by default those of ``spec.sources``.

    Returns:
        The audio files.

    Raises:
        MissingDependencyError: A collection is not installed; the message says how to install it.
        OutputError: A file cannot be written, or another one has its name.
    """
    if banks is None:
        banks = [build_bank(source_named(name)) for name in spec.sources]
    palette = Palette(banks)
    samples = round(seconds * SAMPLE_RATE)
    augmenter = Augmenter(samples)
    paths = [folder / f"{spec.name}-{number:03d}.wav" for number in range(count)]
    begin_set(folder, paths, banks)
    for number, path in enumerate(paths):
        rng = np.random.default_rng((SEED, *spec.name.encode(), number))
        kind = playable(spec.music[spec.kind(number)], palette)
        piece = compose(kind, int(rng.integers(1 << 62)), seconds=seconds - 0.5)
        voices, notes = perform(piece, palette, rng, start=-PREROLL, samples=PREROLL + samples)
        audio = render(voices, palette, samples=PREROLL + samples)
        if spec.augment is None:
            audio = audio[PREROLL:] / max(1.0, float(np.abs(audio).max()))
        else:
            audio = augmenter(audio, draw(spec.augment, rng))
        write_new(path, wav(audio))
        write_new(path.with_suffix(".mid"), render_notes(notes, "midi"))
    return paths


def begin_set(folder: Path, paths: Sequence[Path], banks: Sequence[Bank]) -> None:
    """Makes the folder of a set, or goes on with one that has the same sounds.

    Args:
        folder: Where it is; anything else in it stays.
        paths: The recordings that will be written.
        banks: The sounds.

    Raises:
        OutputError: Files of these names, or other credits, are there and are no set of ours; or
            it cannot be written.
    """
    make_folder(folder)
    own, credit = folder / CREDITS, credits_of(banks).encode()
    if is_regular(own) and own.read_bytes() == credit:
        return
    names = [own, *paths, *(path.with_suffix(".mid") for path in paths)]
    there = [path.name for path in names if os.path.lexists(path)]
    if there:
        raise OutputError(
            f"{folder} holds {listed(there)}, which would be replaced; choose a new folder."
        )
    write_new(own, credit)


def credits_of(banks: Sequence[Bank]) -> str:
    """Who made the sounds, under which licences, and from exactly which files."""
    lines = []
    for own in banks:
        lines.append(f"{own.name}: {own.meta.get('credit')} ({own.meta.get('licence')})")
        lines += [f"    {name} sha256:{sha}" for name, sha in own.meta.get("files", {}).items()]
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
