"""Judges who plays in a recording, for ``instruments="auto"``: a tagger and the notes together.

Contract: the chance of a family is a logistic function of two numbers, its tagger score relative to
the best family's, and its share of the notes.  A tagger is a prior here, and no mask, and counts by
how sure it is of its best: a soloist's score tells that nobody else plays, a band's tells little.
Without a tagger, the notes alone speak.
The numbers were fitted on synthetic bands (``docs/tagging.md`` says how), on no recording.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from mt3_analysis.networks.classifier_session import Classifier
from mt3_analysis.networks.installed_classifiers import ADVICE, find_installed
from mt3_analysis.tagging.instrument_families import DRUMS, FAMILIES
from mt3_analysis.tagging.instrument_tagging import load_tagger, tagger_evidence
from mt3_analysis.tagging.note_evidence import note_evidence
from mt3_runtime.audio.sources import open_audio
from mt3_runtime.extensions.evidence import FamilyEvidence, HeardRecording, LineupReport
from mt3_runtime.notes.instruments import Lineup

#: Tagger scores and note shares below these count as these: logarithms want bounds.
LEAST_SCORE, LEAST_BEST, LEAST_SHARE = 1e-4, 1e-3, 1e-3

_EVERYTHING = Lineup()
OTHERS = "others"
"""Programs of no family, which no tagger names: the notes alone speak for them."""
_PROGRAMS = {family.name: family.programs for family in FAMILIES}
_PROGRAMS[OTHERS] = _EVERYTHING.programs.difference(*_PROGRAMS.values())


@dataclass(frozen=True)
class ChanceRule:
    """Log-odds that a family plays: ``base + tagger best ln(score / best) + notes ln(share)``.

    Attributes:
        base: Of a family that the tagger hears best and that has all notes.
        tagger: Weight of the tagger where it is sure of its best.
        notes: Weight of the notes.
        least: Chance from which a family may occur.
    """

    base: float
    tagger: float
    notes: float
    least: float

    def chance(self, score: float, best: float, share: float) -> float:
        """The chance 0..1 of a family.

        Args:
            score: Of the tagger; 0 where there is none.
            best: The best family's.
            share: Of the notes.
        """
        relative = best * math.log(max(score, LEAST_SCORE) / max(best, LEAST_BEST))
        odds = self.base + self.tagger * relative + self.notes * math.log(max(share, LEAST_SHARE))
        return 1 / (1 + math.exp(-odds))


WITH_TAGGER = ChanceRule(base=3.030, tagger=3.668, notes=0.872, least=0.2)
NOTES_ALONE = ChanceRule(base=2.185, tagger=0.0, notes=0.900, least=0.2)


class LineupEvidence:
    """See the module docstring; an `mt3_runtime.extensions.evidence.EvidenceSource`.

    Args:
        tagger: Loaded, a name or a path; the only installed one by default; False for none.
    """

    def __init__(self, tagger: Classifier | str | os.PathLike[str] | bool | None = None) -> None:  # noqa: FBT001  as `tag` takes it
        self._tagger = tagger
        self._loaded: tuple[str, Classifier] | None = None

    def identity(self) -> str:
        """The tagger and its export, or ``notes``."""
        tagger = self._heard_by()
        return "notes" if tagger is None else f"{tagger.manifest.name} {tagger.manifest.export_id}"

    def lineup(self, heard: HeardRecording) -> LineupReport:
        """Judges a recording; errors of `EvidenceSource.lineup`."""
        tagger = self._heard_by()
        found = note_evidence(heard.notes, heard.duration, "").families
        shares = {item.name: item.score for item in found}
        if heard.notes:
            shares[OTHERS] = max(0.0, 1.0 - sum(shares.values()))
        if tagger is None:
            missing = f"No tagger is installed: the notes alone speak. {ADVICE['tagger']}"
            remarks = () if self._tagger is False else (missing,)
            return judged("the notes alone", None, shares, remarks)
        with open_audio(heard.audio, sr=heard.sr, target_rate=tagger.sample_rate) as stream:
            evidence = tagger_evidence(tagger, tagger.hear(stream))
        scores = {item.name: item.score for item in evidence.families}
        return judged(f"{tagger.manifest.name} and the notes", scores or None, shares)

    def _heard_by(self) -> Classifier | None:
        """The tagger; loaded again if another one was installed."""
        if isinstance(self._tagger, Classifier):
            return self._tagger
        if self._tagger is False:
            return None
        name = None if self._tagger is True else self._tagger
        bundle = find_installed("tagger", name)
        if bundle is None:
            return None
        key = f"{bundle.path} {bundle.manifest.export_id}"
        if self._loaded is None or self._loaded[0] != key:
            found = load_tagger(bundle.path)
            assert found is not None  # noqa: S101  it was named
            self._loaded = (key, found)
        return self._loaded[1]


def judged(
    source: str,
    scores: Mapping[str, float] | None,
    shares: Mapping[str, float],
    remarks: tuple[str, ...] = (),
) -> LineupReport:
    """The line-up that evidence speaks for; everything if nothing was heard.

    Args:
        source: Who was asked.
        scores: Of a tagger, by family; None without one.
        shares: Of the notes, by family.
        remarks: Of the report.
    """
    rule = NOTES_ALONE if scores is None else WITH_TAGGER
    best = max((scores or {}).values(), default=0.0)
    names = [*_PROGRAMS]
    chances = {
        name: rule.chance((scores or {}).get(name, 0.0), best, shares.get(name, 0.0))
        for name in names
    }
    chances[OTHERS] = NOTES_ALONE.chance(0.0, 0.0, shares.get(OTHERS, 0.0))
    kept = {name for name in names if chances[name] >= rule.least}
    kept = kept or ({max(names, key=chances.__getitem__)} if shares else set())
    families = tuple(
        FamilyEvidence(
            name,
            None if scores is None or name == OTHERS else scores.get(name, 0.0),
            shares.get(name, 0.0),
            round(chances[name], 4),
            name in kept,
        )
        for name in sorted(names, key=lambda name: -chances[name])
    )
    return LineupReport(source, _lineup(kept), families, remarks=remarks)


def _lineup(kept: set[str]) -> Lineup:
    if not kept:
        return _EVERYTHING
    keys = _EVERYTHING.drum_keys if DRUMS in kept else frozenset()
    return Lineup(frozenset().union(*(_PROGRAMS[name] for name in kept)), keys)


INSTALLED = LineupEvidence()
"""What the entry point names: the only installed tagger, or the notes alone."""
