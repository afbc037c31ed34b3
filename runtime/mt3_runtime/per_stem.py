"""Transcribes songs that were separated into stems: one model per stem, one result.

Contract: a song that was taken apart into audio files is transcribed file by file, each by the
model that is made for its stem and with that stem's instruments only, and the notes are put
together again.  Models say in their bundles what stem they are for; a new one is found by being
installed.

For a stem the model is, in this order, one made for it; one made for another stem of the same role,
if it knows the stem's instruments; one made for anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.decoding.token_masks import Wanted
from mt3_runtime.errors import BundleNotFoundError, OptionError
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.instruments import NOBODY, Lineup
from mt3_runtime.notes.stems import HIGH, OTHER, STEMS, Stem, stem_named, stems_of
from mt3_runtime.transcription import Transcription, by_onset

if TYPE_CHECKING:
    from mt3_runtime.bundles.manifest import Manifest


@dataclass(frozen=True)
class StemFile:
    """An audio file of a separated song.

    Attributes:
        path: The file.
        stem: What it holds.
        lineup: The instruments that may occur in it.
        program: What plays, where more than the stem is known.
    """

    path: Path
    stem: Stem
    lineup: Lineup
    program: int | None = None


@dataclass(frozen=True)
class StemModel:
    """A bundle, as far as it matters here; equal if it is the same one.

    Attributes:
        path: Where it is.
        info: What it says about itself.
    """

    path: Path
    info: Manifest = field(compare=False)

    @classmethod
    def at(cls, path: Path) -> StemModel:
        """Reads the manifest of a bundle.

        Raises:
            BundleError: It is damaged.
        """
        return cls(path, Bundle(path).manifest)

    @property
    def stem(self) -> Stem:
        """What it is made for."""
        return stem_named(self.info.stem)

    def knows(self, lineup: Lineup) -> bool:
        """Whether it has notes for any of these instruments."""
        try:
            Wanted.of(self.info.vocabulary, self.info.notes, lineup)
        except OptionError:
            return False
        return True


def stem_files(paths: Sequence[Path]) -> list[StemFile]:
    """Audio files of one song with their stems, told by their names (`stems_of`).

    Raises:
        OptionError: A name does not say what the file holds.
    """
    return with_lineups(paths, stems_of(paths))


def with_lineups(paths: Sequence[Path], stems: Sequence[Stem]) -> list[StemFile]:
    """Audio files of one song whose stems are known, with their instruments.

    A file has the instruments of its stem.  Where there is no file of the hi-hats and cymbals, they
    are in that of the drums; the file *other* has all instruments that no other file has.
    """
    names = {stem.name for stem in stems}
    lineups = {stem.name: stem.lineup for stem in stems}
    if "drums" in names and HIGH not in names:
        lineups["drums"] |= stem_named(HIGH).lineup
    named = reduce(or_, (lineups[name] for name in names - {OTHER}), NOBODY)
    lineups[OTHER] = Lineup() - named
    return [
        StemFile(path, stem, lineups[stem.name]) for path, stem in zip(paths, stems, strict=True)
    ]


def model_for(file: StemFile, models: Iterable[StemModel], general: StemModel | None) -> StemModel:
    """The model that a stem is transcribed with; see the module docstring.

    Args:
        file: What is to be transcribed.
        models: What is installed.
        general: The one for stems without a model of their own; None: the only one made for
            anything.

    Raises:
        BundleNotFoundError: There is none.
        OptionError: There are several, or the model has none of the stem's instruments.
    """
    known = list(models)
    exact = [model for model in known if model.stem is file.stem and model.stem.name != OTHER]
    if exact:
        return _only(exact, file)
    for stem in STEMS:
        same = [model for model in known if model.stem is stem and model.knows(file.lineup)]
        if same and stem.role is file.stem.role and stem.name != OTHER:
            return _only(same, file)
    found = general or _only([model for model in known if model.stem.name == OTHER], file)
    if not found.knows(file.lineup):
        raise OptionError(
            f"{file.path}: the model {found.path.name} has no notes for the stem "
            f"{file.stem.name}. Choose another with --model, or leave the file out."
        )
    return found


def merge(results: Iterable[Transcription]) -> Transcription:
    """One result of several recordings of the same time, such as the stems of a song.

    Reports come one recording after another; the digest is that over the recordings' digests.
    """
    parts = list(results)
    digest = hashlib.sha256("".join(part.token_digest for part in parts).encode())
    audio = [part.audio_warning for part in parts if part.audio_warning]
    return Transcription(
        notes=by_onset([note for part in parts for note in part.notes]),
        segments=tuple(report for part in parts for report in part.segments),
        duration=max((part.duration for part in parts), default=0.0),
        model=" + ".join(dict.fromkeys(part.model for part in parts)),
        token_digest=digest.hexdigest(),
        removed_notes=sum(part.removed_notes for part in parts),
        audio_warning=" ".join(audio) or None,
        leakage=_joined([part.leakage for part in parts]),
        smoothing=_joined([part.smoothing for part in parts]),
        remarks=tuple(dict.fromkeys(remark for part in parts for remark in part.remarks)),
        stem_files=tuple(file for part in parts for file in part.stem_files),
    )


def _only(models: Sequence[StemModel], file: StemFile) -> StemModel:
    if len(models) == 1:
        return models[0]
    wanted = f"{file.path}: the stem {file.stem.name} needs a model"
    if not models:
        raise BundleNotFoundError(
            f"{wanted}, and none that is made for it or for anything is installed. Name one with "
            "--model."
        )
    raise OptionError(
        f"{wanted}, and several would do: {', '.join(str(model.path) for model in models)}. "
        "Name one with --model, or move the others away."
    )


def _joined(reports: Sequence[LeakageReport]) -> LeakageReport:
    kinds = dict.fromkeys(report.filter for report in reports)
    return LeakageReport(
        filter=" + ".join(kinds) or "none",
        notes=sum(report.notes for report in reports),
        changes=tuple(change for report in reports for change in report.changes),
        stretches=tuple(stretch for report in reports for stretch in report.stretches),
    )
