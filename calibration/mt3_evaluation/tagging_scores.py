"""Scores who is heard to play against labels: `mt3 evaluate --tags`.

Contract: the labels of a recording name its families of instruments, by what sounds of each; the
transcription and, if one is installed, a tagger name them by their own rules.  A recording counts
where its labels know all that it has: pitched notes with their programs, and drums; where they know
the one kind, families of the other are not judged.

Per source: ``first``, recordings whose best family is one of the labels'; precision, recall and F1
of the families over all recordings; ``AP``, the mean over families of the average precision with
which a source's scores put recordings that have a family before those that have not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_analysis.tagging.instrument_families import DRUMS
from mt3_analysis.tagging.instrument_tagging import load_tagger, present, tag
from mt3_analysis.tagging.note_evidence import note_evidence
from mt3_analysis.tagging.tag_results import Evidence, Tags
from mt3_evaluation.evaluation import unique_names
from mt3_evaluation.labels import Labels, find_labels, read_labels
from mt3_evaluation.score_report import aligned
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.filesystem.atomic import STDOUT, check_output, write_output
from mt3_runtime.loading import load_model

FORMAT, VERSION = "mt3-runtime.tags", 1

LEAST = 0.01
"""A family is in a recording if so much of what its labels let sound is its."""

HEAD = ("source", "recordings", "first", "precision", "recall", "F1", "AP", "families")

SOURCES = ("tagger", "transcription", "either", "both")


@dataclass(frozen=True)
class Heard:
    """What one recording has, and what is heard in it.

    Attributes:
        recording: Its name.
        known: Families of the labels.
        judged: Families that the labels can tell; None for all.
        tags: What was heard.
    """

    recording: str
    known: frozenset[str]
    judged: frozenset[str] | None
    tags: Tags

    def found(self, source: str) -> set[str]:
        """The families that a source hears, of those that are judged."""
        noted = present(self.tags.transcription)
        tagged = set() if self.tags.tagger is None else present(self.tags.tagger)
        of = {
            "tagger": tagged,
            "transcription": noted,
            "either": tagged | noted,
            "both": tagged & noted,
        }
        return {name for name in of[source] if self.judged is None or name in self.judged}

    def scores(self, source: str) -> dict[str, float]:
        """Scores of the families, of a source that has some."""
        evidence = self._evidence(source)
        return {} if evidence is None else {item.name: item.score for item in evidence.families}

    def first(self, source: str) -> str | None:
        """The family that a source hears best, of those that are judged."""
        ranked = self.scores(source)
        return next((n for n in ranked if self.judged is None or n in self.judged), None)

    def _evidence(self, source: str) -> Evidence | None:
        return {"tagger": self.tags.tagger, "transcription": self.tags.transcription}.get(source)


def families_of(labels: Labels) -> tuple[frozenset[str], frozenset[str] | None]:
    """The families that labels name, and those that they can tell (None for all)."""
    notes = [note for note in labels.notes if note.is_drum or labels.programs]
    end = max((note.offset for note in notes), default=0.0)
    shares = note_evidence(notes, end, "labels").families
    known = frozenset(item.name for item in shares if item.score >= LEAST)
    if labels.pitched and labels.programs and labels.drums:
        return known, None
    if labels.pitched and labels.programs:
        return known, known  # what else plays is not known
    told = frozenset({DRUMS} if labels.drums else ())
    return known & told, told


def run(args: argparse.Namespace) -> int:
    """``mt3 evaluate --tags``: listens, compares, reports.

    Raises:
        OptionError: Options contradict each other, or nothing has labels.
    """
    _check(args)
    paths = list(dict.fromkeys(find_inputs(args.audio)))
    tagger = load_tagger(threads=args.threads)
    rows: list[Heard] = []
    failed = 0
    with load_model(args.model, device=args.device, threads=args.threads) as model:
        for path, name in zip(paths, unique_names(paths), strict=True):
            files = find_labels(path.stem, Path(args.labels or path.parent))
            if not files:
                talk(f"skipped: {name}: no labels in {args.labels or path.parent}")
                continue
            try:
                known, judged = families_of(read_labels(files))
                if judged == frozenset():
                    talk(f"skipped: {name}: its labels name no instrument")
                    continue
                heard = tag(path, model=model, tagger=tagger or False, threads=args.threads)
            except (AudioError, OptionError) as error:
                talk(f"error: {name}: {error}")
                failed += 1
                continue
            rows.append(Heard(name, known, judged, heard))
    if not rows and not failed:
        raise OptionError("Nothing to score: no recording has labels that name instruments.")
    if not rows:
        return ExitCode.FAILED
    report = document(rows, tagger=None if tagger is None else tagger.manifest.name)
    if args.json:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        write_output(args.json, f"{text}\n".encode())
    if args.json != STDOUT:
        print(table(report))  # noqa: T201  printing is what a command does
    return ExitCode.FAILED if failed else ExitCode.OK


def _check(args: argparse.Namespace) -> None:
    useless = ("notes", "leakage", "confidence", "against", "plot", "seconds")
    given = [f"--{name}" for name in useless if getattr(args, name)]
    if given:
        raise OptionError(f"--tags has no use for {', '.join(given)}; leave it out.")
    if not args.audio:
        raise OptionError("Name audio files or folders.")
    if args.json:
        check_output(args.json, find_inputs(args.audio))


def document(rows: Sequence[Heard], *, tagger: str | None) -> dict[str, Any]:
    """Everything as JSON values.

    Args:
        rows: The recordings.
        tagger: Its name; None without one.
    """
    sources = SOURCES if tagger else ("transcription",)
    return {
        "format": FORMAT,
        "version": VERSION,
        "tagger": tagger,
        "sources": {source: measured(rows, source) for source in sources},
        "recordings": [
            {
                "name": row.recording,
                "labels": sorted(row.known),
                **{source: sorted(row.found(source)) for source in sources},
            }
            for row in rows
        ],
    }


def measured(rows: Sequence[Heard], source: str) -> dict[str, Any]:
    """The figures of a source, see the module; None where nothing is to be counted."""
    right = sum(len(row.found(source) & row.known) for row in rows)
    said = sum(len(row.found(source)) for row in rows)
    known = sum(len(row.known) for row in rows)
    judged = [row for row in rows if row.known]
    ranked = source in ("tagger", "transcription")
    names = sorted({name for row in rows for name in row.known})
    precisions = {
        name: average_precision(
            (row.scores(source).get(name, 0.0), name in row.known)
            for row in rows
            if row.judged is None or name in row.judged
        )
        for name in names
    }
    return {
        "recordings": len(rows),
        "first": sum(row.first(source) in row.known for row in judged) if ranked else None,
        "precision": right / said if said else None,
        "recall": right / known if known else None,
        "f1": 2 * right / (said + known) if said + known else None,
        "ap": sum(precisions.values()) / len(precisions) if ranked and precisions else None,
        "families": len(names),
        "ap_by_family": precisions if ranked else None,
    }


def average_precision(scored: Iterable[tuple[float, bool]]) -> float:
    """Mean of the precision at every recording that has a family, the best scores first.

    Of equal scores those without the family come first: ties are no merit.

    Args:
        scored: Score of a recording, and whether it has the family.
    """
    ordered = sorted(scored, key=lambda item: (-item[0], item[1]))
    found, total = 0, 0.0
    for place, (_, has) in enumerate(ordered, start=1):
        if has:
            found += 1
            total += found / place
    return total / found if found else 0.0


def table(report: Mapping[str, Any]) -> str:
    """The report as people read it."""
    rows = [HEAD]
    for source, found in report["sources"].items():
        cells = [found[key] for key in ("precision", "recall", "f1", "ap")]
        shown = ["-" if value is None else f"{value:.3f}" for value in cells]
        first = "-" if found["first"] is None else str(found["first"])
        rows.append((source, str(found["recordings"]), first, *shown, str(found["families"])))
    lines = [
        f"{row['name']}: {', '.join(row['labels']) or 'nothing'}"
        + "".join(f"; {s}: {', '.join(row[s]) or 'nothing'}" for s in report["sources"] if s in row)
        for row in report["recordings"]
    ]
    return "\n".join([*lines, "", aligned(rows)])
