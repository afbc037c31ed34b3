"""Reads PercePiano, the set of piano performances with ratings, from a folder that a user has.

Contract: the folder is a copy of the repository of that name: the file `LABELS` with the mean
ratings, performances under `PERFORMANCES`, scores under `SCORES`.  The labels are checked against
the digest of the published file.  Nothing of it is kept here, and no coefficients trained with it
come with the package: its repository is under the MIT licence, but does not say where its
performances are from.

A file name says movement, bars, player and excerpt: ``Schubert_D960_mv2_8bars_1_25`` is the first
player's performance of excerpt 25.  ``Score`` instead of a player is a rendering of the score by a
program.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mt3_analysis.assessment.alignment import align_best
from mt3_analysis.assessment.measures.all_measures import MEASURES, Take, measure_take
from mt3_analysis.assessment.performance import Floats, Performance, read_bounded
from mt3_analysis.assessment.score import read_scores
from mt3_runtime.errors import OptionError

LABELS = "label_2round_mean_reg_19_with0_rm_highstd0.json"
PERFORMANCES = "virtuoso/data/all_2rounds"
SCORES = "virtuoso/data/score_midi"

DIGESTS = frozenset(
    {
        "099ab71565b65e2c66b895c4afcd27f544fe329d7fb95ec9431e14b77a823338",
        "55ed268f25a2c4fb4801525b447a2e2740cee15645b13911af3fd73579bef340",  # of folder labels
    }
)
"""SHA-256 of `LABELS` as published; the same numbers in two layouts."""

SCALES = (
    "timing_unstable", "articulation_long", "articulation_hard", "pedal_saturated", "pedal_blurred",
    "timbre_colourful", "timbre_rich", "timbre_dark", "timbre_loud", "dynamics_raw",
    "dynamics_range", "pace_slow", "space", "balance", "drama", "mood_dark", "energy",
    "imagination", "convincing",
)  # fmt: skip
"""The 19 scales in the order of the labels, each named by its upper end."""

DIMENSIONS: dict[str, tuple[tuple[str, bool], ...]] = {
    "rhythmic_stability": (("timing_unstable", False),),
    "articulation_clarity": (("articulation_hard", True), ("articulation_long", False)),
    "pedal_technique": (("pedal_blurred", False),),
    "tone_quality": (("timbre_colourful", True), ("timbre_rich", True)),
    "dynamic_range": (("dynamics_range", True),),
    "musical_expression": (("drama", True), ("imagination", True), ("space", True)),
    "overall_interpretation": (("convincing", True), ("balance", True)),
}
"""Dimensions as means of scales; False where the lower end counts."""

_NAME = re.compile(r"(?P<movement>.+)_(?P<bars>\d+bars)_(?P<player>\w+?)_(?P<excerpt>\d+)$")
_VARIATION = re.compile(r"_(thema|var\d+)$")
_MAX_BYTES = 16 << 20
FOLDS = 4


class Name(NamedTuple):
    """What the name of a file says.

    Attributes:
        movement: Composer, work and movement; variations of one theme are one movement.
        excerpt: Movement, bars and number: takes of one excerpt are takes of one piece.
        player: Number, or ``Score``, ``Score2``.
    """

    movement: str
    excerpt: str
    player: str

    @property
    def is_rendering(self) -> bool:
        """Whether a program played it."""
        return self.player.startswith("Score")


@dataclass(frozen=True, eq=False)
class RatedSet:
    """Measures and labels of recordings.

    Attributes:
        names: As of the files [n].
        parsed: What they say.
        values: Float64 [n, measures], in the order of all measures; NaN where not measured.
        labels: Float64 [n, 19], 0..1.
        digest: SHA-256 of the labels.
        left_out: Names of recordings that could not be measured, with the reason.
    """

    names: tuple[str, ...]
    parsed: tuple[Name, ...]
    values: Floats
    labels: Floats
    digest: str
    left_out: Mapping[str, str]

    def dimensions(self) -> Floats:
        """Labels of `DIMENSIONS`, float64 [n, 7]."""
        columns = []
        for scales in DIMENSIONS.values():
            parts = [
                self.labels[:, SCALES.index(name)]
                if up
                else 1.0 - self.labels[:, SCALES.index(name)]
                for name, up in scales
            ]
            columns.append(np.mean(parts, axis=0))
        return np.stack(columns, axis=1)

    def people(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which recordings people played, bool [n]."""
        return np.array([not name.is_rendering for name in self.parsed])


def parse_name(name: str) -> Name:
    """Reads the name of a file without its suffix; raises `OptionError`."""
    found = _NAME.match(name.strip())
    if found is None:
        raise OptionError(f"{name!r} is no name of PercePiano, as in Schubert_D960_mv2_8bars_1_25.")
    movement, excerpt = found["movement"], f"{found['movement']}_{found['bars']}_{found['excerpt']}"
    return Name(_VARIATION.sub("", movement), excerpt, found["player"])


def read_percepiano(
    folder: Path, *, verify: bool = True, told: Callable[[str], None] = lambda _: None
) -> RatedSet:
    """Reads and measures all recordings that have labels.

    Args:
        folder: Copy of the repository.
        verify: Whether the labels must be the published ones.
        told: Is told how far it is.

    Raises:
        OptionError: The folder lacks something, or its labels are others.
    """
    data = read_bounded(folder / LABELS, "PercePiano's labels", _MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if verify and digest not in DIGESTS:
        raise OptionError(
            f"{folder / LABELS} is not the published file (SHA-256 {digest[:12]}...). Fetch it "
            "again, or say --unverified if that is meant."
        )
    labels = _labels(data, folder)
    files = {path.stem.strip(): path for path in (folder / PERFORMANCES).glob("*.mid")}
    scores = {path.stem.strip(): path for path in (folder / SCORES).glob("*.mid")}
    rows, kept, left_out = [], [], {}
    for index, name in enumerate(sorted(labels)):
        try:
            if name not in files:
                raise OptionError(f"there is no {name}.mid in {PERFORMANCES}")  # noqa: TRY301
            rows.append(_measured(files[name], _score_of(parse_name(name), scores)))
            kept.append(name)
        except OptionError as error:
            left_out[name] = str(error)
        if index % 100 == 99:
            told(f"{index + 1} of {len(labels)} recordings measured")
    if len(kept) < 10:
        reason = next(iter(left_out.values()), "none is named")
        raise OptionError(f"{len(kept)} recordings of {folder} can be used; expected 10. {reason}")
    found = np.array([labels[name] for name in kept])
    parsed = tuple(map(parse_name, kept))
    return RatedSet(tuple(kept), parsed, np.array(rows), found, digest, left_out)


def excerpt_folds(parsed: Sequence[Name]) -> list[int]:
    """A part 0..3 for each recording; all takes of an excerpt are in one.

    The rule: SHA-256 of the excerpt's name, as a number, modulo 4.
    """
    digests = [hashlib.sha256(name.excerpt.encode()).digest() for name in parsed]
    return [int.from_bytes(digest, "big") % FOLDS for digest in digests]


def movement_folds(parsed: Sequence[Name]) -> list[int]:
    """A part for each recording; all excerpts of a movement are in one, a part each."""
    movements = sorted({name.movement for name in parsed})
    return [movements.index(name.movement) for name in parsed]


def read_folds(path: Path, names: Sequence[str]) -> list[int]:
    """Parts of recordings from a file of folds by name; -1 for recordings in none.

    Args:
        path: JSON object with lists of names, such as ``fold_0``; others are passed over.
        names: Of the recordings.

    Raises:
        OptionError: The file is no such object.
    """
    try:
        content = json.loads(read_bounded(path, "folds by name", _MAX_BYTES))
        lists = {key: value for key, value in content.items() if re.fullmatch(r"fold_\d+", key)}
        part = {
            str(name).removesuffix(".mid"): index
            for index, key in enumerate(sorted(lists))
            for name in lists[key]
        }
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{path} holds no folds: {error}") from error
    found = [part.get(name, -1) for name in names]
    if len(set(found) - {-1}) < 2:
        raise OptionError(f"{path} has no two lists fold_0, fold_1 ... with these recordings.")
    return found


def _labels(data: bytes, folder: Path) -> dict[str, list[float]]:
    try:
        content = json.loads(data)
        labels = {str(k).strip(): [float(x) for x in v[: len(SCALES)]] for k, v in content.items()}
        if any(len(row) != len(SCALES) or not np.isfinite(row).all() for row in labels.values()):
            raise ValueError("a recording has not 19 numbers")  # noqa: TRY301
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{folder / LABELS} holds no labels: {error}.") from error
    return labels


def _score_of(name: Name, scores: Mapping[str, Path]) -> Path | None:
    stem, number = name.excerpt.rsplit("_", 1)
    return scores.get(f"{stem}_Score_{number}")


def _measured(file: Path, score: Path | None) -> list[float]:
    performance, alignment = Performance.from_midi(file), None
    if score is not None:
        try:
            alignment = align_best(performance, read_scores(score))
        except OptionError:
            alignment = None  # measured without it
    values = measure_take(Take(performance, alignment))
    return [np.nan if (v := values[name].value) is None else v for name in MEASURES]
