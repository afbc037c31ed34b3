"""Nightly test results: run what is too long for every check, keep what came out, compare digests.

    python scripts/nightly_results.py run [PART ...]    (scripts/nightly, which makes environments)
    python scripts/nightly_results.py check [PART ...]  (.ci/run: was it run on this very code?)

Checked are the figures of README, too, which benchmarks/readme.py measures.

A part is the tests marked ``nightly(part=...)`` and the files whose change asks for a new run.  One
run writes one file into benchmarks/results; it holds a digest of the files of each part, so that a
later commit is covered by it as long as none of those files does anything else.  Where they lie,
and where lies what they import, makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import datetime as dt
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("benchmarks") / "results"
SOURCES = ("runtime", "export", "engines", "calibration", "tests")

#: Changes which kernels run, and with them figures.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8",
         "amx_bf16")  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What is run together.

    Attributes:
        files: Names of the files it covers; each occurs once below `SOURCES`.
        needs: What must be there, see tests/needs.py.
        command: What runs it.
    """

    files: tuple[str, ...]
    needs: tuple[str, ...] = ()
    command: str = ""


PARTS = {
    # The export route through JAX and TensorFlow.
    "jax2tf": Part(
        ("flax_network.py", "jax2tf_route.py", "jax2tf-requirements.txt", "route_recipe.py",
         "traced_graphs.py", "test_routes.py"),
        ("jax2tf",),
    ),
    # The true compiler: engines of every variant, in every precision it builds without a GPU.
    "compiler": Part(
        ("rtx-requirements.txt", "rtx_builds.py", "test_rtx_compiler.py"), ("rtx",)
    ),
    # A real Triton server, started from a wheel: recordings, crowds, clients that go.
    "triton": Part(
        ("triton-requirements.txt", "numpy1-requirements.txt", "triton_wheel.py",
         "triton_recipe.py", "test_triton_server.py", "tensors.py", "triton_instance.py",
         "triton_service.py", "repository.py", "request_options.py"),
        ("shared", "triton", "numpy1"),
    ),
    # A local Ray cluster of two workers: a batch of which one is killed, a service.
    "ray": Part(
        ("ray-requirements.txt", "ray_recipe.py", "test_ray_cluster.py", "ray_batch.py",
         "ray_plan.py", "ray_actor.py", "ray_service.py", "object_store.py", "note_table.py",
         "request_options.py", "journal.py"),
        ("shared", "ray"),
    ),
    # Whole recordings: T5X's search, the violin through all profiles and as stored in fp16.
    "recordings": Part(
        ("baselines.json", "search.py", "t5x_recordings.npz", "test_recordings.py",
         "test_t5x_golden.py"),
        ("shared",),
    ),
    # The service: 100,000 requests of what hypothesis draws, and recordings through HTTP.
    "serve": Part(
        ("access.py", "event_lines.py", "fuzzing.py", "job_runner.py", "job_store.py",
         "live_decoding.py", "live_protocol.py", "live_socket.py", "openapi.json", "refusals.py",
         "request_bodies.py", "request_work.py", "service.py", "service_app.py", "test_fuzz.py",
         "test_recordings_served.py", "transcribe_query.py", "transcription_route.py",
         "upload_spool.py", "uvicorn_server.py"),
        ("shared",),
    ),
    # One graph of a model, and the JavaScript runtime in Chromium and Firefox: whole recordings.
    "web": Part(
        ("complete_graph.py", "front_end_graph.py", "order_graph.py", "single_file.py",
         "in_browser.mjs", "pages_recipe.py", "pages-requirements.txt", "read_in_browser.mjs",
         "test_pages.py", "test_recordings_web.py", "web/page/engine.js",
         "web/page/worker.js", "web/src/assembler.js", "web/src/channels.js", "web/src/decoder.js",
         "web/src/features.js", "web/src/manifest.js", "web/src/midi.js", "web/src/reading.js",
         "web/src/resample.js", "web/src/segments.js", "web/src/transcribe.js",
         "web/src/vocabulary.js", "web/src/wav.js"),
        ("shared", "node", "node-modules", "chromium", "firefox", "pages"),
    ),
}  # fmt: skip

#: Figures of documents, and what they were measured on: checked like the parts, run by others.
FIGURES = {
    # README's table covers what most of the time goes through, from features to tokens.
    "readme": Part(
        ("filter_bank.py", "audio/log_mel.py", "resampling.py", "segments.py",
         "ort_common.py", "ort_cpu.py", "ort_session.py", "ort_slots.py", "ort_threads.py",
         "batching.py", "canonical_order.py", "grammar.py", "scheduler.py", "search.py",
         "slots.py", "step_costs.py", "strands.py", "token_masks.py",
         "decoder.py", "encoder.py", "graph_builder.py", "latent_blocks.py",
         "perceiver_encoder.py", "profiles.py"),
        command="python benchmarks/readme.py --write",
    ),
}  # fmt: skip


def find(root: Path, name: str) -> Path:
    """The file of that name; raises `SystemExit` unless there is exactly one."""
    found = [path for source in SOURCES for path in (root / source).rglob(name)]
    if len(found) != 1:
        places = ", ".join(str(path.relative_to(root)) for path in found) or "none"
        raise SystemExit(f"results: expected one file {name} in {', '.join(SOURCES)}, got {places}")
    return found[0]


def meaning(path: Path) -> bytes:
    """What a file does: of Python neither comments, nor docstrings, nor where imports come from.

    Imports of ours stand at the end, in order, by what they bring in.
    """
    data = path.read_bytes()
    if path.suffix != ".py":
        return data
    lines, imports = data.decode().splitlines(), set[str]()
    for node in ast.walk(ast.parse(data)):
        if isinstance(node, ast.ImportFrom | ast.Import):
            source = (getattr(node, "module", None) or node.names[0].name).partition(".")[0]
            if source != "tests" and not source.startswith("mt3_"):
                continue
            imports |= {f"{a.name.rpartition('.')[2]} {a.asname or ''}" for a in node.names}
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        for number in range(node.lineno - 1, node.end_lineno or node.lineno):
            lines[number] = ""
    kept = [line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join([*kept, *sorted(imports)]).encode()


def digest(part: Part, root: Path = ROOT) -> str:
    """SHA-256 of what the files of a part do."""
    total = hashlib.sha256()
    for name in sorted(part.files):
        said = hashlib.sha256(meaning(find(root, name))).hexdigest()
        total.update(f"{name} {said}\n".encode())
    return total.hexdigest()


def machine() -> dict[str, Any]:
    """The processor and what it can do."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    rows = [row.partition(":") for row in text.splitlines()]
    known = {key.strip(): value.strip() for key, _, value in rows}
    flags = known.get("flags", "").split()
    return {
        "cpu": known.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def git(*words: str) -> str:
    """What git says of this repository."""
    return subprocess.check_output(["git", *words], cwd=ROOT, text=True)  # noqa: S603, S607


def modules_with(name: str) -> list[Path]:
    """The test modules that have tests of a part."""
    modules = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in modules if f'nightly(part="{name}")' in path.read_text("utf-8")]


def run_part(name: str) -> dict[str, Any]:
    """Runs the tests of a part; returns what is kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", f"nightly(part='{name}')", "-rs"]
        command += ["-o", "junit_family=xunit1"]  # the one that holds figures
        command += map(str, modules_with(name))
        began = time.monotonic()
        done = subprocess.run(  # noqa: S603  pytest on names of our own
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            env=os.environ | {"MT3_REQUIRE": ",".join(PARTS[name].needs)},
            check=False,
        )
        seconds = round(time.monotonic() - began, 1)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []  # noqa: S314  ours
    return {"digest": digest(PARTS[name]), "exit": done.returncode, "seconds": seconds} | read(
        cases
    )


def read(cases: Iterable[ET.Element]) -> dict[str, Any]:
    """Outcomes and figures of the test cases of pytest's report."""
    tests, figures = dict[str, str](), dict[str, str]()
    for case in cases:
        kinds = {child.tag for child in case}
        failed, skipped = kinds & {"failure", "error"}, "skipped" in kinds
        name = f"{case.get('classname')}::{case.get('name')}"
        tests[name] = "failed" if failed else "skipped" if skipped else "passed"
        for figure in case.iter("property"):
            figures[figure.get("name", "")] = figure.get("value", "")
    counts = {kind: list(tests.values()).count(kind) for kind in ("passed", "failed", "skipped")}
    return {**counts, "tests": tests, "figures": figures}


def run(names: list[str]) -> int:
    """Runs parts and writes one result; returns 1 if a test failed."""
    for name in names:
        digest(PARTS[name])  # a table that is wrong is noticed before hours are spent
    now = dt.datetime.now(dt.UTC)
    whole = {
        "commit": git("rev-parse", "HEAD").strip(),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no").strip()),
        "date": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "parts": {name: run_part(name) for name in names},
    }
    some = "" if set(names) == set(PARTS) else "-" + "-".join(sorted(names))
    path = ROOT / FOLDER / f"nightly-{now.date()}{some}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))
    return int(not all(map(good, whole["parts"].values())))


def good(result: dict[str, Any]) -> bool:
    """Whether a part was run, and nothing failed or was left out."""
    return not result["exit"] and result["passed"] > 0 == result["failed"] + result["skipped"]


def check(root: Path = ROOT, parts: dict[str, Part] | None = None) -> list[str]:
    """What no result of this very code says to be well, a sentence each."""
    paths = sorted((root / FOLDER).glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    kept = [one for one in found if "parts" in one]
    faults = []
    for name, part in (PARTS | FIGURES if parts is None else parts).items():
        results = [(one["date"], one["parts"][name]) for one in kept if name in one["parts"]]
        now = digest(part, root)
        if any(good(result) and result["digest"] == now for _, result in results):
            continue
        last = max((date for date, result in results if good(result)), default="never")
        faults.append(
            f"{name} was not run on this code, whose files are {', '.join(part.files)} (last good "
            f"result: {last}); run {part.command or f'scripts/nightly {name}'} and commit {FOLDER}"
        )
    return faults


def main() -> int:
    """Runs or checks the parts that are named, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "check"))
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS | FIGURES))
    given = parser.parse_args()
    known = PARTS if given.what == "run" else PARTS | FIGURES
    if unknown := set(given.parts) - set(known):
        parser.error(f"no part {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    if given.what == "run":
        return run(given.parts or list(PARTS))
    faults = check(parts={name: known[name] for name in given.parts or known})
    for fault in faults:
        print(f"results: {fault}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
