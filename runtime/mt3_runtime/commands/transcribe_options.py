"""The options of `mt3 transcribe`, and what their values may be."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import get_args

from mt3_runtime.batch.records.shard import Shard
from mt3_runtime.decoding.search import SearchName
from mt3_runtime.files.formats import FORMATS
from mt3_runtime.files.midi import MAX_TEMPO, MIN_TEMPO
from mt3_runtime.leakage.leakage_report import AUTO_FILTERS
from mt3_runtime.reading.reader_limits import MOST_READERS
from mt3_runtime.stem_routing.lineup_choice import LineupChoice

#: More threads than any machine this runs on has cores; each costs memory.
_MAX_THREADS = 1024

#: A recording or a pause longer than this is a slip of the keyboard [s].
_MAX_SECONDS = 1e7

_MAX_RETRIES = 100

BATCH_OPTIONS = (
    *("files_from", "null", "recursive", "restart", "skip_existing", "no_journal", "shard"),
    *("watch", "timeout", "max_duration", "retries", "fail_fast", "report_to"),
)
"""Names of the options that say how many files are gone through."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds all options."""
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="audio file, folder of audio files, or -")
    add("-m", "--model", help="bundle, or name of a model (default: $MT3_MODEL, else the only "
        "installed one, else default)")  # fmt: skip
    add("-o", "--output", metavar="OUT", help="file, folder or - (default: beside each input)")
    add(
        "-f",
        "--format",
        metavar="LIST",
        help=f"one or more of {', '.join(FORMATS)} (default: by the suffix of OUT, else midi)",
    )
    add("--tempo", type=_tempo, metavar="BPM", help="of MIDI files (default: 120)")
    add("--split", choices=("stems",), help="write a file per stem, NAME.STEM.mid")
    add(
        "--per-stem",
        action="store_true",
        help="the files are stems of one song, told by their names: one result of all",
    )
    add(
        "--lineup",
        choices=tuple(LineupChoice),
        help="with --per-stem, what may occur in a file: exactly its instruments, their families, "
        "or any, relabelled (default: by the stem)",
    )
    add("--overwrite", action="store_true", help="replace files not named with -o, too")
    add("-q", "--quiet", action="store_true", help="only warnings and errors on stderr")
    _add_batch_options(parser)
    _add_model_options(parser)


def _add_batch_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("many files").add_argument
    add("-r", "--recursive", action="store_true", help="search folders to their ends")
    add("--files-from", metavar="LIST", help="a file with names of inputs, one a line; - for stdin")
    add("-0", "--null", action="store_true", help="names in LIST end with zero bytes")
    add("--restart", action="store_true", help="do again what the journal says is done")
    add("--skip-existing", action="store_true", help="pass over files whose results exist")
    add("--no-journal", action="store_true", help="keep no record in the folder of the results")
    add("--collisions", choices=("suffix", "refuse"), default="suffix", help="inputs with one name "
        "get results with their suffix, NAME.wav.mid (default), or none")  # fmt: skip
    add("--shard", type=_shard, metavar="K/N", help="do the K-th of N parts of the files")
    add("--watch", action="store_true", help="go on with files that come into the folders")
    add("--settle", type=_seconds, default=2.0, metavar="SECONDS", help="with --watch, how long a "
        "file must not change (default: 2)")  # fmt: skip
    add("--timeout", type=_seconds, metavar="SECONDS", help="give up a file that takes longer")
    add("--max-duration", type=_seconds, metavar="SECONDS", help="refuse longer recordings")
    add("--retries", type=_retries, default=0, metavar="N", help="try again what could not be read "
        "or written, up to N times")  # fmt: skip
    add("--fail-fast", action="store_true", help="stop at the first file that fails")
    add("--report-to", metavar="FILE", help="write what became of each file, as .json or .csv")
    add(
        "--progress",
        choices=("bar", "json", "none"),
        default="bar",
        help="on stderr: a bar on terminals (default), a line of JSON every 10 seconds, or none",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--device",
        default="auto",
        help="auto (default), cpu, cuda[:N], tensorrt[:N], rtx[:N], plugin:NAME[:N]",
    )
    add("--threads", type=_count, metavar="N", help="CPU threads (default: chosen for you)")
    add("--readers", type=_readers, default=0, metavar="N", help="processes that decode files and "
        "make features, where one thread keeps the device waiting (default: 0, none)")  # fmt: skip
    add("--profile", metavar="NAME", help="graph profile (default: the device's best)")
    add(
        "--decoding",
        choices=get_args(SearchName),
        default="greedy",
        help="greedy (default), or t5x: the search of Magenta's own notebook",
    )
    add(
        "--instruments",
        metavar="LIST",
        help="only these may occur: names, families, program numbers, drums; with commas; or "
        "auto: whom a tagger and a first transcription hear",
    )
    add("--exclude", metavar="LIST", help="these may not occur")
    add("--grammar", action="store_true", help="the model may only say what means something")
    add(
        "--min-confidence",
        type=_share,
        default=0.0,
        metavar="P",
        help="leave out notes that are right with a lower probability, 0 to 1",
    )
    add(
        "--auto-filter",
        choices=AUTO_FILTERS,
        default="on",
        help="repair drum hits on melodic instruments: on (default), classic: mt3-infer's "
        "rules, or off",
    )
    add("--no-auto-filter", dest="auto_filter", action="store_const", const="off", help="off")
    add("--smooth", action="store_true", help="repair programs that slip for one segment")
    add("--report", action="store_true", help="say which notes were changed, and why")
    add(
        "--upstream-quirks",
        action="store_true",
        help="imitate the original implementation's slips, for comparisons",
    )


def given(args: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Those of some options that were given, as one types them."""
    chosen = [name for name in names if getattr(args, name, None) not in (None, False, 0)]
    return ["--" + name.replace("_", "-") for name in chosen]


def _number(low: float, high: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:  # false for NaN
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return parse


_tempo = _number(
    MIN_TEMPO,
    MAX_TEMPO,
    f"a number of quarters per minute, {MIN_TEMPO:g} to {MAX_TEMPO:g}",
)
_share = _number(0.0, 1.0, "a number from 0 to 1")
_seconds = _number(
    1e-3, _MAX_SECONDS, f"a number of seconds, more than 0 (at most {_MAX_SECONDS:g})"
)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_THREADS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of threads, 1 or more (at most {_MAX_THREADS})"
        )
    return int(text)


def _up_to(most: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) > most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}, 0 to {most}")
        return int(text)

    return parse


_retries = _up_to(_MAX_RETRIES, "further tries")
_readers = _up_to(MOST_READERS, "processes")


def _shard(text: str) -> Shard:
    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
