"""The export routes side by side: the same tokens for every recording, nodes, and speed.

`direct` is the route that ships, with its profiles `cpu` and `compat`; `torch` and `jax2tf` are
traced from independent implementations (`mt3_export.routes.traced_graphs`) and have profile
`compat`, too.  All are run by the same runtime from the same features.  Bundles are made once and
kept; the traced ones in the environments that MT3_ORACLE_PYTHON (with onnx and onnxscript) and
MT3_JAX2TF_PYTHON name.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
from common import JAX2TF, ORACLE, ROOT, STATE, Worker, medians, talk
from materials import RECORDINGS, parser, report

from mt3_runtime.commands.bench_command import columns

#: Side -> (route, profile, the Python that can make it).
SIDES: dict[str, tuple[str, str, str | Path]] = {
    "direct": ("direct", "cpu", sys.executable),
    "direct compat": ("direct", "compat", sys.executable),
    "torch": ("torch", "compat", ORACLE),
    "jax2tf": ("jax2tf", "compat", JAX2TF),
}


def main() -> None:
    """Makes what is missing, runs all rounds and reports."""
    made = parser(__doc__)
    made.add_argument("--recordings", nargs="+", default=RECORDINGS)
    made.add_argument("--segments", type=int, help="use only so many of each recording")
    made.add_argument("--bundles", type=Path, default=STATE / "routes", help="where they are kept")
    options = made.parse_args()
    bundles = {side: _bundle(options, side) for side in SIDES}
    with report(options, recordings={}) as (result, lines):
        result["nodes"] = {side: _nodes(bundle) for side, bundle in bundles.items()}
        lines.extend(columns([["graph nodes", *SIDES], *_node_rows(result["nodes"])]))
        workers = {side: Worker("ours.py") for side in SIDES}
        for side, worker in workers.items():
            worker.ask("load", bundle=str(bundles[side]))
        for name in options.recordings:
            result["recordings"][name] = _rounds(workers, options, name)
        for worker in workers.values():
            worker.close()
        lines.extend(["", *_text(result["recordings"], options.runs)])


def _bundle(options: Any, side: str) -> Path:
    route, profile, python = SIDES[side]
    out = Path(options.bundles) / side.replace(" ", "_")
    if not (out / "bundle.json").exists():
        talk(f"exporting {options.checkpoint} to {out}")
        recipe = ROOT / "tests" / "export" / "route_recipe.py"
        command = [str(python), str(recipe), route, str(options.checkpoint), str(out), profile]
        subprocess.run(command, check=True)  # noqa: S603  our own script
    return out


def _nodes(bundle: Path) -> dict[str, int]:
    return {
        path.name.partition(".")[0]: len(onnx.load(path).graph.node)
        for path in sorted(bundle.glob("*.onnx"))
    }


def _node_rows(nodes: dict[str, dict[str, int]]) -> list[list[str]]:
    return [
        [role, *(str(found[role]) for found in nodes.values())] for role in ("encoder", "decoder")
    ]


def _rounds(workers: dict[str, Worker], options: Any, name: str) -> dict[str, list[dict[str, Any]]]:
    """Every side's answers for one recording, asked in turns."""
    audio, ready = str(options.audio / name), str(STATE / "features.npy")
    for worker in workers.values():
        worker.ask("features", audio=audio, out=ready, segments=options.segments)
    answers: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for _ in range(options.runs):
        for side, worker in workers.items():
            answers[side].append(worker.ask("forward"))
    return answers


def _text(recordings: dict[str, dict[str, list[dict[str, Any]]]], runs: int) -> list[str]:
    """Token digests and times: one row per recording."""
    digests = [["token digest", "segments", "tokens", *SIDES, "same tokens"]]
    times = [[f"seconds, median of {runs}", *SIDES]]
    for name, answers in recordings.items():
        first = [answers[side][0] for side in SIDES]
        different = max(
            sum(a != b for a, b in zip(found["each"], first[0]["each"], strict=True))
            for found in first
        )
        digests.append(
            [
                name,
                str(len(first[0]["lengths"])),
                str(sum(first[0]["lengths"])),
                *(found["digest"][:12] for found in first),
                "yes" if not different else f"NO: {different} segments differ",
            ]
        )
        times.append([name, *(f"{medians(answers[side]):.2f}" for side in SIDES)])
    return [*columns(digests), "", *columns(times)]


if __name__ == "__main__":
    main()
