"""Training examples from recordings with labels: windows of the stems that an index lists.

Contract: `RecordedSources` implements `mt3_training.examples.batches.Sources`.  Example ``n`` of a
seed is always the same window of the same stem, whoever makes it: stems are drawn in proportion to
their length, windows begin anywhere on the grid of frames.  Labels are those of the entry's stem
alone (`mt3_training.datasets.index_entry`), and other stems of its song may be heard faintly, as
a separator leaves them.  Weights are judged with the split ``validation``, whose songs are in no
other split, and nothing is trained with the split ``test``.

Only the window is read from a file, so a data set may be larger than the memory.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.files.formats import load_notes
from mt3_runtime.imports.extras import require
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import stem_of
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, Colour, draw
from mt3_synthesis.mixer import faint
from mt3_synthesis.rendering import SAMPLE_RATE, Samples
from mt3_training.datasets.index_entry import IndexEntry, read_index, read_metadata, require_files
from mt3_training.examples.batches import Batch, padded
from mt3_training.examples.dataset import (
    HOP,
    Bleed,
    dense_rolls,
    spans,
    window_tokens,
)
from mt3_training.examples.tokens import Label, LabelRules, Tokenizer
from mt3_training.runs.config import TrainConfig

TRAINED_SPLIT, JUDGED_SPLIT = "train", "validation"

WHOLE = "dataset.json"
"""Index of all stems of a data set, beside those of single ones."""

OTHERS = 3
"""Stems of a song that are heard beside the labelled one, at most."""

_MARGIN = 1600
"""Samples that are read on either side of a window: the resampler needs what is around it.  A tenth
of a second is a whole number of samples at all usual rates."""

_SHORTER = 0.1
"""Seconds by which a file may be shorter than its index says; rounding is no change."""

_KEPT = 512
"""Songs whose labels are kept in memory."""


class Stem(NamedTuple):
    """What is needed of an index entry to make examples of it."""

    id: str
    track: str
    audio: Path
    labels: Path
    program: int
    stem: str
    is_drum: bool
    keys: frozenset[int]
    seconds: float

    @classmethod
    def of(cls, entry: IndexEntry) -> Stem:
        """Leaves out what only people need."""
        return cls(
            entry.id, entry.track, entry.audio, entry.labels, entry.program, entry.stem,
            entry.is_drum, frozenset(entry.keys), entry.seconds,
        )  # fmt: skip


class RecordedDraw(NamedTuple):
    """An example that was decided about.

    Attributes:
        stem: Number of the stem.
        first: First frame of the window.
        tokens: int32 [n].
        token_frames: int16 [n].
        spans: int16 [m, 4].
        colour: What is done to the audio; None for nothing.
        others: Recordings heard besides.
        others_db: Their level, in dB of the stem's own.
    """

    stem: int
    first: int
    tokens: npt.NDArray[np.int32]
    token_frames: npt.NDArray[np.int16]
    spans: npt.NDArray[np.int16]
    colour: Colour | None
    others: tuple[Path, ...]
    others_db: float


@dataclass(frozen=True)
class RecordedSources:
    """Opens the recordings of a stem; implements `mt3_training.examples.batches.Sources`.

    Attributes:
        config: The run.
        index: The stem's list of recordings.
    """

    config: TrainConfig
    index: Path

    def __call__(self, stage: int, *, held_out: bool) -> RecordedExamples:
        config, asked = self.config, self.config.stages[stage]
        policy, split = config.policy, JUDGED_SPLIT if held_out else TRAINED_SPLIT
        stems = stems_of_split(self.index, split)
        if not stems:
            raise OptionError(
                f"{self.index} has no recordings of the split {split!r}; add songs and make the "
                "index again: songs that are trained with cannot judge"
            )
        others: dict[str, tuple[Path, ...]] = {}
        if policy and policy.bleed.share:
            others = other_stems(self.index.with_name(WHOLE), stems)
        augment = (policy.augment if policy else AugmentConfig()) if not held_out else None
        return RecordedExamples(
            stems,
            seed=config.seed,
            frames=asked.frames,
            rules=LabelRules("class", config.offset_steps),
            max_tokens=config.max_tokens,
            augment=augment,
            bleed=policy.bleed if policy else Bleed(),
            others=others,
        )

    def describe(self) -> list[dict[str, Any]]:
        """What is heard: the data set, its licence and the digest of its index."""
        about = read_metadata(self.index)
        licences = dict.fromkeys(entry.licence for entry in read_index(self.index))
        stated = ", ".join(name for name in licences if name)
        return [
            {
                "bank": str(about.get("dataset") or self.index.parent.name),
                "held_out": False,
                "licence": stated or "licence not stated",
                "credit": f"recordings of the index {self.index.name}",
                "sha256": index_digest(self.index),
            }
        ]


class RecordedExamples:
    """Windows of recordings; implements `mt3_training.examples.batches.ExampleSource`.

    Args:
        stems: What to draw from, one or more.
        seed: Another one gives other examples.
        frames: Length of a window in frames of `HOP` samples.
        rules: What is asked of the network.
        max_tokens: Longer token lists are cut off there, without an end-of-sequence token.
        augment: What is done to the audio; None leaves it as it is.
        bleed: How others of a song are heard.
        others: Recordings of other stems, by song.
    """

    def __init__(
        self,
        stems: Sequence[Stem],
        *,
        seed: int,
        frames: int,
        rules: LabelRules,
        max_tokens: int,
        augment: AugmentConfig | None,
        bleed: Bleed,
        others: dict[str, tuple[Path, ...]],
    ) -> None:
        self._stems, self._seed, self._frames, self._max_tokens = stems, seed, frames, max_tokens
        self._tokenizer = Tokenizer(rules=rules)
        self._augment, self._bleed, self._others = augment, bleed, others
        lengths = np.array([max(stem.seconds, HOP / SAMPLE_RATE) for stem in stems])
        self._limits = np.cumsum(lengths / lengths.sum())[:-1]
        self._samples = frames * HOP
        self._augmenter = Augmenter(self._samples)
        self._features = FeatureExtractor(FeatureConfig(frames=frames))
        self._notes = functools.lru_cache(_KEPT)(self._read_notes)

    def draw(self, index: int) -> RecordedDraw:
        """Decides everything about an example, and reads its labels."""
        rng = np.random.default_rng((self._seed, index))
        which, where = rng.random(2)
        number = int(np.searchsorted(self._limits, which, side="right"))
        stem = self._stems[number]
        last = int(stem.seconds * SAMPLE_RATE / HOP) - self._frames
        first = int(where * (last + 1)) if last > 0 else 0
        colour = draw(self._augment, rng) if self._augment else None
        others, level = self._beside(stem, rng)
        notes, labels = self._notes(number)
        tokens, frames = window_tokens(
            self._tokenizer, labels, first=first, frames=self._frames, max_tokens=self._max_tokens
        )
        found = spans(notes, first=first, frames=self._frames)
        return RecordedDraw(number, first, tokens, frames, found, colour, others, level)

    def audio(self, example: RecordedDraw) -> Samples:
        """The window of a draw as a network hears it: float32 [frames * `HOP`] at 16 kHz."""
        stem, start = self._stems[example.stem], example.first * HOP - PREROLL
        samples = PREROLL + self._samples
        mix = read_window(stem.audio, start, samples, seconds=stem.seconds)
        for path in example.others:
            other = read_window(path, start, samples)
            mix += faint(other, mix, example.others_db) / np.float32(len(example.others) ** 0.5)
        return mix[PREROLL:] if example.colour is None else self._augmenter(mix, example.colour)

    def batch(self, drawn: Sequence[RecordedDraw]) -> Batch:
        """Reads the audio of some examples."""
        tokens, frames = padded([d.tokens for d in drawn], [d.token_frames for d in drawn])
        return Batch(
            features=np.stack([self._features(self.audio(one)) for one in drawn]),
            tokens=tokens,
            frames=frames,
            rolls=np.stack([dense_rolls(one.spans, frames=self._frames) for one in drawn]),
        )

    def _beside(self, stem: Stem, rng: np.random.Generator) -> tuple[tuple[Path, ...], float]:
        """Other stems of the song that are heard, and their level."""
        level, order = self._bleed.level(rng), rng.random(OTHERS)
        there = self._others.get(stem.track, ())
        if level is None or not there:
            return (), 0.0
        chosen = dict.fromkeys(there[int(place * len(there))] for place in order.tolist())
        return tuple(chosen), level

    def _read_notes(self, number: int) -> tuple[list[Note], list[Label]]:
        notes = entry_notes(self._stems[number])
        return notes, self._tokenizer.labels(notes)


def entry_notes(stem: Stem) -> list[Note]:
    """The labels of a stem: of its kind, of its instruments, and of its keys.

    Files of a single stem may call it by another program; then all their notes are the stem's.

    Raises:
        OptionError: The labels cannot be read.
    """
    notes = load_notes(stem.labels)
    if stem.is_drum:
        hits = [n for n in notes if n.is_drum] or [replace(n, is_drum=True) for n in notes]
        return [n for n in hits if not stem.keys or n.pitch in stem.keys]
    pitched = [n for n in notes if not n.is_drum]
    own = [n for n in pitched if stem_of(n).name == stem.stem]
    return own or [replace(n, program=min(stem.program, 127)) for n in pitched]


def stems_of_split(index: Path, split: str) -> list[Stem]:
    """Stems of an index that belong to a split.

    Raises:
        OptionError: It cannot be read, or files it lists are not there.
    """
    require_files(index)
    return [Stem.of(entry) for entry in read_index(index) if entry.split == split]


def other_stems(whole: Path, stems: Sequence[Stem]) -> dict[str, tuple[Path, ...]]:
    """By song, the recordings of all stems but those that are labelled; none without an index."""
    if not whole.is_file():
        return {}
    own = {stem.audio for stem in stems}
    tracks = {stem.track for stem in stems}
    found: defaultdict[str, dict[Path, None]] = defaultdict(dict)
    for entry in read_index(whole):
        if entry.track in tracks and entry.audio not in own:
            found[entry.track][entry.audio] = None
    return {track: tuple(paths) for track, paths in found.items()}


def index_digest(index: Path) -> str:
    """SHA-256 of an index file.

    Raises:
        OptionError: It cannot be read.
    """
    try:
        with index.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OptionError(
            f"The index {index} cannot be read: {error.strerror}. `mt3 calibrate index` makes one."
        ) from error


def read_window(path: Path, start: int, samples: int, *, seconds: float = 0.0) -> Samples:
    """A part of a recording, mono at 16 kHz: float32 [samples]; silence where there is none.

    Args:
        path: The file.
        start: First sample at 16 kHz; may be negative.
        samples: How many.
        seconds: How long the file has to be.

    Raises:
        AudioError: It cannot be read, or is shorter than it was.
    """
    sound_file = require("soundfile", "Training with recordings", "cpu")
    try:
        with sound_file.SoundFile(str(path)) as file:
            rate, length = file.samplerate, file.frames
            if length / rate < seconds - _SHORTER:
                raise AudioError(
                    f"{path} lasts {length / rate:.2f} s, and the index says {seconds:.2f} s; make "
                    "the index again with `mt3 calibrate index`"
                )
            low, high = (
                round(at * rate / SAMPLE_RATE)
                for at in (start - _MARGIN, start + samples + _MARGIN)
            )
            first, last = min(max(low, 0), length), min(max(high, 0), length)
            file.seek(first)
            read = file.read(last - first, dtype="float32", always_2d=True)
    except sound_file.SoundFileError as error:
        raise AudioError(f"{path} cannot be read: {error}") from error
    if len(read) < last - first:
        raise AudioError(f"{path} ends early: it is damaged; make the index again")
    mono = np.zeros(high - low, np.float32)
    mono[first - low : first - low + len(read)] = read.mean(axis=1)
    return _at_rate(mono, rate, samples)


def _at_rate(mono: Samples, rate: int, samples: int) -> Samples:
    """The middle ``samples`` of a window with its margins, resampled to 16 kHz."""
    if rate != SAMPLE_RATE:
        soxr = require("soxr", "Training with recordings of other rates", "cpu")
        mono = np.asarray(soxr.resample(mono, rate, SAMPLE_RATE), np.float32)
    wanted = mono[_MARGIN : _MARGIN + samples]
    return np.pad(wanted, (0, samples - len(wanted)))
