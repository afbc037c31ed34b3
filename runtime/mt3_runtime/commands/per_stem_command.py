"""`mt3 transcribe --per-stem`: transcribes a folder of separated stems into one result.

Everything that can go wrong by names, models and places is found before any model is loaded.  A
stem that cannot be read ends the command: a song without its bass would look like a result.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mt3_runtime.cli import ExitCode, talk
from mt3_runtime.commands.folder_inputs import find_inputs
from mt3_runtime.commands.jobs import Job, parse_formats, plan
from mt3_runtime.commands.results import (
    REPEATED,
    check_stdout,
    check_tempo,
    keep_out,
    tell,
    tell_changes,
    tell_warnings,
    write,
)
from mt3_runtime.errors import AudioError, BundleError, OptionError
from mt3_runtime.filesystem.atomic import STDOUT, check_output, is_folder
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.models.installed import MODEL_VARIABLE, installed_models, resolve_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.notes.stems import OTHER, STEMS
from mt3_runtime.per_stem import StemFile, StemModel, merge, model_for, stem_files
from mt3_runtime.progress import Meter
from mt3_runtime.stem_routing.lineup_choice import LineupChoice, Route, relabelled, route
from mt3_runtime.stem_routing.slakh_folder import slakh_files
from mt3_runtime.transcription import Transcription


def run_per_stem(args: argparse.Namespace) -> int:
    """Does it all; arguments are those of `mt3 transcribe`.

    Raises:
        AudioError: A file cannot be read.
        BundleNotFoundError: There is no model for a stem.
        OptionError: The options contradict each other, or a name says no stem.
        OutputError: The result cannot be written.
    """
    _check(args)
    found = slakh_files(args.files, _ignore if args.quiet else talk)
    files = stem_files(find_inputs(args.files, tell=_refuse)) if found is None else found
    paths = [file.path for file in files]
    job = _plan(args, paths)
    chosen = _choose(files, args)
    for model in chosen:
        keep_out(model.path, [job])
    if not args.quiet:
        for model, some in chosen.items():
            names = ", ".join(dict.fromkeys(planned.file.stem.name for planned in some))
            talk(f"{model.path.name}: {names}")
    begin = time.perf_counter()
    with warnings.catch_warnings():
        for kind in REPEATED:
            warnings.simplefilter("ignore", kind)
        results = [
            found for model, some in chosen.items() for found in _transcribe(model, some, args)
        ]
    order = {path: place for place, path in enumerate(paths)}
    results.sort(key=lambda found: order[found[0].path])
    for file, result in results:
        tell_warnings(result, file.path)
        if args.report:
            tell_changes(result, file.path)
    whole = merge(result for _, result in results)
    written = write(whole, job, args.tempo)
    if not args.quiet:
        tell(whole, job, written, speed=whole.duration / (time.perf_counter() - begin))
    return ExitCode.OK


def _check(args: argparse.Namespace) -> None:
    if args.instruments or args.exclude:
        raise OptionError(
            "--per-stem chooses instruments by the stems; leave --instruments and --exclude out."
        )
    if STDOUT in args.files:
        raise OptionError("--per-stem tells stems by the names of files; standard input has none.")


def _refuse(passed_over: str) -> None:
    raise AudioError(
        f"{passed_over}. A song needs all its stems: convert these files, or name those to take."
    )


def _plan(args: argparse.Namespace, paths: list[Path]) -> Job:
    """The one job: its source, for names made up, is the folder."""
    folders = [name for name in args.files if is_folder(name)]
    if args.output is None and not (len(args.files) == len(folders) == 1):
        raise OptionError("Name the result of several stems with -o, or name one folder of stems.")
    formats = () if args.format is None else parse_formats(args.format)
    source = Path(folders[0]).absolute() if folders else paths[0]
    stems = tuple(stem.name for stem in STEMS) if args.split else ()
    (job,) = plan(
        [source], output=args.output, formats=formats, stems=stems, overwrite=args.overwrite
    )
    check_stdout(job)
    check_tempo([job], args.tempo)
    for result in job.results:
        # A folder that is to be made has been looked at.
        if result.path != STDOUT and is_folder(Path(result.path).parent):
            check_output(result.path, paths)
    return job


def _ignore(_message: str) -> None:
    """Says nothing."""


def _choose(files: list[StemFile], args: argparse.Namespace) -> dict[StemModel, list[Route]]:
    """The files of each model that is needed."""
    installed: list[StemModel] = []
    for path in installed_models().values():
        try:
            installed.append(StemModel.at(path))
        except BundleError as error:
            talk(f"warning: {path} is left out: {error}")
    named = args.model or os.environ.get(MODEL_VARIABLE)
    if not named and not any(model.stem.name == OTHER for model in installed):
        installed += [StemModel.at(path) for path in shipped_models().values()]
    general = StemModel.at(resolve_model(named)) if named else None
    wanted = None if args.lineup is None else LineupChoice(args.lineup)
    chosen: dict[StemModel, list[Route]] = {}
    for file in files:
        model = model_for(file, installed, general)
        chosen.setdefault(model, []).append(route(file, model, wanted))
    return chosen


def _transcribe(
    model: StemModel, routes: list[Route], args: argparse.Namespace
) -> Iterator[tuple[StemFile, Transcription]]:
    """Transcribes the files of one model, those of equal instruments together."""
    from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

    lineups = dict.fromkeys(planned.lineup for planned in routes)
    with load_model(
        model.path,
        device=args.device,
        threads=args.threads,
        auto_filter=AUTO_FILTERS[args.auto_filter],
        decoding=args.decoding,
        profile=args.profile,
    ) as loaded:
        for lineup in lineups:
            some = [planned for planned in routes if planned.lineup == lineup]
            results = loaded.transcribe_many(
                [planned.file.path for planned in some],
                instruments=lineup,
                grammar=args.grammar,
                min_confidence=args.min_confidence,
                smooth=args.smooth,
                upstream_quirks=args.upstream_quirks,
            )
            for planned in some:
                with Meter(planned.file.path.name, unit="s", quiet=args.quiet):
                    result = relabelled(next(results), planned.program)
                yield planned.file, replace(result, stem_files=(planned.to_dict(),))
