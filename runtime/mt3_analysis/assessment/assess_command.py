"""`mt3 assess`: judges performances on the piano; the result goes to stdout.

A take that fails is reported and the others are still done, unless takes are to be compared.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.errors import MT3Error, OptionError

if TYPE_CHECKING:
    from mt3_analysis.assessment.assessment_results import Comparison
    from mt3_analysis.assessment.performance_assessment import Assessed, Assessor

FORMATS = ("text", "json")


class AssessCommand:
    """Judges performances on the piano."""

    name = "assess"
    help = "judge performances on the piano, against a score or each other"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the takes, what they are judged by, and the shape of the result."""
        add = parser.add_argument
        add("takes", nargs="+", metavar="TAKE", help="MIDI file, or audio file to transcribe first")
        add("--score", metavar="FILE", help="what was to be played: MIDI or MusicXML (.mxl too)")
        add("--compare", action="store_true", help="put takes of one piece in order")
        add("--style", metavar="BUNDLE", help="judge style as well, by what `mt3 calibrate assess "
            "style` made")  # fmt: skip
        add("--reference", metavar="FILE", help="give percentiles, by what `mt3 calibrate assess "
            "reference` made")  # fmt: skip
        add("--measures", action="store_true", help="list all measures in text, too")
        add("-f", "--format", choices=FORMATS, default="text", help="default: text")
        add("--json", action="store_true", help="short for --format json")
        add("-o", "--output", default="-", metavar="OUT", help="default: standard output")
        add("--svg", metavar="FILE", help="draw the dimensions as bars with intervals")
        add("--roll", metavar="FILE", help="draw the notes of one take with what was wrong in them")
        add("-m", "--model", help="what transcribes audio, as for `mt3 transcribe`")
        add("--device", default="auto", help="of the transcription, as for `mt3 transcribe`")
        add("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
        add("-q", "--quiet", action="store_true", help="only errors on stderr")

    def run(self, args: argparse.Namespace) -> int:
        """Assesses all takes, compares them, writes the result and the pictures."""
        from mt3_runtime.filesystem.atomic import STDOUT, check_output  # noqa: PLC0415

        _check(args)
        takes = [Path(take) for take in args.takes]
        inputs = [*takes, *(Path(p) for p in (args.score, args.style, args.reference) if p)]
        for out in filter(None, (args.output, args.svg, args.roll)):
            if out != STDOUT:
                check_output(out, inputs)
        found, failed = _assessed(takes, args)
        comparisons = _compared(found, args) if args.compare else ()
        _write(args, [each for _, each in found], comparisons)
        return ExitCode.FAILED if failed else ExitCode.OK


def _check(args: argparse.Namespace) -> None:
    if args.compare and len(args.takes) < 2:
        raise OptionError("--compare puts several takes in order; give two or more.")
    if args.roll and len(args.takes) > 1:
        raise OptionError("--roll draws the notes of one take; give one.")
    if args.threads is not None and not 1 <= args.threads <= 1024:
        raise OptionError(f"--threads is {args.threads}; expected 1 to 1024.")
    outputs = [out for out in (args.output, args.svg, args.roll) if out]
    if len(set(outputs)) < len(outputs):
        raise OptionError("--output, --svg and --roll name one file; give each its own.")


def _assessed(
    takes: Sequence[Path], args: argparse.Namespace
) -> tuple[list[tuple[Assessor, Assessed]], int]:
    """What was said of every take that could be read, and the number of the others."""
    from mt3_analysis.assessment.performance_assessment import Assessor  # noqa: PLC0415  NumPy
    from mt3_analysis.assessment.score import MIDI_SUFFIXES  # noqa: PLC0415

    model = None
    if any(take.suffix.lower() not in MIDI_SUFFIXES and take.exists() for take in takes):
        from mt3_runtime.loading import load_model  # noqa: PLC0415  loads a session

        model = load_model(args.model, device=args.device, threads=args.threads)
    found, failed = [], 0
    try:
        assessor = Assessor(
            score=args.score, style=args.style, reference=args.reference, model=model
        )
        for take in takes:
            try:
                each = assessor.take(take)
            except MT3Error as error:
                if args.compare or len(takes) == 1:
                    raise
                talk(f"error: {error if take.name in str(error) else f'{take}: {error}'}")
                failed += 1
                continue
            found.append((assessor, each))
            for sentence in each.assessment.remarks if not args.quiet else ():
                talk(f"{take.name}: {sentence}")
    finally:
        if model is not None:
            model.close()
    return found, failed


def _compared(
    found: Sequence[tuple[Assessor, Assessed]], args: argparse.Namespace
) -> tuple[Comparison, ...]:
    del args
    assessor = found[0][0]
    return assessor.compare([each for _, each in found])


def _write(
    args: argparse.Namespace, found: Sequence[Assessed], comparisons: Sequence[Comparison]
) -> None:
    from mt3_analysis.assessment.assessment_results import document  # noqa: PLC0415
    from mt3_runtime.filesystem.atomic import write_output  # noqa: PLC0415

    assessments = [each.assessment for each in found]
    if not assessments:
        return
    if args.json or args.format == "json":
        text = json.dumps(document(assessments, comparisons), allow_nan=False) + "\n"
    else:
        text = render(found, comparisons, measures=args.measures)
    write_output(args.output, text.encode())
    if args.svg:
        from mt3_analysis.assessment.assessment_pictures import bars  # noqa: PLC0415

        write_output(args.svg, bars(assessments).encode())
    if args.roll:
        from mt3_analysis.assessment.assessment_pictures import roll  # noqa: PLC0415

        write_output(args.roll, roll(found[0].take).encode())


def render(
    found: Sequence[Assessed], comparisons: Sequence[Comparison], *, measures: bool = False
) -> str:
    """The result as people read it.

    Args:
        found: Takes in order.
        comparisons: Of them.
        measures: Whether all measures are listed.
    """
    lines: list[str] = []
    for each in found:
        said = each.assessment
        lines.append(f"{said.name}: {said.notes} notes, {said.duration_s:.1f} s")
        if said.alignment is not None:
            counts = said.alignment
            lines.append(
                f"against {counts.score}: {counts.matched} of {counts.written} notes as written, "
                f"{counts.wrong} wrong, {counts.missing} missing, {counts.extra} extra"
            )
        lines += [*said.lines(), ""]
        if measures:
            for measured in said.measures:
                value = "-" if measured.value is None else f"{measured.value:.4g} {measured.unit}"
                note = measured.reason or f"{measured.count} observations"
                lines.append(f"{measured.name.ljust(24)}  {value.ljust(20)}  {note}")
            lines.append("")
    for comparison in comparisons:
        lines += [*comparison.lines(), ""]
    return "\n".join(lines[:-1]) + "\n"
