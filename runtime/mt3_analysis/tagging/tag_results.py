"""What is heard in a recording: families and labels with scores, over time, from two sources.

Contract: plain frozen data, the same in JSON.  The two sources are never mixed into one number:
both are there, and `Agreement` says of every family who hears it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Hearer = Literal["both", "tagger", "transcription"]


@dataclass(frozen=True)
class Scored:
    """A name with a score 0..1: a probability of a tagger, a share of a transcription."""

    name: str
    score: float


@dataclass(frozen=True)
class TagWindow:
    """What is heard in a stretch of time, the strongest first; nothing in silence.

    Attributes:
        start: [s].
        end: [s].
        families: Families of instruments.
    """

    start: float
    end: float
    families: tuple[Scored, ...]


@dataclass(frozen=True)
class Evidence:
    """What one source hears.

    Attributes:
        source: ``tagger`` or ``transcription``.
        model: Name of the model.
        families: Overall, the strongest first.
        labels: The strongest classes of the tagger, or the instruments of the notes.
        windows: Over time.
    """

    source: Literal["tagger", "transcription"]
    model: str
    families: tuple[Scored, ...]
    labels: tuple[Scored, ...]
    windows: tuple[TagWindow, ...]


@dataclass(frozen=True)
class Agreement:
    """Who hears a family, by the presence rules of each source."""

    family: str
    heard_by: Hearer


@dataclass(frozen=True)
class Tags:
    """The instruments of a recording.

    Attributes:
        duration: Length of the recording [s].
        transcription: What the notes say; always there.
        tagger: What a tagger says; None if none is installed, or none was wanted.
        agreement: By family, first those that both hear; without a tagger, what the notes say.
        warnings: What makes the result doubtful, and what was used instead of what is missing.
    """

    duration: float
    transcription: Evidence
    tagger: Evidence | None
    agreement: tuple[Agreement, ...]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        return asdict(self)

    def lines(self, top: int = 5) -> list[str]:
        """The result as people read it, at most so many names a source."""
        found = []
        for evidence in (self.tagger, self.transcription):
            if evidence is not None:
                names = _listed(evidence.families, top)
                found.append(f"{evidence.source} ({evidence.model}): {names}")
        if self.tagger is not None:
            for hearer in ("both", "tagger", "transcription"):
                names = ", ".join(a.family for a in self.agreement if a.heard_by == hearer)
                who = "heard by both" if hearer == "both" else f"by the {hearer} alone"
                if names:
                    found.append(f"{who}: {names}")
        return found


def _listed(scored: tuple[Scored, ...], top: int) -> str:
    return ", ".join(f"{item.name} {item.score:.2f}" for item in scored[:top]) or "nothing"


def ranked(scores: dict[str, float], least: float = 0.0) -> tuple[Scored, ...]:
    """Names by falling score, without those at or below ``least``; equal ones by name."""
    kept = [(name, score) for name, score in scores.items() if score > least]
    ordered = sorted(kept, key=lambda item: (-item[1], item[0]))
    return tuple(Scored(name, round(float(score), 4)) for name, score in ordered)
