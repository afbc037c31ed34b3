"""`mt3 evaluate` and `mt3 plot`: scores transcriptions against labels, draws piano rolls."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mt3_evaluation import tagging_scores
from mt3_evaluation.bootstrap import RESAMPLES
from mt3_evaluation.candidates import ModelRun, NotesFolder
from mt3_evaluation.confidences import confidence_report
from mt3_evaluation.confidences.confidence_fit import assess, verdicts
from mt3_evaluation.evaluation import (
    Evaluation,
    Recording,
    Result,
    labelled,
    score,
    unique_names,
)
from mt3_evaluation.labels import SUFFIXES, Labels, find_labels, labelled_names, read_labels
from mt3_evaluation.leakage_study import leakage_scores as leakage_report
from mt3_evaluation.plots import check_picture, score_chart, to_bytes
from mt3_evaluation.score_report import document, table
from mt3_evaluation.scoreboards.stem_scores import stem_document, stem_table
from mt3_evaluation.scoring import by_pitch, match
from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.commands.machine import versions
from mt3_runtime.decoding.search import SearchName
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.files.formats import SUFFIXES as NOTES
from mt3_runtime.files.formats import load_notes
from mt3_runtime.filesystem.atomic import STDOUT, check_output, exists, is_folder, write_output
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("mt3-runtime", "mir_eval", "numpy", "onnxruntime", "onnxruntime-gpu", "soxr")
"""Distributions whose versions decide the scores."""

COLUMNS = """\
columns: onset, offset, drums: F1 of pitched notes and of drums; flat, class, full: MT3's
multi-instrument F1 without instruments, with MIDI classes, with programs; leaked: share of notes on
instruments that the labels do not have; phi: instruments found / labelled; right: share of matched
notes on the right instrument; -: the labels say nothing about it. docs/evaluation.md has the
definitions."""


class EvaluateCommand:
    """Scores a model, or notes that are there already, against labels."""

    name = "evaluate"
    help = "score transcriptions against reference notes"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the recordings, what is judged, and the reports."""
        parser.epilog = COLUMNS
        add = parser.add_argument
        add("audio", nargs="*", metavar="AUDIO", help="audio file, or folder of audio files")
        add("--labels", metavar="DIR", help="folder of the labels (default: beside the audio)")
        add("--notes", metavar="DIR", help="judge the notes in this folder; no model is run")
        add("--leakage", action="store_true",
            help="show what leaks, and what each filter does; needs no labels")  # fmt: skip
        add("--tags", action="store_true",
            help="judge which families are heard, by the notes and by a tagger")  # fmt: skip
        add("--against", metavar="BUNDLE", action="append", default=[],
            help="with --leakage: another model to show beside; may be repeated")  # fmt: skip
        add("--by-stem", action="store_true", help="show the F1 of notes on the right stem, too")
        add("--seconds", type=_positive, metavar="N", help="only the first N seconds of each")
        add("--json", metavar="FILE", help="write everything as JSON; - for stdout, then no table")
        add("--plot", metavar="FILE", help="write a chart (.png, .svg or .pdf)")
        add("--confidence", action="store_true", help="judge the notes' confidence instead")
        add("--seed", type=int, default=0, metavar="N", help="of the intervals (default: 0)")
        add("--resamples", type=int, default=RESAMPLES, metavar="N", help="draws per interval")
        add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")
        add = parser.add_argument_group("model").add_argument
        add("-m", "--model", help="bundle, or name of a model (default: $MT3_MODEL, else the only "
            "installed one, else default)")  # fmt: skip
        add(
            "--device",
            default="auto",
            help="auto (default), cpu, cuda[:N], tensorrt[:N], rtx[:N], plugin:NAME[:N]",
        )
        add("--threads", type=int, metavar="N", help="CPU threads (default: chosen for you)")
        add("--profile", metavar="NAME", help="graph profile (default: the device's best)")
        add("--decoding", choices=get_args(SearchName), default="greedy", help="default: greedy")
        add("--auto-filter", choices=AUTO_FILTERS, default="on",
            help="repair instrument leakage (default: on; classic: as mt3-infer)")  # fmt: skip
        add("--no-auto-filter", dest="auto_filter", action="store_const", const="off", help="off")

    def run(self, args: argparse.Namespace) -> int:
        """Finds labels, gets notes, scores, reports."""
        if args.by_stem and (args.tags or args.leakage or args.confidence):
            raise OptionError(
                "--by-stem is about notes; leave --tags, --leakage, --confidence out."
            )
        if args.tags:
            return tagging_scores.run(args)
        if args.leakage:
            return leakage_report.run(args)
        _check(args)
        recordings, skipped, failed = _recordings(args)
        if not recordings:
            return ExitCode.FAILED
        with NotesFolder(Path(args.notes)) if args.notes else ModelRun(args) as source:
            results = []
            for recording in recordings:
                result = _judge(source, recording, args)
                results += [result] if result else []
        if not results:
            return ExitCode.FAILED
        report = _report_confidence if args.confidence else _report
        report(results, source, skipped, args)
        return ExitCode.FAILED if failed or len(results) < len(recordings) else ExitCode.OK


def _check(args: argparse.Namespace) -> None:
    """Refuses what could only fail after an hour of work."""
    if args.against:
        raise OptionError("--against needs --leakage; evaluate other models one by one.")
    if not args.audio and not (args.notes and args.labels):
        raise OptionError(
            "Name audio files or folders; or notes and labels, with --notes --labels."
        )
    for option in ("labels", "notes"):
        folder = getattr(args, option)
        if folder is not None and not is_folder(folder):
            raise OptionError(f"--{option} takes a folder, and {folder} is none.")
    if args.resamples < 1 or args.seed < 0:
        raise OptionError("--resamples must be at least 1, and --seed at least 0.")
    for path in filter(None, (args.json, args.plot)):
        models = () if args.notes else (resolve_model(args.model),)
        check_output(path, _inputs(args), bundles=models)
    if args.plot:
        check_picture(args.plot)
    match((), (), by_pitch)  # complains now if mir_eval is missing


def _inputs(args: argparse.Namespace) -> list[Path]:
    """All files that will be read, which no report may replace."""
    found: list[Path] = []
    for _, name, audio, folder in _places(args):
        found += [*([audio] if audio else []), *find_labels(name, folder)]
        found += [Path(args.notes, name + suffix) for suffix in NOTES if args.notes]
    return [path for path in found if exists(path)]


def _recordings(args: argparse.Namespace) -> tuple[list[Recording], dict[str, str], int]:
    """Recordings with labels; those without, by name with the reason; the number of bad ones."""
    found: list[Recording] = []
    skipped: dict[str, str] = {}
    failed = 0
    for shown, name, audio, folder in _places(args):
        try:
            recording = labelled(name, audio, folder, trusted=args.labels is not None)
        except (AudioError, OptionError) as error:
            talk(f"error: {error}")
            failed += 1
            continue
        if recording is None:
            skipped[shown] = f"no labels in {folder}"
            talk(f"skipped: {shown}: {skipped[shown]}")
        else:
            found.append(replace(recording, name=shown))
    if not found and not failed:
        raise OptionError(
            "Nothing to score: no recording has labels. They are files beside it, or in the folder "
            f"of --labels, named as it is but for the end: {', '.join(SUFFIXES)}."
        )
    return found, skipped, failed


def _places(args: argparse.Namespace) -> list[tuple[str, str, Path | None, Path]]:
    """Of every recording: what to call it, its name in files, its audio, its labels' folder."""
    if not args.audio:
        folder = Path(args.labels)
        return [(name, name, None, folder) for name in labelled_names(folder)]
    audio = list(dict.fromkeys(find_inputs(args.audio)))
    return [
        (shown, path.stem, path, Path(args.labels or path.parent))
        for shown, path in zip(unique_names(audio), audio, strict=True)
    ]


def _judge(
    source: NotesFolder | ModelRun, recording: Recording, args: argparse.Namespace
) -> Result | None:
    """Scores one recording; None if it failed, with the reason on stderr."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = source.find(recording)
    except (AudioError, OptionError) as error:
        talk(f"error: {recording.name}: {error}")
        return None
    for warning in caught:
        talk(f"warning: {recording.name}: {warning.message}")
    return score(recording, found, seconds=args.seconds)


def _report(
    results: list[Result],
    source: NotesFolder | ModelRun,
    skipped: dict[str, str],
    args: argparse.Namespace,
) -> None:
    """Writes the files that were asked for, and the table."""
    evaluation, title = Evaluation(tuple(results), args.resamples, args.seed), _title(source, args)
    facts = _facts(source, skipped, args)
    if args.json:
        stems = {"stems": stem_document(evaluation)} if args.by_stem else {}
        _write_json(document(evaluation, **facts) | stems, args)
    if args.plot:
        _write_plot(score_chart(evaluation, title=title), args)
    if args.json != STDOUT:
        rows = f"\n\n{stem_table(evaluation)}" if args.by_stem else ""
        print(f"{title}\n\n{table(evaluation)}{rows}")


def _report_confidence(
    results: list[Result],
    source: NotesFolder | ModelRun,
    skipped: dict[str, str],
    args: argparse.Namespace,
) -> None:
    """The same about the notes' confidence."""
    title = _title(source, args)
    assessment = assess(
        {
            result.recording.name: verdicts(result.recording.labels, result.findings.notes)
            for result in results
        }
    )
    if args.json:
        facts = _facts(source, skipped, args)
        _write_json(confidence_report.document(assessment, **facts), args)
    if args.plot:
        _write_plot(confidence_report.reliability_plot(assessment, title=title), args)
    if args.json != STDOUT:
        print(f"{title}\n\n{confidence_report.table(assessment)}")


def _title(source: NotesFolder | ModelRun, args: argparse.Namespace) -> str:
    return source.title + (f", first {args.seconds:g} s" if args.seconds else "")


def _facts(
    source: NotesFolder | ModelRun, skipped: dict[str, str], args: argparse.Namespace
) -> dict[str, Any]:
    """What a document says beside the scores."""
    return {
        "model": source.about,
        "versions": versions(PACKAGES),
        "seconds": args.seconds,
        "skipped": skipped,
    }


def _write_json(report: dict[str, Any], args: argparse.Namespace) -> None:
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    write_output(args.json, f"{text}\n".encode())


def _write_plot(figure: Figure, args: argparse.Namespace) -> None:
    write_output(args.plot, to_bytes(figure, check_picture(args.plot)))


class PlotCommand:
    """Draws notes."""

    name = "plot"
    help = "draw transcriptions as piano rolls"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the notes, the labels and what is shown of them."""
        add = parser.add_argument
        add("file", metavar="FILE", help="notes: .mid, .json, .jsonl or .csv")
        add("-o", "--output", metavar="OUT", help=".png, .svg or .pdf (default: FILE.png)")
        add("--start", type=_seconds, default=0.0, metavar="S", help="first second shown")
        add("--seconds", type=_positive, metavar="N", help="how many (default: to the end)")
        add("--labels", metavar="LABELS", help="compare with this label file, or with the labels "
            "of FILE's name in this folder")  # fmt: skip
        add("--tags", metavar="JSON", help="draw instruments over time, as `mt3 tag -f json` wrote")
        add("--title", help="default: the name of FILE")
        add("--overwrite", action="store_true", help="replace a picture not named with -o, too")

    def run(self, args: argparse.Namespace) -> int:
        """Reads, draws, writes."""
        from mt3_evaluation.family_chart import read_tags  # noqa: PLC0415
        from mt3_evaluation.pianoroll import View, draw  # noqa: PLC0415

        source = Path(args.file)
        output = args.output or str(source.with_suffix(".png"))
        kind = check_picture(output)
        known = Path(args.labels) if args.labels else None
        tags = [Path(args.tags)] if args.tags else []
        check_output(output, [source, *tags, *(_label_files(source.stem, known) if known else ())])
        if args.output is None and exists(output) and not args.overwrite:
            raise OptionError(f"{output} exists; name it with -o, or add --overwrite.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            notes = load_notes(source)
            labels = _labels(source.stem, known) if known else None
        for warning in caught:
            talk(f"warning: {source}: {warning.message}")
        ends = [note.offset for note in (*notes, *(labels.notes if labels else ()))]
        end = args.start + args.seconds if args.seconds else max(ends, default=0.0)
        view, title = View(args.start, end), args.title or source.stem
        families = [panel for path in tags for panel in read_tags(path, source.stem)]
        figure = draw(notes, view, title=title, labels=labels, families=families)
        write_output(output, to_bytes(figure, kind))
        print(output)
        return ExitCode.OK


def _labels(name: str, path: Path) -> Labels:
    files = _label_files(name, path)
    if not files:
        raise OptionError(f"There are no labels of {name} in {path} ({', '.join(SUFFIXES)}).")
    return read_labels(files)


def _label_files(name: str, path: Path) -> tuple[Path, ...]:
    return find_labels(name, path) if is_folder(path) else (path,)


def _positive(text: str) -> float:
    if _seconds(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length in seconds, above 0")
    return _seconds(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds, 0 or more")
    return value
