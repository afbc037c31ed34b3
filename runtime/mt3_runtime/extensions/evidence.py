"""Evidence of who plays: what ``instruments="auto"`` asks installed packages.

Contract: an entry point of the group `EVIDENCE_GROUP` is an `EvidenceSource`.  It gets a recording
with the notes of a first, free transcription, and answers which families of instruments are likely
to play in it.  The runtime knows nothing of taggers, and the package nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast

from mt3_runtime.errors import MissingDependencyError
from mt3_runtime.imports.extras import DISTRIBUTION, absent, pip
from mt3_runtime.notes.instruments import Lineup
from mt3_runtime.notes.note import Note

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource

EVIDENCE_GROUP = "mt3_runtime.evidence"
"""Entry-point group of an `EvidenceSource`; the first by name is asked."""


@dataclass(frozen=True)
class HeardRecording:
    """A recording that was transcribed once, without a line-up.

    Attributes:
        audio: A path or samples; it can be read again.
        sr: Sample rate of samples in Hz; None if they have the model's own.
        notes: Of the free transcription.
        duration: Length in seconds.
    """

    audio: AudioSource
    sr: float | None
    notes: Sequence[Note]
    duration: float


@dataclass(frozen=True)
class FamilyEvidence:
    """What speaks for a family of instruments.

    Attributes:
        family: Its name.
        tagger: Score 0..1 of a tagger; None if none was asked.
        notes: Share 0..1 of what sounds in the free transcription.
        chance: 0..1, that it plays, by both together.
        kept: Whether it may occur.
    """

    family: str
    tagger: float | None
    notes: float
    chance: float
    kept: bool


@dataclass(frozen=True)
class LineupReport:
    """Which instruments may occur, and why.

    Attributes:
        source: Who was asked, such as ``yamnet and the notes``.
        lineup: What may occur.
        families: The evidence, the likeliest first.
        applied: Whether it changed anything: without notes of other families in the free
            transcription, that is the result.
        remarks: What makes it doubtful, and what to install: a sentence each.
    """

    source: str
    lineup: Lineup
    families: tuple[FamilyEvidence, ...]
    applied: bool = False
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in JSON."""
        return {
            "source": self.source,
            "applied": self.applied,
            "programs": sorted(self.lineup.programs),
            "drum_keys": sorted(self.lineup.drum_keys),
            "families": [asdict(each) for each in self.families],
        }

    def summary(self) -> str:
        """One line for people."""
        kept = ", ".join(each.family for each in self.families if each.kept) or "everything"
        left = ", ".join(
            f"{each.family} ({each.notes:.0%} of the notes)"
            for each in self.families
            if not each.kept and each.notes
        )
        return f"instruments by {self.source}: {kept}" + (f"; not {left}" if left else "")


class EvidenceSource(Protocol):
    """Judges who plays."""

    def identity(self) -> str:
        """What decides the judgement, for journals: names and versions of networks."""

    def lineup(self, heard: HeardRecording) -> LineupReport:
        """Judges a recording.

        Raises:
            AudioError: It cannot be read again.
            BundleError: A network is damaged.
        """


def evidence_source() -> EvidenceSource:
    """The installed source of evidence.

    Raises:
        MissingDependencyError: There is none, or it cannot be loaded.
    """
    entries = sorted(entry_points(group=EVIDENCE_GROUP), key=lambda entry: entry.name)
    if not entries:
        raise MissingDependencyError(
            'instruments="auto" asks a package that hears instruments, and none is installed. '
            f"{DISTRIBUTION} brings one, so its installation is not whole: "
            f"{pip({'mt3_runtime': DISTRIBUTION}, '--force-reinstall')}"
        )
    try:
        found: Any = entries[0].load()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(absent('instruments="auto"', error)) from error
    return cast("EvidenceSource", found)
