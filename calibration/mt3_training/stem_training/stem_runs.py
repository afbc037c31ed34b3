"""Per-stem training: one run after another in a folder of models.

Contract: `StemRuns.train` trains the stems in turn, each in a run folder of its own, judges and
exports it, and writes the summary anew.  It may end at any moment: the same call goes on where the
running stem stands and passes over those that are complete.  A stem that fails is reported, and
the next one begins.

::

    MODELS/
      options.json      what was asked for; the same folder is refused for other things
      summary.json, summary.csv, summary.md
      STEM/             a run folder (`mt3_training.runs.checkpointing`)
        best.mt3        the bundle of its best weights, which says its stem
        judged.json     how it does beside the weights it began with
      stop, pause       make one of these files: as in a run folder, for all runs
      lock              held while a program works in the folder
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mt3_runtime.errors import BundleError, MT3Error, OptionError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_training.runs.checkpointing import CONFIG, SOUNDS, RunFolder, locked, stop_requested
from mt3_training.runs.learning_rate import Schedule
from mt3_training.shipping.trained import export_run
from mt3_training.stem_training.stem_judgement import judge, read_judgement
from mt3_training.stem_training.stem_summary import (
    StemResult,
    check_summary,
    installed_before,
    write_summary,
)

OPTIONS, BUNDLE = "options.json", "best.mt3"

FORMAT = "mt3-runtime.stem-options"

MADE_UP = "music that is made up"

SECONDS_PER_HOUR = 3600.0

Prepare = Callable[[str, Path], RunFolder]
"""Makes or opens the run folder of a stem."""

Train = Callable[[RunFolder, Callable[[], bool]], tuple[int, bool]]
"""Trains a run until it is complete or asked to stop; the step, and whether it is complete."""


class NoDataError(OptionError):
    """There is nothing to train a stem with."""


class StemRuns:
    """The runs of several stems in one folder.

    Args:
        models: The folder; made if it is not there.
        stems: Names of the stems, in order.
        options: What was asked for, as JSON; see `remember`.
        say: Told what happens, a line at a time.

    Raises:
        OptionError: The folder was made for other things.
        OutputError: It cannot be made, or files in it would be replaced.
    """

    def __init__(
        self,
        models: Path,
        stems: Sequence[str],
        options: Mapping[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.models, self._stems, self._options, self._say = models, stems, dict(options), say
        check_summary(models)
        make_folder(models)
        remember(models, self._options)
        self._installed = installed_before(models)

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other programs from training in the folder."""
        return locked(self.models)

    def train(
        self,
        prepare: Prepare,
        train: Train,
        sources: Callable[[RunFolder], Any],
        *,
        should_stop: Callable[[], bool],
        threads: int | None = None,
    ) -> list[StemResult]:
        """Trains what is not complete yet.

        Args:
            prepare: See `Prepare`; raises `NoDataError` for stems that cannot be trained.
            train: See `Train`.
            sources: Opens the examples of a run.
            should_stop: Asked between steps, and between stems.
            threads: Of the runtime that judges.

        Returns:
            A result per stem.

        Raises:
            OutputError: The summary cannot be written.
        """
        results = {stem: StemResult(stem, "waiting") for stem in self._stems}
        stopped = False

        def stop() -> bool:
            nonlocal stopped
            stopped = stopped or should_stop() or stop_requested(self.models)
            return stopped

        for number, stem in enumerate(self._stems, 1):
            self._say(f"[{number}/{len(self._stems)}] {stem}")
            results[stem] = self._one(stem, prepare, train, sources, stop, threads)
            self._say(f"[{number}/{len(self._stems)}] {_sentence(results[stem])}")
            if results[stem].status == "stopped":
                stopped = True
            write_summary(self.models, list(results.values()), self._options)
            if stopped or stop():
                break
        return list(results.values())

    def keep(self, results: Sequence[StemResult]) -> None:
        """Writes the summary of results that were changed since.

        Raises:
            OutputError: It cannot be written.
        """
        write_summary(self.models, results, self._options)

    def _one(
        self,
        stem: str,
        prepare: Prepare,
        train: Train,
        sources: Callable[[RunFolder], Any],
        stop: Callable[[], bool],
        threads: int | None,
    ) -> StemResult:
        """Trains and judges a stem; whatever goes wrong is its result."""
        place = self.models / stem
        try:
            folder = prepare(stem, place)
            folder.pausing = (self.models,)
            if not is_complete(folder):
                _, complete = train(folder, stop)
                if not complete:
                    return standing(stem, place, "stopped")
            judge(folder, sources(folder), threads=threads)
            export_best(folder)
        except NoDataError as error:
            return StemResult(stem, "no data", reason=str(error))
        except MT3Error as error:
            return replace(standing(stem, place, "failed"), reason=str(error))
        except Exception as error:  # noqa: BLE001  no stem may end the others: full memory, torch
            reason = f"{type(error).__name__}: {error}"
            return replace(standing(stem, place, "failed"), reason=reason)
        return replace(standing(stem, place, "complete"), installed=self._installed.get(stem, ""))


def remember(models: Path, options: Mapping[str, Any]) -> None:
    """Writes down what a folder of models is for, or checks it.

    Raises:
        OptionError: It was made for other things; the message says where they differ.
    """
    known = remembered(models)
    if known is None:
        document = {"format": FORMAT, **options}
        write_atomic(models / OPTIONS, (json.dumps(document, indent=1) + "\n").encode())
        return
    names = dict.fromkeys([*known, *options])
    differences = [
        f"{name}: {known.get(name)!r}, not {options.get(name)!r}"
        for name in names
        if known.get(name) != options.get(name)
    ]
    if differences:
        raise OptionError(
            f"{models} was begun with other options: {'; '.join(differences)}. Go on without "
            "naming any, or name a new folder."
        )


def remembered(models: Path) -> dict[str, Any] | None:
    """What a folder of models was made for; None for a new one.

    Raises:
        OptionError: The file is none of ours, or damaged.
    """
    path = models / OPTIONS
    if not path.exists():
        return None
    try:
        document = json.loads(path.read_bytes())
        ours = document.pop("format") == FORMAT
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        ours = False
    if not ours:
        raise OptionError(
            f"{path} cannot be read as the options of per-stem training; name a new folder for the "
            "models."
        )
    return dict(document)


def is_complete(folder: RunFolder) -> bool:
    """Whether a run has used up its budget."""
    document = folder.load_position()
    if document is None or folder.best() is None:
        return False
    return Schedule(folder.config).progress(document.step, document.seconds) >= 1.0


def export_best(folder: RunFolder) -> Path:
    """Writes the bundle of the best weights beside them, if it is not there.

    Raises:
        OutputError: Something else has its name, or it cannot be written.
    """
    from mt3_runtime.bundles.bundle import Bundle  # noqa: PLC0415  only here

    path, best = folder.path / BUNDLE, folder.best()
    try:
        source = Bundle(path).manifest.source if path.exists() else {}
    except BundleError:
        source = {}
    if best is None or source.get("step") != str(best.step):
        export_run(folder, path)
    return path


def standing(stem: str, place: Path, status: Any) -> StemResult:
    """What is known of a stem from its folder."""
    if not (place / CONFIG).is_file():
        return StemResult(stem, status)
    try:
        folder = RunFolder.existing(place)
        position = folder.load_position()
        sounds = json.loads((place / SOUNDS).read_bytes()) if (place / SOUNDS).is_file() else []
    except (MT3Error, OSError, ValueError):
        return StemResult(stem, status)
    banks = [bank for bank in sounds if not bank.get("held_out")]
    data = ", ".join(dict.fromkeys(str(bank.get("bank")) for bank in banks))
    licences = dict.fromkeys(str(bank.get("licence", "not stated")) for bank in banks)
    complete = status == "complete"
    return StemResult(
        stem,
        status,
        step=position.step if position else 0,
        examples=position.examples if position else 0,
        core_hours=position.cpu_seconds / SECONDS_PER_HOUR if position else 0.0,
        judgement=read_judgement(folder) if complete else None,
        data=f"recordings: {data}" if folder.config.index else f"{MADE_UP}: {data}",
        licence=", ".join(licences),
        bundle=f"{stem}/{BUNDLE}" if complete else "",
    )


def _sentence(result: StemResult) -> str:
    """A line about a stem."""
    scores = ""
    if result.judgement:
        scores = f"; onset F1 {result.judgement.best}"
        if result.judgement.gain.value is not None:
            scores += f", gain {result.judgement.gain}"
    reason = f": {result.reason}" if result.reason else ""
    return f"{result.stem}: {result.status} at step {result.step}{scores}{reason}"
