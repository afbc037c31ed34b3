"""Scores instrument leakage and what filters make of it: `mt3 evaluate --leakage`.

Contract: every recording is transcribed once by each model, without a filter; then every filter is
applied to the same notes.  So rows that differ in the filter differ in nothing else.  Recordings
need no labels; drums and pitched notes are scored where there are some.

Of a drum stem no note should be on another instrument; of everything else none should be lost that
was right.  Labels rarely say which recordings are drum stems, so their names do: those that begin
with ``drums``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_evaluation.evaluation import unique_names
from mt3_evaluation.labels import find_labels, read_labels
from mt3_evaluation.plots import FAINT, INK, PAPER, check_picture, look, new_figure, to_bytes
from mt3_evaluation.score_report import aligned
from mt3_evaluation.scoring import Score, score_drums, score_notes
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.filesystem.atomic import STDOUT, check_output, write_output
from mt3_runtime.leakage.leakage_filter import filter_notes
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.notes.note import Note
from mt3_runtime.progress import Meter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mt3_runtime.model import Model

FORMAT, VERSION = "mt3-runtime.leakage", 1

FILTERS = ("off", "on", "classic")
"""In the order of the report."""

DRUM_STEM = "drums"
"""How the names of drum stems begin."""

HEAD = ("recording", "model", "filter", "notes", "on drums", "melodic kept", "drum F1", "onset F1")

COLOURS = {"off": "#c9ced6", "on": "#3568b8", "classic": "#e58a2c"}


@dataclass(frozen=True)
class Row:
    """One recording, as one model and one filter have it.

    Attributes:
        recording: Its name.
        model: Name of the model.
        filter: One of `FILTERS`.
        notes: How many there are.
        melodic: How many of them are not on drums.
        raw_melodic: The same without a filter.
        drums: Drum-onset scores, if drums are labelled.
        onset: Onset scores of pitched notes, if they are labelled.
    """

    recording: str
    model: str
    filter: str
    notes: int
    melodic: int
    raw_melodic: int
    drums: Score | None
    onset: Score | None

    @property
    def is_stem(self) -> bool:
        """Whether nothing but drums is to be heard."""
        return self.recording.startswith(DRUM_STEM)

    @property
    def on_drums(self) -> float | None:
        """Share of the notes; None without notes."""
        return 1.0 - self.melodic / self.notes if self.notes else None

    @property
    def kept(self) -> float | None:
        """Share of the melodic notes that the filter left; None if there were none."""
        return self.melodic / self.raw_melodic if self.raw_melodic else None


def run(args: argparse.Namespace) -> int:
    """``mt3 evaluate --leakage``: transcribes, filters, reports."""
    _check(args)
    paths = list(dict.fromkeys(find_inputs(args.audio)))
    rows: list[Row] = []
    failed = 0
    for bundle in [args.model, *args.against]:
        with closing(_load(bundle, args)) as model:
            taken = any(row.model == model.info.name for row in rows)
            label = str(model.path) if taken else model.info.name
            for path, name in zip(paths, unique_names(paths), strict=True):
                try:
                    rows += [replace(row, model=label) for row in measure(model, path, name, args)]
                except (AudioError, OptionError) as error:
                    talk(f"error: {name}: {error}")
                    failed += 1
    if not rows:
        return ExitCode.FAILED
    if args.json:
        text = json.dumps(document(rows), indent=1, ensure_ascii=False, allow_nan=False)
        write_output(args.json, f"{text}\n".encode())
    if args.plot:
        write_output(args.plot, to_bytes(chart(rows), check_picture(args.plot)))
    if args.json != STDOUT:
        print(table(rows))  # noqa: T201  the command's output
    return ExitCode.FAILED if failed else ExitCode.OK


def measure(model: Model, path: Path, name: str, args: argparse.Namespace) -> Iterator[Row]:
    """Rows of one recording, one for each filter.

    Raises:
        AudioError: It cannot be read.
        OptionError: Its labels are damaged.
    """
    files = find_labels(path.stem, Path(args.labels or path.parent))
    labels = read_labels(files) if files else None
    audio = load_audio(path, target_rate=model.sample_rate)
    if args.seconds:
        audio = audio[: round(args.seconds * model.sample_rate)]
    with Meter(name, unit="s", quiet=args.quiet) as meter:
        raw = model.transcribe_notes(
            audio,
            sr=model.sample_rate,
            auto_filter=False,
            progress=lambda now: meter.update(now.seconds_done, now.seconds_total),
        ).notes
    for kind in FILTERS:
        rate = model.sample_rate
        notes = filter_notes(raw, [audio], AUTO_FILTERS[kind], rate=rate).notes
        known = labels.notes if labels else ()
        yield Row(
            recording=name,
            model=model.info.name,
            filter=kind,
            notes=len(notes),
            melodic=_melodic(notes),
            raw_melodic=_melodic(raw),
            drums=score_drums(known, notes) if labels and labels.drums else None,
            onset=score_notes(known, notes) if labels and labels.pitched else None,
        )


def table(rows: Sequence[Row]) -> str:
    """The rows as text, without a line end behind it."""
    lines = [HEAD, *(_cells(row) for row in rows)]
    for model in dict.fromkeys(row.model for row in rows):
        for kind in FILTERS:
            own = [row for row in rows if (row.model, row.filter) == (model, kind)]
            for title, stems in (("all drum stems", True), ("all others", False)):
                some = [row for row in own if row.is_stem is stems]
                if some:
                    lines.append(_cells(_pooled(some, title)))
    return aligned(lines)


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """The rows as plain JSON types."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "rows": [
            {
                "recording": row.recording,
                "model": row.model,
                "filter": row.filter,
                "notes": row.notes,
                "melodic": row.melodic,
                "raw_melodic": row.raw_melodic,
                "drum_f1": _rounded(row.drums),
                "onset_f1": _rounded(row.onset),
            }
            for row in rows
        ],
    }


def chart(rows: Sequence[Row]) -> Figure:
    """Two panels per model: what leaks of drum stems, and what is kept of everything else."""
    models = list(dict.fromkeys(row.model for row in rows))
    sides = [(True, "notes of drum stems on other instruments"), (False, "melodic notes kept")]
    names = {stem: _names(rows, stem=stem) for stem, _ in sides}
    count = max(map(len, names.values()))
    height = 0.75 + len(models) * (0.75 + 0.42 * count)
    with look():
        figure = new_figure(height)
        grid = figure.add_gridspec(
            len(models), 2, left=0.12, right=0.98, wspace=0.3, hspace=0.45,
            top=1 - 0.85 / height, bottom=0.25 / height,
        )  # fmt: skip
        for line, model in enumerate(models):
            for column, (stem, title) in enumerate(sides):
                axes = figure.add_subplot(grid[line, column])
                _panel(axes, [r for r in rows if r.model == model], names[stem], stem=stem)
                axes.set_title(f"{model}: {title}", loc="left", fontsize=9, color=INK, pad=4)
        text = "Instrument leakage   "
        figure.text(0.015, 1 - 0.12 / height, text, va="top", fontsize=12, fontweight="bold")
        for place, (kind, colour) in enumerate(COLOURS.items()):
            label = {"off": "no filter", "on": "default filter", "classic": "classic rules"}[kind]
            left = 0.3 + 0.16 * place
            figure.text(left, 1 - 0.14 / height, "\u25a0", va="top", color=colour, fontsize=12)
            figure.text(left + 0.018, 1 - 0.16 / height, label, va="top", color=INK)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], names: Sequence[str], *, stem: bool) -> None:
    for place, name in enumerate(names):
        for line, kind in enumerate(FILTERS):
            row = next((r for r in rows if (r.recording, r.filter) == (name, kind)), None)
            share = None if row is None else _leaked(row) if stem else row.kept
            height = place + 0.27 * (line - 1)
            if share is None:
                axes.text(0.01, height, "-", va="center", color=FAINT, fontsize=7)
                continue
            axes.barh(height, share, height=0.25, color=COLOURS[kind])
            inside = share > 0.85
            axes.text(
                share - 0.01 if inside else share + 0.01,
                height,
                f"{share:.1%}",
                va="center",
                ha="right" if inside else "left",
                color=PAPER if inside and kind != "off" else INK,
                fontsize=6.5,
            )
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.4, -0.6), xticks=[])
    axes.set_yticks(range(len(names)), names, color=INK, fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _leaked(row: Row) -> float | None:
    return None if row.on_drums is None else 1.0 - row.on_drums


def _names(rows: Sequence[Row], *, stem: bool) -> list[str]:
    return list(dict.fromkeys(row.recording for row in rows if row.is_stem is stem))


def _pooled(rows: Sequence[Row], title: str) -> Row:
    """Several recordings as one; their labels are scored where all of them have some."""
    first = rows[0]
    scores = {
        name: [score for row in rows if (score := getattr(row, name)) is not None]
        for name in ("drums", "onset")
    }
    return Row(
        recording=title,
        model=first.model,
        filter=first.filter,
        notes=sum(row.notes for row in rows),
        melodic=sum(row.melodic for row in rows),
        raw_melodic=sum(row.raw_melodic for row in rows),
        drums=sum(scores["drums"], Score(0, 0, 0)) if scores["drums"] else None,
        onset=sum(scores["onset"], Score(0, 0, 0)) if scores["onset"] else None,
    )


def _cells(row: Row) -> tuple[str, ...]:
    shares = [_share(row.on_drums), _share(row.kept)]
    scores = ["-" if s is None or s.f1 is None else f"{s.f1:.3f}" for s in (row.drums, row.onset)]
    return (row.recording, row.model, row.filter, str(row.notes), *shares, *scores)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _rounded(score: Score | None) -> float | None:
    return None if score is None or score.f1 is None else round(score.f1, 6)


def _melodic(notes: Sequence[Note]) -> int:
    return sum(not note.is_drum for note in notes)


def _load(bundle: str | None, args: argparse.Namespace) -> Model:
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

    return load_model(
        resolve_model(bundle),
        device=args.device,
        threads=args.threads,
        decoding=args.decoding,
        profile=args.profile,
    )


def _check(args: argparse.Namespace) -> None:
    """Refuses what could only fail after an hour of work."""
    if not args.audio or args.notes:
        raise OptionError("--leakage takes audio files or folders, and no --notes.")
    audio = find_inputs(args.audio)
    labels = [f for path in audio for f in find_labels(path.stem, Path(args.labels or path.parent))]
    models = [resolve_model(model) for model in (args.model, *args.against)]
    for path in filter(None, (args.json, args.plot)):
        check_output(path, [*audio, *labels], bundles=models)
    if args.plot:
        check_picture(args.plot)
    score_drums((), ())  # complains now if mir_eval is missing
