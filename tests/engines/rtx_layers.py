"""Kernels that the true TensorRT for RTX makes of a bundle; runs in the environment that has it.

    python -m tests.engines.rtx_layers BUNDLE PRECISION SLOTS [CAPACITY]

Without a GPU no engine can be inspected, but with detailed layer information the compiler's own log
lists every kernel of an engine: name, kind, tensors that it reads and writes with their types, and
the nodes of ONNX that went into it.  One JSON object goes to stdout: by role the size, the seconds,
and a list of lists of kernels, one for each optimisation profile.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from mt3_engines.building.builder import prepared_graph, profiles
from mt3_engines.storage.keys import EngineKey, EngineTarget
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import make_plan
from mt3_runtime.bundles.bundle import Bundle

#: One kernel in the log.
KERNEL = re.compile(r"Name: ([^,]+), LayerType: (\w+), Inputs: (.*?), Outputs: (.*?), TacticName")
TENSOR = re.compile(r"Name: ([^,]+), Dimensions: \[([\d,]*)\].*?Datatype: (\w+)")
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def build(trt: Any, bundle: Bundle, key: EngineKey) -> dict[str, Any]:
    """Builds an engine with one profile and reads its kernels from the log."""
    said: list[str] = []

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            said.append(text)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(prepared_graph(bundle, key).SerializeToString())
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(key.targets)
    for number, target in enumerate(key.targets):
        name = f"SM{target.replace('.', '')}"
        config.set_compute_capability(getattr(trt.ComputeCapability, name), number)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for shapes in profiles(bundle.manifest, key):
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape, shape, shape)
        config.add_optimization_profile(profile)
    started = time.monotonic()
    engine = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    kernels = [kernel for text in said for line in text.splitlines() if (kernel := read(line))]
    return {"layers": network.num_layers, "size": engine.nbytes, "seconds": seconds,
            "kernels": kernels}  # fmt: skip


def read(line: str) -> dict[str, Any] | None:
    """A kernel of the log, if the line is one."""
    found = KERNEL.search(line)
    if not found:
        return None
    name, kind, inputs, outputs = found.groups()
    inputs = inputs.partition(", Constants:")[0]
    sides = {"reads": inputs, "writes": outputs}
    tensors = {side: [list(t) for t in TENSOR.findall(text)] for side, text in sides.items()}
    return {"name": name, "kind": kind, "nodes": NODE.findall(line), **tensors}


def main() -> None:
    import tensorrt_rtx as trt

    path, precision, slots, *capacity = sys.argv[1:]
    bundle, targets = Bundle(Path(path)), ("8.9",)
    place = EngineTarget(trt.__version__, targets[0], "", "rtx", targets)
    longest = bundle.manifest.decoding.max_tokens
    plan = make_plan(
        bundle.manifest, tuple(map(int, slots.split(","))), (int(*capacity or [longest]),), (1,)
    )
    found = {}
    for key in make_keys(bundle, plan, BuildOptions(precision), place):  # type: ignore[arg-type]
        found.setdefault(key.role, build(trt, bundle, key))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
