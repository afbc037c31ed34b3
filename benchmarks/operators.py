"""Where the time of a bundle's graphs goes, by operator: encoder, and decoder step of 16 rows.

One thread runs each graph many times under ONNX Runtime's profiler.  A node counts with the least
time it ever took: other work on the machine only adds to it.  Nodes are summed up by operator, and
``left`` is what the fastest whole run took beyond them (the executor, and the profiler itself).

    python benchmarks/operators.py --bundle exact/ --other fast/
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from materials import bundle, parser, report

from mt3_runtime.backends.ort_common import expected_shapes, import_onnxruntime
from mt3_runtime.backends.ort_cpu import ENTRIES, KINDS
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.bench_command import columns

ROLES = ("encoder", "decoder")

#: Tokens said before the step: about the middle of a segment.
POSITION = 48

#: Columns of the self caches, as they are for such a position.
CAPACITY = 64

#: Outputs that are written over an input.
SAME = {"next_ids": "token_ids"}


def main() -> None:
    """Profiles all bundles in turns and reports."""
    made = parser(__doc__)
    made.add_argument("--other", type=Path, action="append", default=[], help="another bundle")
    made.add_argument("--rows", type=int, default=16, help="rows of a decoder step")
    made.add_argument("--repeats", type=int, default=20, help="runs of a graph in a round")
    options = made.parse_args()
    paths = [bundle(options), *options.other]
    with report(options, rows=options.rows) as (result, lines):
        for role in ROLES:
            found: dict[str, dict[str, float]] = {str(path): {} for path in paths}
            for path in options.runs * paths:
                for key, took in profiled(path, role, options).items():
                    known = found[str(path)]
                    known[key] = min(took, known.get(key, took))
            result[role] = found
            lines.extend([role, *text(found), ""])


def profiled(path: Path, role: Any, options: Any) -> dict[str, float]:
    """Least microseconds of every node of a graph, as ``OPERATOR name``, and of the whole."""
    runtime, opened = import_onnxruntime(), Bundle(path)
    graph = opened.graph(role, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.enable_profiling = True
        settings.profile_file_prefix = f"{folder}/profile"
        for key, value in ENTRIES.items():
            settings.add_session_config_entry(key, value)
        session = runtime.InferenceSession(str(path / graph.file), settings)
        binding = session.io_binding()
        kept = fill(binding, opened, graph, options.rows)
        whole = []
        for _ in range(options.repeats):
            begin = time.perf_counter()
            session.run_with_iobinding(binding)
            whole.append(time.perf_counter() - begin)
            if "token_ids" in kept:
                kept["token_ids"][:] = 1004
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    least: dict[str, float] = {"whole": min(whole) * 1e6}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            key = f"{event['args']['op_name']} {event['name'].removesuffix('_kernel_time')}"
            least[key] = min(float(event["dur"]), least.get(key, np.inf))
    return least


def fill(binding: Any, opened: Bundle, graph: Any, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Binds noise of the right sizes; the caches are input and output at once."""
    rng, precision = np.random.default_rng(0), opened.manifest.precision
    rows = rows if graph.role == "decoder" else 1
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    given = {
        "positions": np.full(rows, POSITION, np.int32),
        "allowed": np.ones((rows, opened.manifest.model.vocab_size), np.bool_),
        "token_ids": np.full((rows, 1), 1004, np.int64),
    }
    for name, shape in expected_shapes(opened.manifest, graph).items():
        sizes = [rows, *(CAPACITY if isinstance(size, str) else size for size in shape)]
        same = SAME.get(name) or name.replace("present_cross", "cross").replace("present_", "past_")
        kind = precision.cross_cache if "cross" in name else precision.self_cache
        cached = "cross" in name or name.startswith("past_")
        if name in given or same in arrays:
            arrays[name] = given[name] if name in given else arrays[same]
        elif name.endswith("_ids"):
            arrays[name] = np.zeros(sizes, np.int64)
        elif cached and kind == "int8":
            arrays[name] = rng.integers(-40, 40, sizes).astype(np.int8)
        else:
            arrays[name] = rng.normal(size=sizes).astype(KINDS[kind] if cached else np.float32)
    for names, bind in ((graph.inputs, binding.bind_input), (graph.outputs, binding.bind_output)):
        for name in names:
            array = arrays[name]
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    return arrays


def text(found: dict[str, dict[str, float]]) -> list[str]:
    """A table with a column per bundle: milliseconds by operator."""
    sums: dict[str, dict[str, list[float]]] = {}
    for path, nodes in found.items():
        by: dict[str, list[float]] = defaultdict(list)
        for key, took in nodes.items():
            if key != "whole":
                by[key.partition(" ")[0]].append(took)
        by["left"] = [max(nodes["whole"] - sum(map(sum, by.values())), 0.0)]
        by["whole"] = [nodes["whole"]]
        sums[path] = by
    names = sorted(
        {name for by in sums.values() for name in by},
        key=lambda name: (name in ("whole", "left"), name == "whole",
                          -max(sum(by.get(name, [0])) for by in sums.values())),
    )  # fmt: skip
    rows = [["operator", *(f"{Path(path).name}: ms (nodes)" for path in found)]]
    for name in names:
        cells = [(sum(by.get(name, [])) / 1e3, len(by.get(name, []))) for by in sums.values()]
        rows.append([name, *(f"{took:.2f} ({count})" if count else "-" for took, count in cells)])
    return columns(rows)


if __name__ == "__main__":
    main()
