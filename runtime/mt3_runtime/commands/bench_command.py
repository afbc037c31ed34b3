"""`mt3 bench`: measures speed and memory of a model on this machine.

Contract: every figure is the median of ``--runs`` repetitions in one process, after one warm-up;
beside the times stands the token digest: two rows with one digest did the same job.  The result
goes to stdout, as a table or as JSON; progress goes to stderr.

The three parts of the work are timed as a user can call them: ``features`` (decode, mix, resample,
spectrogram), ``network`` (encoder and decoder from ready features) and ``whole`` (file to MIDI).
The whole is shorter than the sum where threads compute features while others decode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mt3_runtime.cli import ExitCode
from mt3_runtime.commands.machine import describe, machine, peak_rss, versions
from mt3_runtime.diagnostics.speed_comparison import LEAST_RUNS, Comparison, compare, read_report
from mt3_runtime.errors import AudioError, OptionError
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.backends.base import FloatArray
    from mt3_runtime.model import Model
    from mt3_runtime.transcription import Transcription

T = TypeVar("T")

#: Length of the test signal in seconds: 15 segments of MT3, enough to fill the slots of two cores.
TEST_SECONDS = 30

#: Distributions whose versions decide the speed.
PACKAGES = ("mt3-runtime", "onnxruntime", "onnxruntime-gpu", "numpy", "soundfile", "soxr")


@dataclass(frozen=True)
class Timing:
    """One recording's figures; times are medians in seconds.

    Attributes:
        audio: File, or a name for the test signal.
        seconds: Length of the recording.
        segments: Segments it was cut into.
        tokens: Tokens decoded, ends of sequence not counted.
        notes: Notes found.
        features_s: Audio to features.
        network_s: Features to tokens.
        whole_s: Audio to MIDI.
        times_real_time: ``seconds / whole_s``.
        token_digest: SHA-256 over all tokens; see `mt3_runtime.model.token_digest`.
        runs_s: Audio to MIDI, each run; ``whole_s`` is their median.
    """

    audio: str
    seconds: float
    segments: int
    tokens: int
    notes: int
    features_s: float
    network_s: float
    whole_s: float
    times_real_time: float
    token_digest: str
    runs_s: tuple[float, ...]


class BenchCommand:
    """Times a model on given recordings or on a test signal."""

    name = "bench"
    help = "measure speed and memory on this machine"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the recordings, the model and the number of repetitions."""
        add = parser.add_argument
        add("audio", nargs="*", metavar="AUDIO", help=f"default: a {TEST_SECONDS} s test signal")
        add("-m", "--model", help="bundle, or name of a model (default: $MT3_MODEL, else the only "
            "installed one, else default)")  # fmt: skip
        add("--runs", type=int, default=3, metavar="N", help="repetitions (default: 3)")
        add("--json", action="store_true", help="print JSON instead of a table")
        add("--compare", metavar="OLD.json", help="report of an earlier --json: say what became "
            "slower or larger, by a test of all runs; exit code 1 if something did")  # fmt: skip
        add(
            "--device",
            default="auto",
            help="auto (default), cpu, cuda[:N], tensorrt[:N], rtx[:N], plugin:NAME[:N]",
        )
        add("--threads", type=int, metavar="N", help="CPU threads (default: chosen for you)")
        add("--profile", metavar="NAME", help="graph profile (default: the device's best)")

    def run(self, args: argparse.Namespace) -> int:
        """Measures and prints."""
        if args.runs < 1:
            raise OptionError(f"--runs must be at least 1, got {args.runs}.")
        for name in args.audio:
            if not Path(name).is_file():  # said before the model is loaded
                raise AudioError(f"There is no audio file at {name}.")
        old = None if args.compare is None else read_report(args.compare)
        if old is not None and args.runs < LEAST_RUNS:
            raise OptionError(
                f"--compare needs --runs {LEAST_RUNS} or more, got {args.runs}: fewer cannot tell "
                "a change from chance."
            )
        path = resolve_model(args.model)
        begin = time.perf_counter()
        from mt3_runtime.loading import load_model  # noqa: PLC0415  not needed for --help

        with load_model(
            path, device=args.device, threads=args.threads, profile=args.profile
        ) as model:
            load = time.perf_counter() - begin
            report = _report(model, args, load)
        found: list[Comparison] = []
        try:
            if old is not None:
                found = compare(old, report)
                report["compared"] = [asdict(one) for one in found]
        finally:  # what was measured is said, whether or not it can be compared
            text = "\n".join([table(report), *told(found)])
            print(json.dumps(report, indent=1) if args.json else text)
        return ExitCode.FAILED if any(one.regressed for one in found) else ExitCode.OK


def _report(model: Model, args: argparse.Namespace, load: float) -> dict[str, Any]:
    recordings: list[tuple[str, AudioSource]] = [(name, name) for name in args.audio]
    if not recordings:
        recordings = [(f"test signal, {TEST_SECONDS} s", plucked_notes(model.sample_rate))]
    warm_up, _ = timed(model.warmup)
    whole = [_time_whole(model, source, name, args.runs) for name, source in recordings]
    # Taken here: the parts below hold all features of a recording at once, the whole does not.
    peak = peak_rss()
    parts = [_time_parts(model, source, name, args.runs) for name, source in recordings]
    timings = [
        Timing(
            audio=name,
            seconds=result.duration,
            segments=len(result.segments),
            tokens=sum(report.token_count for report in result.segments),
            notes=len(result.notes),
            features_s=features_s,
            network_s=network_s,
            whole_s=whole_s,
            times_real_time=result.duration / whole_s,
            token_digest=result.token_digest,
            runs_s=runs_s,
        )
        for (name, _), (whole_s, runs_s, result), (features_s, network_s) in zip(
            recordings, whole, parts, strict=True
        )
    ]
    return {
        "model": {"name": model.info.name, "export_id": model.info.export_id},
        "precision": model.info.precision.name,
        "device": model.device,
        "machine": machine(),
        "versions": versions(PACKAGES),
        "runs": args.runs,
        "load_s": load,
        "warm_up_s": warm_up,
        "peak_rss_bytes": peak,
        "recordings": [asdict(timing) for timing in timings],
    }


def _time_whole(
    model: Model, source: AudioSource, name: str, runs: int
) -> tuple[float, tuple[float, ...], Transcription]:
    times = []
    for number in range(1, runs + 1):
        print(f"mt3: {name}: run {number} of {runs}", file=sys.stderr)
        begin = time.perf_counter()
        result = model.transcribe_notes(source)
        result.to_midi()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), tuple(times), result


def _time_parts(model: Model, source: AudioSource, name: str, runs: int) -> tuple[float, float]:
    print(f"mt3: {name}: features and network", file=sys.stderr)
    features_s, network_s = [], []
    for _ in range(runs):
        took, features = timed(partial(model.preprocess, source))
        features_s.append(took)
        took, _ = timed(partial(model.forward, features))
        network_s.append(took)
    return statistics.median(features_s), statistics.median(network_s)


def table(report: dict[str, Any]) -> str:
    """The report of one run for people."""
    peak = report["peak_rss_bytes"]
    installed = ", ".join(f"{name} {found}" for name, found in report["versions"].items())
    lines = [
        f"model    {report['model']['name']} ({report['precision']}), {report['device']}",
        f"machine  {describe(report['machine'])}",
        f"versions {installed}",
        f"load     {report['load_s']:.3f} s, first run {report['warm_up_s']:.3f} s more",
        f"memory   {'unknown' if peak is None else f'{peak / 2**20:.0f} MiB'} at most",
        "",
        f"median of {report['runs']}, in seconds:",
    ]
    header = ("audio", "length", "features", "network", "whole", "x real time", "tokens", "digest")
    rows = [header]
    for row in report["recordings"]:
        times = [f"{row[key]:.2f}" for key in ("seconds", "features_s", "network_s", "whole_s")]
        speed, tokens = f"{row['times_real_time']:.1f}", str(row["tokens"])
        rows.append((Path(row["audio"]).name, *times, speed, tokens, row["token_digest"][:12]))
    return "\n".join([*lines, *columns(rows)])


def told(found: Sequence[Comparison]) -> list[str]:
    """Lines of a comparison for people; none where nothing was compared."""
    if not found:
        return []
    rows = [("compared", "old", "new", "change", "chance", "verdict")]
    for one in found:
        if one.chance is None:
            old, new, chance = f"{one.old / 2**20:.0f} MiB", f"{one.new / 2**20:.0f} MiB", "-"
        else:
            old, new, chance = f"{one.old:.3f} s", f"{one.new:.3f} s", f"{one.chance:.4f}"
        rows.append((one.subject, old, new, f"{one.new / one.old - 1:+.1%}", chance, one.verdict))
    return ["", *columns(rows)]


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in rows
    ]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Runs ``work`` and returns the seconds it took, and its result."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def plucked_notes(rate: int) -> FloatArray:
    """Four plucked notes a second, up and down a pentatonic scale: float32 [TEST_SECONDS * rate].

    The same samples everywhere; any model of the family finds notes in it.
    """
    import numpy as np  # noqa: PLC0415  not needed for --help

    scale = (48, 51, 53, 55, 58, 60, 63, 65, 67, 70, 72, 70, 67, 65, 63, 60, 58, 55, 53, 51)
    signal = np.zeros(TEST_SECONDS * rate)
    note = np.arange(rate // 2) / rate  # each rings for half a second
    for number in range(4 * TEST_SECONDS - 1):
        pitch = 440.0 * 2.0 ** ((scale[number % len(scale)] - 69) / 12)
        tone = sum(np.sin(2 * np.pi * k * pitch * note) / k for k in range(1, 6))
        at = number * rate // 4
        signal[at : at + len(note)] += 0.1 * tone * np.exp(-8.0 * note)
    return signal.astype(np.float32)
