"""Resident memory of an engine over hours of live audio, and over thousands of recordings.

Three recordings with few notes are fed over and over as fast as the engine takes them; files of
a second are submitted as soon as there is room.  Memory is read at twenty moments evenly apart, and
told at once.  The first quarter is for allocators to take what they go on using; what counts is by
how much the peak of the last quarter lies above that of the second.
"""

from __future__ import annotations

import resource
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import STATE, talk
from materials import bundle, parser, report

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.engine import Engine, LiveInput
from mt3_runtime.errors import EngineBusyError
from mt3_runtime.loading import load_model
from mt3_runtime.transcription import Handle

RATE = 16000
#: A segment of these costs half of what one of the song does, and the hours are what matters.
CALM = ("violin_solo.mp3", "drums_fdnb.wav", "guitar_loop.wav")
MOMENTS = 20
MOST_GROWTH = 0.05

Samples = npt.NDArray[np.float32]


def main() -> None:
    """Measures both and reports; the exit status is 1 where memory grows."""
    made = parser(__doc__)
    made.add_argument("--hours", type=float, default=10.0, help="of live audio")
    made.add_argument("--files", type=int, default=10_000, help="WAV files of a second")
    made.add_argument("--threads", type=int, default=usable_cores())
    options = made.parse_args()
    samples = np.concatenate([load_audio(options.audio / name) for name in CALM])
    facts = {"hours": options.hours, "files": options.files, "threads": options.threads}
    with (
        report(options, **facts) as (result, lines),
        load_model(bundle(options), device="cpu", threads=options.threads) as model,
    ):
        with model.engine() as engine:
            live = list(map(_told, _live(engine, samples, round(options.hours * 3600))))
        with model.engine() as engine:
            files = list(map(_told, _files(engine, _written(samples), options.files)))
        found = {"live": live, "files": files}
        grown = {name: _growth(sizes) for name, sizes in found.items()}
        result.update(resident=found, growth=grown, same=max(grown.values()) <= MOST_GROWTH)
        table = [["", "resident MiB at the moments", "growth"]]
        for name, sizes in found.items():
            row = " ".join(f"{size / 2**20:.0f}" for size in sizes)
            table.append([name, row, f"{grown[name]:.1%}"])
        lines.extend(columns(table))
    if not result["same"]:
        raise SystemExit(f"memory grows by more than {MOST_GROWTH:.0%}")


def _live(engine: Engine, samples: Samples, seconds: int) -> Iterator[int]:
    with engine.open_live() as live:
        feeding = threading.Thread(target=_feed, args=(live, samples, seconds))
        feeding.start()
        due = seconds / MOMENTS
        for event in live.events():
            while event.time >= due:
                yield resident()
                due += seconds / MOMENTS
        feeding.join()
    yield resident()


def _feed(live: LiveInput, samples: Samples, seconds: int) -> None:
    for second in range(seconds):
        begin = second * RATE % (len(samples) - RATE)
        while not live.feed(samples[begin : begin + RATE]):
            time.sleep(0.01)
    live.end()


def _files(engine: Engine, files: list[Path], count: int) -> Iterator[int]:
    every, waiting = max(1, count // MOMENTS), list[Handle]()
    for number in range(count):
        while True:
            try:
                waiting.append(engine.submit(files[number % len(files)], priority="batch"))
                break
            except EngineBusyError:
                waiting.pop(0).result()
        if len(waiting) == 64:
            waiting.pop(0).result()
        if number % every == every - 1:
            yield resident()
    for handle in waiting:
        handle.result()


def _written(samples: Samples) -> list[Path]:
    """A WAV file of every second."""
    folder = STATE / "seconds"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{begin // RATE:03}.wav" for begin in range(0, len(samples) - RATE, RATE)]
    for number, file in enumerate(files):
        with wave.open(str(file), "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(RATE)
            part = samples[number * RATE : (number + 1) * RATE]
            sound.writeframes((part * 32767).astype("<i2").tobytes())
    return files


def _growth(sizes: list[int]) -> float:
    """By which share the last quarter's peak lies above the second quarter's."""
    quarter = len(sizes) // 4
    return max(sizes[-quarter:]) / max(sizes[quarter : 2 * quarter]) - 1.0


def _told(size: int) -> int:
    talk(f"resident: {size / 2**20:.1f} MiB")
    return size


def resident() -> int:
    """Bytes of memory that this process holds now; Linux."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


if __name__ == "__main__":
    main()
