"""Genres from evidence: instruments of tagger and notes, a classifier, heuristics, weighed openly.

Contract: every weight and boost is a named number of `EvidenceRules`, which a TOML file may
replace.  Each part that is there is brought to a sum of one and counts by its weight; parts that
are missing leave their weight to the others.  Instruments count as missing if no boost fires.

Boosts have hinges in place of cliffs: an instrument counts by how far it is above its threshold.
A violin speaks for Country only beside what a string band has (guitar, banjo, harmonica, bass,
drums); alone it speaks for Classical.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.schema import Between, read_fields

Weight = Annotated[float, Between(0.0, 100.0)]
Share = Annotated[float, Between(0.0, 1.0)]

#: Instruments that a violin needs beside it to be a fiddle.
_BAND = ("acoustic_guitar", "electric_guitar", "banjo", "harmonica", "bass", "drums")
#: What of them together, of all that is heard, makes it one altogether.
_BAND_SHARE = 0.2
_MAX_FILE = 1 << 16


@dataclass(frozen=True)
class Gain:
    """What an instrument brings a genre.

    Attributes:
        instrument: As `mt3_analysis.genres.genre_instruments` names it.
        genre: The genre.
        threshold: Share of what is heard from which it counts.
        gain: For each unit above.
        context: ``band``: as far as a band is beside it; ``alone``: as far as none is; ``any``.
    """

    instrument: str
    genre: str
    threshold: Share
    gain: Weight
    context: str = "any"

    def __post_init__(self) -> None:
        if self.context not in ("any", "band", "alone"):
            raise OptionError(f"context is {self.context!r}; expected any, band or alone.")


def _gains() -> tuple[Gain, ...]:
    """The default table.

    Its numbers are choices, not fits: the gains of the published rules where those have any, the
    thresholds on the scale of shares, where a soloist has 1 (0.035 in the published one).
    """
    rows = (
        ("violin", "Country", 0.05, 4.0, "band"),
        ("violin", "Bluegrass", 0.05, 3.0, "band"),
        ("violin", "Folk", 0.05, 1.5, "band"),
        ("violin", "Classical/Instrumental", 0.05, 4.0, "alone"),
        ("orchestral_strings", "Classical/Instrumental", 0.1, 4.0, "alone"),
        ("acoustic_guitar", "Country", 0.05, 1.5, "any"),
        ("acoustic_guitar", "Folk", 0.05, 0.8, "any"),
        ("banjo", "Bluegrass", 0.02, 4.0, "any"),
        ("banjo", "Country", 0.02, 2.0, "any"),
        ("harmonica", "Country", 0.03, 1.0, "any"),
        ("harmonica", "Jazz/Blues", 0.03, 0.7, "any"),
        ("drums", "Rock", 0.05, 0.4, "any"),
        ("electric_guitar", "Rock", 0.05, 2.0, "any"),
        ("distorted_guitar", "Metal", 0.05, 3.0, "any"),
        ("piano", "Classical/Instrumental", 0.05, 1.0, "alone"),
        ("piano", "Jazz/Blues", 0.05, 1.0, "band"),
        ("synthesizer", "Electronic/EDM", 0.05, 3.0, "any"),
        ("brass", "Jazz/Blues", 0.05, 2.0, "any"),
        ("reeds", "Jazz/Blues", 0.05, 2.0, "any"),
        ("flutes", "Classical/Instrumental", 0.05, 1.0, "alone"),
    )
    return tuple(Gain(*row) for row in rows)


@dataclass(frozen=True)
class EvidenceRules:
    """All numbers of the ensemble.

    Attributes:
        ml: Weight of the genre classifier.
        instruments: Weight of the instruments.
        heuristics: Weight of the points.
        gains: What instruments bring.
    """

    ml: Weight = 0.2
    instruments: Weight = 0.6
    heuristics: Weight = 0.2
    gains: tuple[Gain, ...] = field(default_factory=_gains)

    def __post_init__(self) -> None:
        if not self.ml + self.instruments + self.heuristics > 0:
            raise OptionError("The weights of all parts are 0; one must count.")


def read_rules(path: Path) -> EvidenceRules:
    """Reads rules from a TOML file: ``ml``, ``instruments``, ``heuristics`` and ``[[gains]]``.

    Raises:
        OptionError: It cannot be read, is no TOML, or a key or number is wrong.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE + 1)
        if len(text) > _MAX_FILE:
            raise OptionError(f"{path} has over {_MAX_FILE:,} bytes; it is no table of rules.")
        values = tomllib.loads(text.decode())
        return read_fields(EvidenceRules, values, str(path))
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror}).") from error
    except BundleError as error:
        raise OptionError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not readable as TOML ({error!s:.120}).") from error


def boosts(instruments: Mapping[str, float], rules: EvidenceRules) -> dict[str, float]:
    """What instruments bring, by genre.

    Args:
        instruments: Shares 0..1 of what is heard, by instrument.
        rules: The numbers.
    """
    band = min(1.0, sum(instruments.get(name, 0.0) for name in _BAND) / _BAND_SHARE)
    factor = {"any": 1.0, "band": band, "alone": 1.0 - band}
    found: dict[str, float] = {}
    for gain in rules.gains:
        above = max(0.0, instruments.get(gain.instrument, 0.0) - gain.threshold)
        value = gain.gain * above * factor[gain.context]
        if value > 0:
            found[gain.genre] = found.get(gain.genre, 0.0) + value
    return found


def combine(parts: Mapping[str, Mapping[str, float]], rules: EvidenceRules) -> dict[str, float]:
    """Shares of genres, the largest first; empty if no part is there.

    Args:
        parts: Scores by genre of ``ml``, ``instruments`` and ``heuristics``; empty or absent ones
            leave their weight to the others.
        rules: The numbers.
    """
    weights = {"ml": rules.ml, "instruments": rules.instruments, "heuristics": rules.heuristics}
    there = {name: part for name, part in parts.items() if sum(part.values()) > 0}
    total = sum(weights[name] for name in there)
    scores: dict[str, float] = {}
    for name, part in there.items() if total else ():
        whole = sum(part.values())
        for genre, score in part.items():
            scores[genre] = scores.get(genre, 0.0) + weights[name] / total * score / whole
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0])))
