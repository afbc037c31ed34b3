"""One side of scale_out.py: the engine, Triton, Ray Data or Ray Serve on a folder of clips.

    python scale_side.py triton|ray FOLDER ROUNDS THREADS

Runs in an environment that has the one or the other, with the package on its path.  The engine
alone and what it is compared with take turns, on the same files with the same threads, all asked
for at once.  Prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "300"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mt3_runtime import load_model

Side = Callable[[list[Path]], list[str]]
"""Takes files and returns the digests of their tokens, in order."""

PATIENCE = 600.0


def alone(threads: int) -> Side:
    """The engine in this process, with a reader as the others have."""
    model = load_model("default", threads=threads, device="cpu")
    model.warmup()
    engine = model.engine(readers=1)

    def run(files: list[Path]) -> list[str]:
        handles = [engine.submit(file) for file in files]
        return [handle.result().token_digest for handle in handles]

    return run


def turns(sides: dict[str, Side], files: list[Path], rounds: int) -> dict[str, Any]:
    """Seconds of each side by round, and whether all digests are equal."""
    found: dict[str, Any] = {"seconds": {name: [] for name in sides}}
    digests = set()
    for side in sides.values():
        side(files[:2])
    for _ in range(rounds):
        for name, side in sides.items():
            began = time.perf_counter()
            digests.add(tuple(side(files)))
            found["seconds"][name].append(round(time.perf_counter() - began, 3))
    return found | {"same": len(digests) == 1}


def triton(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """The models for Triton, once and decoupled."""
    from mt3_runtime.models.installed import resolve_model  # noqa: PLC0415
    from mt3_server.triton_models.repository import Settings, write_repository  # noqa: PLC0415
    from tests.server.triton_recipe import answer, grpc, inputs, serving, streamed  # noqa: PLC0415

    files = sorted(folder.glob("*.wav"))
    place = folder / "triton"
    write_repository(resolve_model("default"), place / "repository", Settings(threads=threads))
    paths = os.environ["PYTHONPATH"].split(os.pathsep)
    with serving(sys.executable, place / "repository", place / "server", paths) as server:

        def once(file: Path) -> str:
            with grpc.InferenceServerClient(server.grpc) as client:
                found = answer(client.infer("mt3", inputs(grpc, file.read_bytes())))
            return str(found["token_digest"])

        def decoupled(file: Path) -> str:
            return str(streamed(server, file.read_bytes())[-1]["told"]["token_digest"])

        def crowd(ask: Callable[[Path], str]) -> Side:
            def run(some: list[Path]) -> list[str]:
                with ThreadPoolExecutor(len(some)) as pool:
                    return list(pool.map(ask, some))

            return run

        sides = {"engine": alone(threads), "Triton, once": crowd(once),
                 "Triton, decoupled": crowd(decoupled)}  # fmt: skip
        return turns(sides, files, rounds) | {"memory": {"Triton, two models": server.rss()}}


def ray(folder: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Ray Serve with one replica of all threads, and Ray Data with one actor of one each."""
    from ray import serve  # noqa: PLC0415

    from mt3_server.ray import service, transcribe_files  # noqa: PLC0415
    from tests.server.ray_recipe import cluster, memory  # noqa: PLC0415
    from tests.server.triton_wheel import free_ports  # noqa: PLC0415

    files, port = sorted(folder.glob("*.wav")), free_ports(1)[0]

    def ask(file: Path) -> str:
        url = f"http://127.0.0.1:{port}/"
        request = urllib.request.Request(url, file.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=PATIENCE) as told:  # noqa: S310  ours
            return str(json.loads(told.headers["X-MT3-Summary"])["token_digest"])

    def served(some: list[Path]) -> list[str]:
        with ThreadPoolExecutor(len(some)) as pool:
            return list(pool.map(ask, some))

    count = 0

    def batch(some: list[Path]) -> list[str]:
        nonlocal count
        count += 1
        out = folder / f"ray{count}"
        transcribe_files([str(file) for file in some], str(out), model="default", device="cpu",
                         actors=threads, threads=1, formats=("midi",))  # fmt: skip
        lines = (out / ".mt3-batch.jsonl").read_text("utf-8").splitlines()
        done = {Path(item["source"]).name: item["token_digest"]
                for item in map(json.loads, lines) if item["status"] == "done"}  # fmt: skip
        return [done[file.name] for file in some]

    sides = {"engine": alone(threads), "Ray Serve": served, "Ray Data": batch}
    with cluster(2 * threads):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(service("default", cpus=threads, threads=threads), name="mt3")
        found = turns(sides, files, rounds) | {"memory": {"Ray, all processes": memory()}}
        serve.shutdown()
    return found


def main() -> None:
    """Runs one."""
    name, folder, rounds, threads = sys.argv[1:]
    found = {"triton": triton, "ray": ray}[name](Path(folder), int(rounds), int(threads))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
