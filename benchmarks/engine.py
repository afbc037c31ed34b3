"""The engine against one call after another and against `transcribe_many`.

Four questions, each answered by ways that take turns in one process with one loaded model:

* ``clips``: so many clips are asked for at the same time.  When is the median one done, when are 19
  of 20, and how much CPU does a clip take?
* ``short``: a clip is asked for behind a long file.  When is it done?
* ``live``: blocks come as they are played, while a batch runs.  When are the notes of a segment
  there, after its last block?
* ``cancel``: a recording that has all slots is cancelled.  How many steps and encoder runs begin
  after that, and when has the last one ended?

All ways must give the same tokens.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from common import ROOT, STATE, talk
from materials import parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.backends.ort_cpu import InPlaceLane
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.engine import Engine, LiveInput
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model

Clip = npt.NDArray[np.float32]
Found = list[tuple[float, str]]  # seconds until it was done, and its token digest
RATE = 16000
PARTS = ("clips", "short", "live", "cancel")

#: Recordings that are cancelled, each at another moment.
CANCELS = 10


class Asked(NamedTuple):
    """What is measured with a model.

    Attributes:
        clips: Recordings that are asked for at the same time.
        seconds: Length of each.
        rounds: How many times.
        parts: Of `PARTS`.
    """

    clips: int
    seconds: float
    rounds: int
    parts: tuple[str, ...] = ("clips",)


DEFAULT = (Asked(16, 10.0, 3, PARTS), Asked(64, 10.0, 3), Asked(16, 2.0, 5))
OTHER = (Asked(16, 10.0, 2, PARTS),)


def main() -> None:
    """Runs all rounds with the default model, then with others, and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--models", nargs="*", default=["default"], help="names or bundles")
    add("--parts", nargs="*", default=PARTS, choices=PARTS, help="what is measured")
    add("--long", type=float, nargs="*", default=[60.0, 3600.0], help="seconds of long files")
    add("--live", type=float, default=100.0, help="seconds of live input")
    add("--threads", type=int, default=usable_cores())
    options = made.parse_args()
    facts = {"commit": _commit(), "threads": options.threads, "runs": {}}
    with report(options, **facts) as (result, lines):
        for name in options.models:
            with load_model(name, device="cpu", threads=options.threads) as model:
                model.warmup()
                for asked in DEFAULT if name == "default" else OTHER:
                    label = f"{asked.clips} clips of {asked.seconds:g} s, {model.info.name}"
                    talk(label)
                    found = _measured(model, asked, options)
                    result["runs"][label] = found
                    lines.extend([label, "", *_told(found), ""])


def _measured(model: Model, asked: Asked, options: argparse.Namespace) -> dict[str, Any]:
    parts = [part for part in asked.parts if part in options.parts]
    samples = load_audio(song(options.audio, asked.clips * asked.seconds))
    clips = np.array_split(samples, asked.clips)
    found: dict[str, Any] = {}
    if "clips" in parts:
        ways: dict[str, Callable[[], Found]] = {
            "one by one": partial(_one_by_one, model, clips),
            "transcribe_many": partial(_together, model, clips),
            "engine": partial(_submitted, model, clips),
        }
        found["rounds"] = [
            {name: _timed(way) for name, way in ways.items()} for _ in range(asked.rounds)
        ]
    if "short" in parts:
        found["short"] = {
            f"{long:g}": [_short(model, clips[0], _file(samples, long)) for _ in range(5)]
            for long in options.long
        }
    if "live" in parts:
        played = np.resize(samples, round(options.live * RATE))
        found["live"] = _live(model, played, np.resize(samples, 600 * RATE))
    if "cancel" in parts:
        found["cancel"] = _cancelled(model, np.resize(samples, 600 * RATE))
    return found


def _told(found: dict[str, Any]) -> Iterator[str]:
    if "rounds" in found:
        yield from columns(_rows(found["rounds"]))
    for long, shorts in found.get("short", {}).items():
        alone, behind = (median(each[way] for each in shorts) for way in ("alone", "behind"))
        yield f"a clip alone {alone:.2f} s, behind a file of {long} s {behind:.2f} s"
    if "live" in found:
        late = np.quantile(found["live"], 0.95) if found["live"] else float("nan")
        yield f"live beside a batch: 95 % of {len(found['live'])} segments within {late:.2f} s"
    if "cancel" in found:
        begun, ended = (max(each[key] for each in found["cancel"]) for key in ("begun", "seconds"))
        longest = max(each["longest"] for each in found["cancel"])
        yield (
            f"after a cancel a worker began {begun} steps or encoder runs at most, and the last "
            f"one ended {ended:.3f} s later; the longest of all took {longest:.3f} s"
        )


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _file(samples: Clip, seconds: float) -> Path:
    """A WAV file of the samples over and over."""
    path = STATE / f"tiled_{len(samples)}_{seconds:g}s.wav"
    if not path.exists():
        whole = (np.resize(samples, round(seconds * RATE)) * 32767).astype("<i2")
        part = path.with_suffix(".part")
        with wave.open(str(part), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes(whole.tobytes())
        part.replace(path)
    return path


def _one_by_one(model: Model, clips: list[Clip]) -> Found:
    begin, found = time.perf_counter(), []
    for clip in clips:
        digest = model.transcribe_notes(clip).token_digest
        found.append((time.perf_counter() - begin, digest))
    return found


def _together(model: Model, clips: list[Clip]) -> Found:
    begin = time.perf_counter()
    return [
        (time.perf_counter() - begin, result.token_digest)
        for result in model.transcribe_many(clips)
    ]


def _submitted(model: Model, clips: list[Clip]) -> Found:
    with model.engine() as engine:
        begin, ended = time.perf_counter(), dict[int, float]()
        handles = [engine.submit(clip, client=str(n)) for n, clip in enumerate(clips)]
        for number, handle in enumerate(handles):
            handle.add_done_callback(partial(_note_time, ended, number))
        digests = [handle.result().token_digest for handle in handles]
        return [(ended[n] - begin, digest) for n, digest in enumerate(digests)]


def _note_time(ended: dict[int, float], number: int, _: object) -> None:
    ended[number] = time.perf_counter()


def _timed(way: Callable[[], Found]) -> dict[str, Any]:
    begin, cpu = time.perf_counter(), time.process_time()
    found = way()
    return {
        "seconds": time.perf_counter() - begin,
        "cpu": (time.process_time() - cpu) / len(found),
        "median": median(seconds for seconds, _ in found),
        "p95": float(np.quantile([seconds for seconds, _ in found], 0.95)),
        "digests": [digest for _, digest in found],
    }


def _short(model: Model, clip: Clip, long: Path) -> dict[str, float]:
    with model.engine() as engine:
        begin = time.perf_counter()
        engine.submit(clip).result()
        alone = time.perf_counter() - begin
        batch = engine.submit(long)
        time.sleep(alone)
        begin = time.perf_counter()
        engine.submit(clip).result()
        behind = time.perf_counter() - begin
        batch.cancel()
        return {"alone": alone, "behind": behind}


def _live(model: Model, played: Clip, beside: Clip) -> list[float]:
    """Seconds from the last block of each whole segment to its first event."""
    segment, length = model.info.segments.samples / RATE, len(played) / RATE
    with model.engine() as engine:
        batch = [engine.submit(beside, priority="batch") for _ in range(4)]
        lags: dict[int, float] = {}
        with engine.open_live() as live:
            begin = time.perf_counter()
            feeding = threading.Thread(target=_play, args=(live, played, begin))
            feeding.start()
            for event in live.events():
                number = int(event.time / segment)
                due = (number + 1) * segment
                if due <= length:
                    lags.setdefault(number, time.perf_counter() - begin - due)
            feeding.join()
        _stop(engine, batch)
    return list(lags.values())


def _cancelled(model: Model, long: Clip) -> list[dict[str, float]]:
    """What workers begin after a cancel, and when they have ended."""
    found = []
    for number in range(CANCELS):
        with model.engine() as engine, _noted() as calls:
            handle = engine.submit(long)
            while not calls:
                time.sleep(0.01)
            time.sleep(0.3 + 0.07 * number)
            moment = time.perf_counter()
            handle.cancel()
            time.sleep(2.0)
        after = [lane for lane, begin, _ in calls if begin > moment]
        found.append({
            "begun": max((after.count(lane) for lane in set(after)), default=0),
            "seconds": max(0.0, *(end - moment for _, _, end in calls)),
            "longest": max(end - begin for _, begin, end in calls),
        })  # fmt: skip
    return found


@contextmanager
def _noted() -> Iterator[list[tuple[int, float, float]]]:
    """Lane, begin and end of every step and encoder run."""
    calls: list[tuple[int, float, float]] = []

    def noting(method: Callable[..., None]) -> Callable[..., None]:
        def noted(lane: InPlaceLane, *arguments: Any) -> None:
            begin = time.perf_counter()
            method(lane, *arguments)
            calls.append((id(lane), begin, time.perf_counter()))

        return noted

    before = {name: getattr(InPlaceLane, name) for name in ("step", "load")}
    for name, method in before.items():
        setattr(InPlaceLane, name, noting(method))
    try:
        yield calls
    finally:
        for name, method in before.items():
            setattr(InPlaceLane, name, method)


def _play(live: LiveInput, played: Clip, begin: float) -> None:
    block = RATE // 50
    for at in range(0, len(played), block):
        time.sleep(max(0.0, begin + (at + block) / RATE - time.perf_counter()))
        live.feed(played[at : at + block])
    live.end()


def _stop(engine: Engine, batch: list[Any]) -> None:
    for handle in batch:
        handle.cancel()
    engine.drain(10.0)


def _rows(rounds: list[dict[str, Any]]) -> list[list[str]]:
    table = [["way", "seconds", "median", "p95", "CPU s per clip", "same tokens"]]
    expected = rounds[0]["one by one"]["digests"]
    for name in rounds[0]:
        figures = [
            median(each[name][key] for each in rounds)
            for key in ("seconds", "median", "p95", "cpu")
        ]
        same = all(each[name]["digests"] == expected for each in rounds)
        table.append([name, *(f"{figure:.2f}" for figure in figures), "yes" if same else "NO"])
    return table


if __name__ == "__main__":
    main()
