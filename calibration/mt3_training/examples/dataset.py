"""Training examples by number: windows of audio, their tokens and frame-wise targets.

Contract: example ``index`` of a `DatasetConfig` is always the same, whoever makes it and in which
order; so workers share the work by taking every n-th index, and training resumes at any of them.

An example is a window of a performed piece, cut like a model cuts recordings: it begins anywhere on
the grid of frames, with notes held from before and a room that already rings, and its labels count
from the model's clock, which is up to 10 ms behind (`SegmentConfig.start`).

`Examples.draw` decides everything and costs one core a millisecond; `Examples.example` mixes the
audio as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.instruments import PROGRAMS_PER_FAMILY
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import Vocabulary
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, Colour, draw
from mt3_synthesis.corpora import excerpt
from mt3_synthesis.mixer import Palette, Voices, faint, perform, playable, render
from mt3_synthesis.music import MusicConfig, Piece, compose
from mt3_synthesis.rendering import DRUM_KIT, Samples
from mt3_training.examples.tokens import NO_STEP, Label, LabelRules, Tokenizer

HOP = 128
"""Samples between two frames of every MT3 model (8 ms at 16 kHz)."""

ROLLS = ("onset", "active", "drum", "class")
"""Frame-wise targets: a pitched note begins, a pitched note sounds, a drum is hit, an instrument of
a MIDI class sounds."""

PITCHES = 128
"""Columns of a roll: MIDI pitches, percussion keys, or MIDI classes and nothing from 16 on."""

NO_FRAME = -1
"""Stands for the frame of tokens that are no event, and of padding."""

LEAD_SECONDS = 3.0
"""Longest stretch of a piece ahead of a window."""

BEGINNINGS, ENDINGS = 0.08, 0.12
"""Share of windows in which the music only begins, and in which it ends or has just ended."""

BEHIND = 0.5
"""How far behind the end of the music such a window may begin, in windows: there only the last
notes and the room ring on."""

SILENCE = 0.01
"""Share of windows without any music."""

RECIPE: tuple[tuple[float, MusicConfig], ...] = (
    (0.25, MusicConfig.piano()),
    (0.10, MusicConfig.piano_and_drums()),
    (0.10, MusicConfig.line()),
    (0.12, MusicConfig.solo()),
    (0.08, MusicConfig.drums_only()),
    (0.35, MusicConfig.band()),
)
"""What is played, and how often."""


@dataclass(frozen=True)
class Bleed:
    """How other instruments are heard in the recording of a stem, as a separator leaves them.

    Attributes:
        share: Probability 0..1 that they are heard at all.
        low: Lowest level of them all, in dB of the stem's own.
        high: Highest level.
    """

    share: float = 0.0
    low: float = -30.0
    high: float = -18.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0 or not self.low <= self.high <= 0.0:
            raise OptionError(
                f"others bleed in with probability {self.share} at {self.low} to {self.high} dB; "
                "expected a probability 0..1 and an ascending pair up to 0"
            )

    def level(self, rng: np.random.Generator) -> float | None:
        """Draws a level in dB; None if nothing is heard.  Takes two numbers in any case."""
        heard, at = rng.random(2)
        return self.low + (self.high - self.low) * float(at) if heard < self.share else None


@dataclass(frozen=True)
class DatasetConfig:
    """What the examples are like.

    Attributes:
        seed: Another one gives other examples.
        frames: Length of a window in frames of `HOP` samples; a full segment has 256.
        recipe: Kinds of music with their weights.
        corpus: Share of windows from written music, if there is any.
        labels: What is asked of the network.
        augment: What is done to the audio; None leaves the bare mix.
        vary: Whether there are more sounds than the banks hold, see `mt3_synthesis.timbres`.
        max_tokens: Longer token lists are cut off there, without an end-of-sequence token.
        bleed: How others are heard beside what is labelled.
        backing: What they play; None for nobody.
    """

    seed: int = 0
    frames: int = 256
    recipe: tuple[tuple[float, MusicConfig], ...] = RECIPE
    corpus: float = 0.25
    labels: LabelRules = field(default_factory=LabelRules)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    max_tokens: int = 1024
    vary: bool = False
    bleed: Bleed = field(default_factory=Bleed)
    backing: MusicConfig | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.frames <= 4096 or self.max_tokens < 1 or self.seed < 0:
            raise OptionError(
                f"examples of {self.frames} frames, {self.max_tokens} tokens and seed {self.seed} "
                "were asked for; expected 1..4096 frames, 1 token or more and no negative seed"
            )
        if not 0.0 <= self.corpus <= 1.0:
            raise OptionError(f"corpus is {self.corpus}; expected a share 0..1")
        if not self.recipe or any(weight <= 0.0 for weight, _ in self.recipe):
            raise OptionError("a recipe needs one or more kinds of music with positive weights")


class Draw(NamedTuple):
    """An example before its audio is mixed; a few kilobytes.

    Attributes:
        number: Which one it is.
        voices: Plan of `PREROLL` + frames * `HOP` samples.
        colour: What is done to the mix; None for nothing.
        tokens: int32 [n].
        token_frames: int16 [n], frame of the event that each token is about, or `NO_FRAME`.
        spans: int16 [m, 4], rows (roll, first frame, last frame, pitch); see `dense_rolls`.
        others: Plan of what is heard besides and not labelled; None for nothing.
        others_db: Its level, in dB of the level of ``voices``.
    """

    number: int
    voices: Voices
    colour: Colour | None
    tokens: npt.NDArray[np.int32]
    token_frames: npt.NDArray[np.int16]
    spans: npt.NDArray[np.int16]
    others: Voices | None = None
    others_db: float = 0.0


class Example(NamedTuple):
    """A finished example.

    Attributes:
        number: Which one it is.
        audio: float32 [frames * `HOP`] at 16 kHz.
        tokens: int32 [n], see `Draw`.
        token_frames: int16 [n], see `Draw`.
        rolls: uint8 [4, frames, 128], see `ROLLS`.
    """

    number: int
    audio: Samples
    tokens: npt.NDArray[np.int32]
    token_frames: npt.NDArray[np.int16]
    rolls: npt.NDArray[np.uint8]


class Examples:
    """The examples of a configuration.

    Args:
        config: What they are like.
        palette: The sounds they are made of.
        corpus: Written music, see `mt3_synthesis.corpora`.
        vocabulary: By default Magenta's ``mt3``.
        note_rules: By default Magenta's ``mt3``.
    """

    def __init__(
        self,
        config: DatasetConfig,
        palette: Palette,
        *,
        corpus: Sequence[Piece] = (),
        vocabulary: Vocabulary | None = None,
        note_rules: NoteRules | None = None,
    ) -> None:
        self.config = config
        self.samples = config.frames * HOP
        self.tokenizer = Tokenizer(vocabulary, note_rules, rules=config.labels)
        self._palette = palette
        self._corpus = corpus
        self._augmenter = Augmenter(self.samples)
        weights = np.array([weight for weight, _ in config.recipe])
        self._limits = np.cumsum(weights / weights.sum())[:-1]
        self._music = [playable(music, palette) for _, music in config.recipe]
        backing = config.backing if config.bleed.share else None
        self._backing = playable(backing, palette) if backing else None
        self._programs = tuple(i for i in palette.instruments if i < DRUM_KIT) or None

    def draw(self, index: int) -> Draw:
        """Decide everything about an example but mix no audio."""
        config = self.config
        rng = np.random.default_rng((config.seed, index))
        first, seconds = self._place(rng)
        piece = self._piece(rng, seconds)
        voices, notes = perform(
            piece,
            self._palette,
            rng,
            start=first * HOP - PREROLL,
            samples=PREROLL + self.samples,
            vary=config.vary,
        )
        colour = draw(config.augment, rng) if config.augment else None
        others, others_db = self._others(rng, first, seconds)
        tokens, token_frames = window_tokens(
            self.tokenizer,
            self.tokenizer.labels(notes),
            first=first,
            frames=config.frames,
            max_tokens=config.max_tokens,
        )
        return Draw(
            index,
            voices,
            colour,
            tokens,
            token_frames,
            spans(notes, first=first, frames=config.frames),
            others,
            others_db,
        )

    def audio(self, example: Draw) -> Samples:
        """Mix and colour the audio of a draw: float32 [frames * `HOP`]."""
        samples = PREROLL + self.samples
        mix = render(example.voices, self._palette, samples=samples)
        if example.others is not None:
            mix += faint(
                render(example.others, self._palette, samples=samples), mix, example.others_db
            )
        return mix[PREROLL:] if example.colour is None else self._augmenter(mix, example.colour)

    def example(self, index: int) -> Example:
        """A finished example."""
        drawn = self.draw(index)
        rolls = dense_rolls(drawn.spans, frames=self.config.frames)
        return Example(index, self.audio(drawn), drawn.tokens, drawn.token_frames, rolls)

    def _others(
        self, rng: np.random.Generator, first: int, seconds: float
    ) -> tuple[Voices | None, float]:
        """What is heard besides, and at which level; draws nothing where nobody else plays."""
        if self._backing is None:
            return None, 0.0
        level = self.config.bleed.level(rng)
        if level is None:
            return None, 0.0
        piece = compose(self._backing, int(rng.integers(1 << 62)), seconds=seconds)
        voices, _ = perform(
            piece, self._palette, rng, start=first * HOP - PREROLL, samples=PREROLL + self.samples
        )
        return voices, level

    def _place(self, rng: np.random.Generator) -> tuple[int, float]:
        """First frame of the window, and length of the piece in seconds."""
        frames = self.config.frames
        where, lead, end = rng.random(3)
        if where < BEGINNINGS:
            first = -int(lead * frames)
        else:
            first = int(lead * LEAD_SECONDS * SegmentConfig.sample_rate / HOP)
        last = first + frames
        if BEGINNINGS <= where < BEGINNINGS + ENDINGS:
            last = first + int(((1.0 + BEHIND) * end - BEHIND) * frames)
        return first, max(last, 1) * HOP / SegmentConfig.sample_rate

    def _piece(self, rng: np.random.Generator, seconds: float) -> Piece:
        seed = int(rng.integers(1 << 62))
        silent, written, kind = rng.random(3)
        if silent < SILENCE:
            return Piece(seconds, ())
        if self._corpus and written < self.config.corpus:
            song = self._corpus[int(rng.integers(len(self._corpus)))]
            return excerpt(song, seed, seconds=seconds, programs=self._programs)
        music = self._music[int(np.searchsorted(self._limits, kind, side="right"))]
        return compose(music, seed, seconds=seconds)


def window_tokens(
    tokenizer: Tokenizer, labels: Sequence[Label], *, first: int, frames: int, max_tokens: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16]]:
    """Tokens of a window, and the frames of the events they are about; see `Draw`.

    Args:
        tokenizer: Whose labels these are.
        labels: Of the whole piece.
        first: First frame of the window; may be negative.
        frames: Its length.
        max_tokens: Longer lists are cut off there.

    Returns:
        int32 [n] and int16 [n].
    """
    rate = tokenizer.vocabulary.steps_per_second
    start, end = (round(_CLOCK.start(f) * rate) for f in (first, first + frames))
    tokens, steps = tokenizer.encode(labels, start, end)
    # A step stands for 5 ms around it; 1e-6 keeps rounding from crossing a border.
    seconds_to = (np.array(steps) + start) / rate - first * HOP / _CLOCK.sample_rate
    found = np.floor(seconds_to * _CLOCK.sample_rate / HOP + 1e-6)
    inside = np.clip(found, 0, frames - 1)
    token_frames = np.where(np.array(steps) == NO_STEP, NO_FRAME, inside)
    return np.array(tokens[:max_tokens], np.int32), token_frames[:max_tokens].astype(np.int16)


_CLOCK = SegmentConfig(samples=HOP)
"""A window that begins at frame f has the clock of a model whose segments are one hop long."""


def spans(notes: Sequence[Note], *, first: int, frames: int) -> npt.NDArray[np.int16]:
    """What happens in which frames of a window: int16 [m, 4], see `Draw.spans`.

    Args:
        notes: With times from the beginning of the piece.
        first: First frame of the window.
        frames: Its length.
    """
    rate = SegmentConfig.sample_rate / HOP
    rows = []
    for note in notes:
        begin, end = int(note.onset * rate) - first, int(note.offset * rate) - first
        if begin >= frames or (begin if note.is_drum else end) < 0:
            continue
        if note.is_drum:
            rows.append((2, begin, begin, note.pitch))
            continue
        if begin >= 0:
            rows.append((0, begin, begin, note.pitch))
        sounding = max(begin, 0), min(end, frames - 1)
        rows.append((1, *sounding, note.pitch))
        rows.append((3, *sounding, note.program // PROGRAMS_PER_FAMILY))
    return np.array(rows, np.int16).reshape(-1, 4)


def dense_rolls(spans: npt.NDArray[np.int16], *, frames: int) -> npt.NDArray[np.uint8]:
    """Spans as 0 and 1: uint8 [4, frames, 128], see `ROLLS`."""
    rolls = np.zeros((len(ROLLS), frames, PITCHES), np.uint8)
    for roll, begin, end, pitch in spans.tolist():
        rolls[roll, begin : end + 1, pitch] = 1
    return rolls
