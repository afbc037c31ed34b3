"""What a test of the Ray adapters does on a local cluster of two workers; runs where Ray is.

    python ray_recipe.py JOB FOLDER [ARGUMENT ...]

Prints one JSON object as its last line.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# A cluster on a busy machine may take minutes to come up; it has no strangers on it.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_agent_register_timeout_ms": "300000",
}

sys.path.insert(0, str(Path(__file__).parents[2]))

import ray

from mt3_server.ray import service, transcribe_files
from tests.pace import until
from tests.server.triton_wheel import free_ports

WORKERS = 2

#: Seconds for one answer.
PATIENCE = 240.0


def processes_named(name: str) -> list[int]:
    """Processes below this one that Ray calls so."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            called = (place / "cmdline").read_bytes().decode(errors="replace")
            if called.startswith(f"ray::{name}") and os.getpid() in ancestors(int(place.name)):
                found.append(int(place.name))
        except OSError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def memory() -> int:
    """Bytes of all processes below this one."""
    total = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpid() in [int(place.name), *ancestors(int(place.name))]:
                pages = int((place / "statm").read_text("ascii").split()[1])
                total += pages * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue
    return total


def run(inputs: list[str], output: str, **options: Any) -> dict[str, Any]:
    report = transcribe_files(inputs, output, actors=WORKERS, **options)
    return {
        "done": report.count("done"),
        "skipped": report.count("skipped"),
        "failed": [row._asdict() for row in report.rows if row.status == "failed"],
        "repeated": report.repeated,
        "wall": round(report.wall, 1),
    }


def recordings(folder: Path, songs: str) -> dict[str, Any]:
    """Recordings of a folder, then again, then to and from what stands for an object store."""
    formats = ("json", "midi", "parquet")
    first = run([songs], str(folder / "out"), formats=formats)
    again = run([songs], str(folder / "out"), formats=formats)
    other = run([songs], str(folder / "out"), formats=formats, min_confidence=0.5)
    store = run(
        [f"file://{songs}"], f"file://{folder}/store", formats=("json",),
        journal=str(folder / "journal"),
    )  # fmt: skip
    return {"first": first, "again": again, "other": other, "store": store, "memory": memory()}


def killed(folder: Path, songs: str) -> dict[str, Any]:
    """Many files, and one of the actors killed when some are done."""
    done: Counter[str] = Counter()
    dead: list[int] = []

    def tell(row: Any) -> None:
        done[row.source] += 1

    def kill() -> None:
        while len(done) < 5:
            time.sleep(0.05)
        victims = processes_named("MapWorker")
        dead.extend(victims[:1])
        os.kill(victims[0], signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    found = run([songs], str(folder / "killed"), formats=("midi", "jsonl"), tell=tell)
    journal = (folder / "killed" / ".mt3-batch.jsonl").read_text("utf-8").splitlines()
    lines = Counter(item["source"] for item in map(json.loads, journal) if item["status"] == "done")
    return {
        **found,
        "dead": len(dead),
        "lines": sorted(lines.values()),
        "told": sorted(done.values()),
        "again": run([songs], str(folder / "killed"), formats=("midi", "jsonl")),
    }


def served(folder: Path, port: str, *names: str) -> dict[str, Any]:
    """Each recording whole and note by note, then again with a replica killed."""
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    began = time.monotonic()
    serve.run(service(replicas=WORKERS), name="mt3")
    found: dict[str, Any] = {"ready": round(time.monotonic() - began, 1)}
    for name in names:
        data = Path(name).read_bytes()
        events, first, whole = stream(port, data)
        content, summary = post(port, data)
        found[name] = {"notes": json.loads(content)["notes"], "summary": summary,
                       "events": events, "first": first, "whole": whole}  # fmt: skip
    victim = processes_named("ServeReplica")[0]
    os.kill(victim, signal.SIGKILL)
    time.sleep(2.0)
    data = Path(names[0]).read_bytes()
    answers = [post(port, data)[1]["token_digest"] for _ in range(4)]
    found |= {"killed": answers, "memory": memory(), "wrong": wrong(port)}
    serve.shutdown()
    return found


def ask(port: str, data: bytes, query: str = "", accept: str = "*/*") -> urllib.request.Request:
    return urllib.request.Request(
        f"http://127.0.0.1:{port}/{query}", data, {"Accept": accept}, method="POST"
    )


def post(port: str, data: bytes, tries: int = 3) -> tuple[bytes, dict[str, Any]]:
    """The answer; asks again, as a client does, if the replica that had it has died."""
    for left in reversed(range(tries)):
        try:
            with urllib.request.urlopen(ask(port, data), timeout=PATIENCE) as answer:
                return answer.read(), json.loads(answer.headers["X-MT3-Summary"])
        except OSError:
            if not left:
                raise
            time.sleep(1.0)
    raise AssertionError


def stream(port: str, data: bytes) -> tuple[list[Any], float, float]:
    """Events, and the seconds until the first and the last of them."""
    began, first, events = time.monotonic(), 0.0, []
    with urllib.request.urlopen(ask(port, data, "?format=events"), timeout=PATIENCE) as answer:
        for line in answer:
            first = first or time.monotonic() - began
            events.append(json.loads(line))
    return events, round(first, 2), round(time.monotonic() - began, 2)


def wrong(port: str) -> dict[str, Any]:
    """What is said of requests that cannot be answered."""
    found: dict[str, Any] = {}
    for name, data, query in (
        ("empty", b"", ""), ("text", b"no audio " * 100, ""), ("option", b"RIFF", "?formats=midi"),
        ("number", b"RIFF", "?min_confidence=high"),
    ):  # fmt: skip
        try:
            with urllib.request.urlopen(ask(port, data, query), timeout=PATIENCE) as answer:
                found[name] = [answer.status, answer.read().decode()]
        except urllib.error.HTTPError as error:
            found[name] = [error.code, json.loads(error.read())]
    return found


@contextmanager
def cluster(cores: int, tries: int = 5) -> Iterator[None]:
    """A cluster of this machine's, to which this process is connected.

    Its processes give each other seconds to come up, which on a busy machine is not enough: it is
    tried again then.
    """
    for left in reversed(range(tries)):
        process, port = _start(cores)
        try:
            until(lambda: process.poll() is not None or _listens(port))  # noqa: B023  of this turn
            ray.init(
                f"127.0.0.1:{port}", log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
            )  # fmt: skip
        except Exception:
            process.terminate()
            process.wait()
            ray.shutdown()
            if not left:
                raise
            continue
        try:
            yield
        finally:
            ray.shutdown()
            process.terminate()
            process.wait()
        return


def _start(cores: int) -> tuple[subprocess.Popen[bytes], int]:
    names = (
        "port", "node-manager-port", "object-manager-port", "dashboard-agent-grpc-port",
        "dashboard-agent-listen-port", "runtime-env-agent-port", "metrics-export-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block",
         f"--num-cpus={cores}", "--include-dashboard=false", "--disable-usage-stats",
         "--node-ip-address=127.0.0.1", "--object-store-memory=200000000",
         *(f"--{name}={port}" for name, port in ports.items())],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return process, ports["port"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Does one job on a cluster of its own."""
    job, folder, *arguments = sys.argv[1:]
    jobs = {"recordings": recordings, "killed": killed, "served": served}
    with cluster(WORKERS):
        found = jobs[job](Path(folder), *arguments)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
