"""What a test of the Triton models asks of a real server; runs in the environment of its client.

    python triton_recipe.py JOB FOLDER [ARGUMENT ...]

Prints one JSON object.  ``FOLDER`` has ``repository``, the model repository.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from tritonclient import grpc, http

from tests.server.triton_wheel import Server, serving

#: Seconds for one answer, on a busy machine.
PATIENCE = 240.0

PATHS = [path for path in os.environ.get("MT3_TESTED", "").split(os.pathsep) if path]


def input_of(module: Any, name: str, data: bytes) -> Any:
    tensor = module.InferInput(name, [1, len(data)], "UINT8")
    tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[np.newaxis])
    return tensor


def inputs(module: Any, audio: bytes, options: dict[str, Any] | None = None) -> list[Any]:
    told = [] if options is None else [input_of(module, "OPTIONS", json.dumps(options).encode())]
    return [input_of(module, "AUDIO", audio), *told]


def read(result: Any, name: str) -> bytes:
    return bytes(result.as_numpy(name).tobytes())


def answer(result: Any) -> dict[str, Any]:
    return {"file": read(result, "NOTES").decode(), **json.loads(read(result, "SUMMARY"))}


def streamed(
    server: Server, audio: bytes, options: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """All responses of the decoupled model to a request."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    found = []
    with grpc.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer(
            "mt3_stream", inputs(grpc, audio, options), enable_empty_final_response=True
        )
        while True:
            result, error = answers.get(timeout=PATIENCE)
            if error is not None:
                return [*found, {"error": str(error)}]
            item = result.get_response()
            if item.outputs:
                found.append({"notes": read(result, "NOTES").decode(),
                              "told": json.loads(read(result, "SUMMARY"))})  # fmt: skip
            if item.parameters["triton_final_response"].bool_param:
                return found


def recordings(server: Server, *names: str) -> dict[str, Any]:
    """Each file through both models, over HTTP and gRPC, whole and note by note."""
    found: dict[str, Any] = {}
    web = http.InferenceServerClient(server.http, network_timeout=PATIENCE)
    with grpc.InferenceServerClient(server.grpc) as client:
        for name in names:
            audio = Path(name).read_bytes()
            found[name] = {
                "grpc": answer(client.infer("mt3", inputs(grpc, audio))),
                "http": answer(web.infer("mt3", inputs(http, audio, {"format": "jsonl"}))),
                "stream": streamed(server, audio),
                "events": streamed(server, audio, {"format": "events"}),
            }
        found["rss"] = server.rss()
    web.close()
    return found


def crowd(server: Server, name: str, count: str) -> dict[str, Any]:
    """So many requests of one file at once to each model: all digests, and the seconds."""
    audio, many = Path(name).read_bytes(), int(count)

    def once(_: int) -> str:
        with grpc.InferenceServerClient(server.grpc) as client:
            result = client.infer("mt3", inputs(grpc, audio))
        return str(answer(result)["token_digest"])

    def decoupled(_: int) -> str:
        return str(streamed(server, audio)[-1]["told"]["token_digest"])

    found: dict[str, Any] = {}
    for model, ask in (("mt3", once), ("mt3_stream", decoupled)):
        began = time.monotonic()
        with ThreadPoolExecutor(many) as pool:
            digests = list(pool.map(ask, range(many)))
        found[model] = {"digests": digests, "seconds": round(time.monotonic() - began, 2)}
    return found


def processor(server: Server) -> float:
    """Seconds of processor time of the server and its processes."""
    group, ticks = os.getpgid(server.process.pid), 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                fields = (place / "stat").read_text("ascii").rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, ValueError):
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def cancelled(server: Server, name: str) -> dict[str, Any]:
    """Long requests of clients that go: the time until the server is idle, by processor time."""
    audio = Path(name).read_bytes()
    found: dict[str, Any] = {}
    for way in ("once", "json", "events"):
        client = grpc.InferenceServerClient(server.grpc)
        began = processor(server)
        if way == "once":
            calls = [client.async_infer("mt3", inputs(grpc, audio), _ignore) for _ in range(3)]
        else:
            client.start_stream(_ignore)
            for _ in range(3):
                client.async_stream_infer("mt3_stream", inputs(grpc, audio, {"format": way}))
        time.sleep(4.0)
        busy = processor(server)
        if way == "once":
            for call in calls:
                call.cancel()
        else:
            client.stop_stream(cancel_requests=True)
        client.close()
        before = busy - began
        began = time.monotonic()
        last = processor(server)
        while time.monotonic() - began < PATIENCE:
            time.sleep(1.0)
            now = processor(server)
            if now - last < 0.1:
                break
            last = now
        found[way] = {
            "before": round(before, 2),
            "idle_after": round(time.monotonic() - began, 1),
            "after": round(processor(server) - busy, 2),
        }
    return found


def _ignore(result: Any, error: Any) -> None:
    """Whoever has gone takes no answer."""


def refused(server: Server, *_: str) -> dict[str, Any]:
    """What is wrong with requests, and what is said."""
    found: dict[str, Any] = {}
    wrong = {
        "empty": (b"", None),
        "text": (b"this is no audio " * 100, None),
        "zeros": (bytes(100_000), None),
        "option": (b"RIFF", {"formats": "midi"}),
        "events": (b"RIFF", {"format": "events"}),
    }
    with grpc.InferenceServerClient(server.grpc) as client:
        for name, (audio, options) in wrong.items():
            try:
                client.infer("mt3", inputs(grpc, audio, options))
            except Exception as error:  # noqa: BLE001  what is said is looked at
                found[name] = str(error)
            found[f"{name} decoupled"] = streamed(server, audio, options)[-1].get("error")
        two = input_of(grpc, "AUDIO", b"RIFFRIFF")
        two.set_shape([2, 4])
        try:
            client.infer("mt3", [two])
        except Exception as error:  # noqa: BLE001  what is said is looked at
            found["two"] = str(error)
    return found


def broken(folder: Path, *paths: str) -> dict[str, Any]:
    """What a server says whose Python has something else ahead of what belongs there."""
    with serving(
        sys.executable, folder / "repository", folder / "broken", [*paths, *PATHS], ("mt3",),
        ready=False,
    ) as server:  # fmt: skip
        alive = server.process.poll() is None
    return {"alive": alive, "log": server.log.read_text("utf-8", "replace")}


def main() -> None:
    """Does one job."""
    job, folder, *arguments = sys.argv[1:]
    place = Path(folder)
    if job == "broken":
        found = broken(place, *arguments)
    else:
        jobs = {"recordings": recordings, "crowd": crowd, "cancelled": cancelled,
                "refused": refused}  # fmt: skip
        with serving(sys.executable, place / "repository", place / job, PATHS) as server:
            found = jobs[job](server, *arguments)
        found["exit"] = server.process.returncode
    print(json.dumps(found))


if __name__ == "__main__":
    main()
