"""The engine against one call after another and against `transcribe_many`.

Three questions, each answered by ways that take turns in one process with one loaded model:

* ``clips``: so many clips are asked for at the same time.  When is the median one done, when are 19
  of 20, and how much CPU does a clip take?
* ``short``: a clip is asked for behind a long recording.  When is it done?
* ``live``: blocks come as they are played, while a batch runs.  When are the notes of a segment
  there, after its last block?

All ways must give the same tokens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from materials import bundle, parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.engine import Engine, LiveInput
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model

Clip = npt.NDArray[np.float32]
Found = list[tuple[float, str]]  # seconds until it was done, and its token digest
RATE = 16000


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--clips", type=int, default=16, help="recordings that are asked for at the same time")
    add("--seconds", type=float, default=10.0, help="length of each")
    add("--long", type=float, default=600.0, help="seconds of the long recording")
    add("--live", type=float, default=60.0, help="seconds of live input")
    add("--threads", type=int, default=usable_cores())
    options = made.parse_args()
    samples = load_audio(song(options.audio, options.clips * options.seconds))
    clips = np.array_split(samples, options.clips)
    facts = {"clips": options.clips, "seconds": options.seconds, "threads": options.threads}
    with (
        report(options, **facts) as (result, lines),
        load_model(bundle(options), device="cpu", threads=options.threads) as model,
    ):
        model.warmup()
        ways: dict[str, Callable[[], Found]] = {
            "one by one": partial(_one_by_one, model, clips),
            "transcribe_many": partial(_together, model, clips),
            "engine": partial(_submitted, model, clips),
        }
        rounds = [{name: _timed(way) for name, way in ways.items()} for _ in range(options.runs)]
        long = np.resize(samples, round(options.long * RATE))
        shorts = [_short(model, clips[0], long) for _ in range(options.runs)]
        lags = _live(model, np.resize(samples, round(options.live * RATE)), long)
        result.update(rounds=rounds, short=shorts, live=lags)
        lines.extend(columns(_rows(rounds)))
        alone, behind = (median(each[way] for each in shorts) for way in ("alone", "behind"))
        lines.append(f"a clip alone {alone:.2f} s, behind a long recording {behind:.2f} s")
        late = np.quantile(lags, 0.95) if lags else float("nan")
        lines.append(f"live beside a batch: 95 % of the segments within {late:.2f} s")


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


def _short(model: Model, clip: Clip, long: Clip) -> dict[str, float]:
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
    """Seconds from the last block of each segment to its first event."""
    segment = model.info.segments.samples / RATE
    with model.engine() as engine:
        batch = [engine.submit(beside, priority="batch") for _ in range(4)]
        lags: dict[int, float] = {}
        with engine.open_live() as live:
            begin = time.perf_counter()
            feeding = threading.Thread(target=_play, args=(live, played, begin))
            feeding.start()
            for event in live.events():
                number = int(event.time / segment)
                due = begin + (number + 1) * segment
                lags.setdefault(number, time.perf_counter() - due)
            feeding.join()
        _stop(engine, batch)
    return list(lags.values())


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
