"""Compares specialists with the general model they began with, on sounds that neither has heard.

Contract: `compare_stem` transcribes made-up recordings of one stem with each model as a user would,
and scores onsets.  The general model, and one that merely went on with general music for as many
steps (the control), count with what is better for them: transcribing freely, or with the stem's
instruments alone.  Differences have 95 % intervals over the recordings, which are the same for all;
the same music is scored again with other instruments bleeding in at `BLEED_DB`.

A specialist passes if the interval of its gain lies above zero, the gain reaches `FLOORS`, and
bleed costs it less than `MOST_LOST`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mt3_evaluation.scoring import score_drums, score_notes
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.stems import stem_named
from mt3_synthesis.augment import PREROLL, AugmentConfig, Augmenter, draw
from mt3_synthesis.mixer import Palette, faint, perform, playable, render
from mt3_synthesis.music import MusicConfig, compose
from mt3_synthesis.rendering import SAMPLE_RATE, Samples
from mt3_synthesis.stem_music import backing, stem_keys, stem_recipe
from mt3_training.stem_training.stem_judgement import (
    Counts,
    Estimate,
    difference,
    estimate,
    fraction,
    score_of,
)

COUNT, SECONDS = 40, 12.0
"""Recordings of a stem, and the length of each."""

BLEED_DB = -20.0
"""Level of other instruments, in dB of the stem's own, as separators leave them."""

MOST_LOST = 0.05
"""F1 that bleed may cost."""

FLOORS: Mapping[str, float] = {
    "bass": 0.06,
    "piano": 0.035,
    "synth_lead": 0.08,
    "synth_pad_fx": 0.11,
    "drums": 0.03,
    "high_percs": 0.03,
}
"""F1 by which a specialist has to be better, `FLOOR` where none is named: less is not worth a
model of its own."""

FLOOR = 0.05

SEED = 0x57E4
"""First half of every seed of these recordings; those of training are not as long."""


@dataclass(frozen=True)
class StemRecording:
    """A made-up recording of a stem.

    Attributes:
        audio: float32 [n] at 16 kHz.
        bled: The same with other instruments bleeding in.
        labels: What is played.
    """

    audio: Samples
    bled: Samples
    labels: tuple[Note, ...]


@dataclass(frozen=True)
class Contender:
    """How a model does on the recordings of a stem.

    Attributes:
        export_id: Of its bundle.
        mode: "free", or "masked": with the stem's instruments alone.
        clean: Onset F1.
        bled: The same where other instruments bleed in.
    """

    export_id: str
    mode: str
    clean: Estimate
    bled: Estimate


def recordings(
    stem: str, palette: Palette, *, count: int = COUNT, seconds: float = SECONDS
) -> Iterator[StemRecording]:
    """Made-up recordings of a stem; equal arguments give equal ones.

    Args:
        stem: Its name.
        palette: The sounds.
        count: How many.
        seconds: Length of each.

    Raises:
        OptionError: There is no music for the stem.
    """
    kinds = [playable(music, palette) for _, music in stem_recipe(stem)]
    others = playable(backing(stem), palette)
    samples = round(seconds * SAMPLE_RATE)
    augmenter = Augmenter(samples)
    for number in range(count):
        rng = np.random.default_rng((SEED, *stem.encode(), number))
        own, notes = _played(kinds[number % len(kinds)], palette, rng, seconds)
        more, _ = _played(others, palette, rng, seconds)
        colour = draw(AugmentConfig(), rng)
        bled = augmenter(own + faint(more, own, BLEED_DB), colour)
        yield StemRecording(augmenter(own, colour), bled, tuple(notes))


def digest_of(some: Sequence[StemRecording]) -> str:
    """SHA-256 of recordings: two sets of one digest are the same."""
    whole = hashlib.sha256()
    for one in some:
        whole.update(one.audio.tobytes() + one.bled.tobytes() + repr(one.labels).encode())
    return whole.hexdigest()


def compare_stem(
    stem: str,
    bundles: Mapping[str, Bundle],
    some: Sequence[StemRecording],
    *,
    threads: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Scores the models of a stem.

    Args:
        stem: Its name.
        bundles: "general", "control" and "specialist"; the control may be missing.
        some: What is transcribed.
        threads: Of the runtime.
        say: Told what happens, a line at a time.

    Returns:
        A row of the comparison, as JSON: ``stem``, ``digest``, ``recordings``, ``contenders``,
        ``gain`` over the general model, ``gain_over_control``, ``lost_by_bleed``, ``floor`` and
        ``passes``.
    """
    lineup = stem_keys(stem_named(stem))
    counts: dict[str, list[Counts]] = {}
    contenders: dict[str, Contender] = {}
    for name, bundle in bundles.items():
        modes = ("masked",) if name == "specialist" else ("free", "masked")
        with load_model(bundle.path, device="cpu", threads=threads) as model:
            tried = {
                m: _counts(model, stem, some, lineup if m == "masked" else None) for m in modes
            }
            mode = max(modes, key=lambda m: estimate(tried[m]).value or 0.0)
            only = lineup if mode == "masked" else None
            bled = estimate(_counts(model, stem, some, only, bled=True))
        counts[name] = tried[mode]
        export_id = bundle.manifest.export_id
        contenders[name] = Contender(export_id, mode, estimate(tried[mode]), bled)
        say(f"{stem}: {name} ({mode}) {contenders[name].clean}")
    gain = difference(counts["specialist"], counts["general"])
    over = difference(counts["specialist"], counts["control"]) if "control" in counts else None
    own = contenders["specialist"]
    lost = (own.clean.value or 0.0) - (own.bled.value or 0.0)
    floor = FLOORS.get(stem, FLOOR)
    return {
        "stem": stem,
        "digest": digest_of(some),
        "recordings": len(some),
        "labels": sum(len(one.labels) for one in some),
        "contenders": {name: asdict(one) for name, one in contenders.items()},
        "gain": asdict(gain),
        "gain_over_control": asdict(over) if over else None,
        "lost_by_bleed": lost,
        "floor": floor,
        "passes": passes(gain, lost, floor),
    }


def passes(gain: Estimate, lost: float, floor: float) -> bool:
    """Whether a specialist may be shipped."""
    sure = gain.low is not None and gain.low > 0.0
    return sure and (gain.value or 0.0) >= floor and lost < MOST_LOST


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a comparison as a Markdown table."""
    heads = ("stem", "labels", "general", "control", "specialist", "gain", "over control", "floor",
        "with bleed", "passes")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        found = row["contenders"]
        cells = [row["stem"], row["labels"]]
        cells += [_contender(found.get(name)) for name in ("general", "control", "specialist")]
        cells += [_estimate(row["gain"]), _estimate(row["gain_over_control"]), row["floor"]]
        cells += [_estimate(found["specialist"]["bled"]), "yes" if row["passes"] else "no"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def _played(
    music: MusicConfig, palette: Palette, rng: np.random.Generator, seconds: float
) -> tuple[Samples, list[Note]]:
    """Music and its notes; the last half second is for what rings on."""
    samples = PREROLL + round(seconds * SAMPLE_RATE)
    piece = compose(music, int(rng.integers(1 << 62)), seconds=seconds - 0.5)
    voices, notes = perform(piece, palette, rng, start=-PREROLL, samples=samples)
    return render(voices, palette, samples=samples), notes


def _counts(
    model: Model,
    stem: str,
    some: Sequence[StemRecording],
    lineup: Lineup | None,
    *,
    bled: bool = False,
) -> list[Counts]:
    """F1's numerator and denominator of each recording."""
    found = []
    for one in some:
        audio = one.bled if bled else one.audio
        notes = model.transcribe_notes(
            audio, SAMPLE_RATE, instruments=lineup, auto_filter=False
        ).notes
        score = score_of(stem, score_notes(one.labels, notes), score_drums(one.labels, notes))
        found.append(np.array([fraction(score)], np.int64))
    return found


def _contender(found: Mapping[str, Any] | None) -> str:
    return f"{_estimate(found['clean'])} {found['mode']}" if found else "-"


def _estimate(found: Mapping[str, float] | None) -> str:
    return str(Estimate(**found)) if found else "-"
