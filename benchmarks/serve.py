"""The service over loopback, against the engine without it and against a lock.

Ways take turns in one run, all with the same clips, and must give the same tokens:

* ``throughput``: so many clips at once, submitted to an engine in this process, and posted;
* ``clients``: so many clients with a clip each, against benchmarks/lock_service.py: the median one
  and 19 of 20;
* ``first note`` of a song of three minutes, as it is told;
* ``leaving``: a client leaves in the middle: when its rows are free;
* ``connections``: a thousand at once: what is answered, and the memory of the process;
* ``start``: from the command to the first answer that it is ready;
* ``size``: what the extra brings.
"""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import soundfile
from common import ROOT
from materials import parser, report, song

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.reading.reader_limits import ReaderLimits

RATE = 16000
POST = "/v1/transcriptions"
TIMEOUT = 1200.0
EXTRA = ("starlette", "uvicorn", "websockets", "python-multipart", "prometheus_client", "h11",
         "click", "anyio", "idna")  # fmt: skip
Found = list[tuple[float, str]]  # seconds until it was done, and its token digest


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--clips", type=int, default=64, help="recordings that are asked for at the same time")
    add("--few", type=int, default=16, help="clients of the other comparison with the lock")
    add("--seconds", type=float, default=10.0, help="length of each")
    add("--song", type=float, default=180.0, help="seconds of the song")
    add("--connections", type=int, default=1000)
    add("--model", help="bundle or name (default: the package's own)")
    options = made.parse_args()
    samples = load_audio(song(options.audio, options.clips * options.seconds))
    clips = [_flac(part) for part in np.array_split(samples, options.clips)]
    short = _flac(samples[: 2 * RATE])
    long = _flac(np.resize(samples, round(options.song * RATE)))
    with report(options, clips=options.clips, seconds=options.seconds) as (result, lines), \
            ExitStack() as stack:  # fmt: skip
        model = stack.enter_context(load_model(*_given(options)))
        model.warmup()
        service, pid, started = stack.enter_context(_service(options))
        lock = stack.enter_context(_lock_service(options))
        rounds = [_round(model, service, lock, clips, options.few) for _ in range(options.runs)]
        _check_same(rounds)
        lines.extend(columns(_rows(rounds)))
        whole = {
            name: median(max(t for t, _ in each[name]) for each in rounds) for name in rounds[0]
        }
        share = whole["engine"] / whole["service"]
        notes = [_first_note(service, long) for _ in range(options.runs)]
        leaving = [_leave(service, long) for _ in range(options.runs)]
        crowd = asyncio.run(_crowd(service, pid, short, options.connections))
        starts = [started, *(_start_seconds(options) for _ in range(options.runs))]
        size = _extra_megabytes()
        lines += [
            f"throughput over HTTP: {share:.1%} of the engine's",
            f"first note of {options.song:g} s: {median(notes):.2f} s",
            f"rows free after a client left: {median(leaving) * 1000:.0f} ms",
            f"{options.connections} connections at once: {crowd}",
            f"start to ready: {median(starts):.2f} s",
            f"the extra [serve] brings {size:.1f} MB",
        ]
        times = [{name: [t for t, _ in found] for name, found in each.items()} for each in rounds]
        result.update(rounds=times, share=share, first_note=notes, leaving=leaving)
        result.update(crowd=crowd, starts=starts, megabytes=size)


def _round(model: Model, service: str, lock: str, clips: list[bytes], few: int) -> dict[str, Found]:
    return {
        "engine": _submitted(model, clips),
        "service": asyncio.run(_posted(service, clips)),
        "lock": asyncio.run(_posted(lock, clips)),
        "service, few": asyncio.run(_posted(service, clips[:few])),
        "lock, few": asyncio.run(_posted(lock, clips[:few])),
    }


def _whole(found: Found) -> float:
    """Seconds until all were done."""
    return max(seconds for seconds, _ in found)


def _given(options: Any) -> list[str]:
    return [options.model] if options.model else []


def _flac(samples: np.ndarray[Any, Any]) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, RATE, format="FLAC")
    return held.getvalue()


def _submitted(model: Model, clips: list[bytes]) -> Found:
    """To an engine as the service has it, from files as it has them."""
    with tempfile.TemporaryDirectory() as folder, \
            model.engine(readers=1, limits=ReaderLimits.untrusted()) as engine:  # fmt: skip
        engine.submit(io.BytesIO(clips[0])).result()  # its reader process is there
        paths = []
        for number, clip in enumerate(clips):
            paths.append(Path(folder) / f"{number}.flac")
            paths[-1].write_bytes(clip)
        begin, found = time.perf_counter(), dict[int, float]()
        handles = [engine.submit(path, client=str(n)) for n, path in enumerate(paths)]
        for number, handle in enumerate(handles):
            handle.add_done_callback(
                lambda _, number=number: found.setdefault(number, time.perf_counter() - begin)
            )
        digests = [handle.result().token_digest for handle in handles]
        return [(found[number], digest) for number, digest in enumerate(digests)]


async def _posted(url: str, clips: list[bytes]) -> Found:
    """Each by a client of its own, all at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=url, timeout=TIMEOUT, limits=limits, trust_env=False
    ) as client:
        await client.post(POST, content=clips[0])
        begin = time.perf_counter()

        async def one(clip: bytes) -> tuple[float, str]:
            answer = await client.post(POST, content=clip)
            answer.raise_for_status()
            return time.perf_counter() - begin, answer.headers["x-mt3-token-digest"]

        return list(await asyncio.gather(*map(one, clips)))


def _first_note(url: str, recording: bytes) -> float:
    begin = time.perf_counter()
    accept = {"accept": "application/x-ndjson"}
    with httpx.stream(
        "POST", url + POST, content=recording, headers=accept, timeout=TIMEOUT, trust_env=False
    ) as answer:
        for line in answer.iter_lines():
            if '"note_on"' in line:
                return time.perf_counter() - begin
    raise SystemExit("the song has no note")


def _leave(url: str, recording: bytes) -> float:
    """Seconds from a client's leaving until no row is its."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as made:
        head = (
            f"POST {POST} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(recording)}\r\n\r\n"
        )
        made.sendall(head.encode() + recording)
        while not _health(url)["decoding_segments"]:
            time.sleep(0.005)
    begin = time.perf_counter()
    while (now := _health(url))["decoding_segments"] or now["recordings"]:
        time.sleep(0.002)
    return time.perf_counter() - begin


def _head(body: bytes) -> bytes:
    lines = (f"POST {POST} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _health(url: str) -> dict[str, Any]:
    answer = httpx.get(url + "/health/ready", trust_env=False).json()
    (model,) = answer["models"].values()
    return dict(model)


async def _crowd(url: str, pid: int, clip: bytes, count: int) -> dict[str, Any]:
    """So many uploads at once: statuses, the slowest refusal, and memory."""
    host, port = url.removeprefix("http://").split(":")
    before, refused = _memory(pid, "VmRSS"), list[float]()

    async def one() -> str:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return "not connected"
        begin = time.perf_counter()
        reading = asyncio.create_task(reader.readline())
        with suppress(ConnectionError):
            writer.write(_head(clip) + clip)
            await writer.drain()
        try:
            line = await reading
        except ConnectionError:
            return "cut off"
        writer.close()
        status = line.split(b" ")[1].decode() if line else "nothing"
        if status in ("429", "503"):
            refused.append(time.perf_counter() - begin)
        return status

    statuses = Counter(await asyncio.gather(*(one() for _ in range(count))))
    return {
        "statuses": dict(statuses),
        "slowest_refusal_seconds": round(max(refused, default=0.0), 3),
        "rss_mib_before": before,
        "rss_mib_most": _memory(pid, "VmHWM"),
    }


def _memory(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = [line for line in text.splitlines() if line.startswith(name)]
    return int(line.split()[1]) // 1024


@contextmanager
def _service(options: Any) -> Iterator[tuple[str, int, float]]:
    """A service in a process of its own: its address, its number, and how long it took to start."""
    model = ["-m", options.model] if options.model else []
    with tempfile.TemporaryDirectory() as folder:
        command = ["serve", *model, "--port", str(_free_port()), "--spool", folder, "--rate", "1e6"]
        port = command[command.index("--port") + 1]
        with _process(["-m", "mt3_runtime", *command], f"http://127.0.0.1:{port}") as found:
            yield found


@contextmanager
def _lock_service(options: Any) -> Iterator[str]:
    port = str(_free_port())
    command = [str(ROOT / "benchmarks" / "lock_service.py"), port, *_given(options)]
    with _process(command, f"http://127.0.0.1:{port}") as (url, _, _):
        yield url


@contextmanager
def _process(words: list[str], url: str) -> Iterator[tuple[str, int, float]]:
    begin = time.perf_counter()
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL) as started:  # noqa: S603  ours
        try:
            while True:
                with suppress(httpx.TransportError):
                    if httpx.get(url + "/health/ready", trust_env=False).status_code == 200:
                        break
                if started.poll() is not None:
                    raise SystemExit(f"{words} ended with {started.returncode}")
                time.sleep(0.01)
            yield url, started.pid, time.perf_counter() - begin
        finally:
            started.terminate()


def _start_seconds(options: Any) -> float:
    with _service(options) as (_, _, seconds):
        return seconds


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def _extra_megabytes() -> float:
    """Of what the extra brings beside what the CPU needs, unpacked."""
    total = 0
    for name in EXTRA:
        for file in metadata.files(name) or ():
            with suppress(OSError):
                total += Path(str(file.locate())).stat().st_size * (file.suffix != ".pyc")
    return total / 1e6


def _check_same(rounds: list[dict[str, Found]]) -> None:
    expected = [digest for _, digest in rounds[0]["engine"]]
    for each in rounds:
        for name, found in each.items():
            if [digest for _, digest in found] != expected[: len(found)]:
                raise SystemExit(f"{name} gave other tokens")


def _rows(rounds: list[dict[str, Found]]) -> list[list[str]]:
    table = [["way", "clips", "all", "median", "p95"]]
    for name in rounds[0]:
        times = [[seconds for seconds, _ in each[name]] for each in rounds]
        figures = [median(map(f, times)) for f in (max, median, lambda t: np.quantile(t, 0.95))]
        table.append([name, str(len(times[0])), *(f"{figure:.2f}" for figure in figures)])
    return table


if __name__ == "__main__":
    main()
