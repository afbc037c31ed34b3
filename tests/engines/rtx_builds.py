"""Parses and builds with the true TensorRT for RTX; runs in the environment that has it.

    python -m tests.engines.rtx_builds JOBS

JOBS is JSON: a list of jobs, each with the keys of `Job`.  Every graph of a job is parsed, and
built where the job says so; what came out goes to stdout as one JSON list of objects.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt3_engines.building.builder import Tools, build_engine, prepared_graph
from mt3_engines.building.compiler_log import heard
from mt3_engines.optional import import_polygraphy, import_tensorrt
from mt3_engines.storage.keys import EngineTarget
from mt3_engines.storage.requests import BuildOptions, make_keys
from mt3_engines.storage.shapes import make_plan
from mt3_engines.storage.store import EngineStore
from mt3_engines.versions import RTX
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import MT3Error


@dataclass
class Job:
    """One set of engines; ``form`` is the TensorRT whose form the graphs have, or empty for RTX."""

    bundle: str
    precision: str = "fp16"
    form: str = ""
    slots: tuple[int, ...] = (1, 4)
    capacities: tuple[int, ...] = (64,)
    targets: tuple[str, ...] = RTX.targets
    stripped: bool = False
    build: bool = False
    roles: tuple[str, ...] = ("encoder", "decoder")


def parse(poly: Any, graph: bytes) -> dict[str, Any]:
    """What the parser says, and the types and shapes of what goes in and out."""
    with heard() as said:
        try:
            _, network, _ = poly.network_from_onnx_bytes(graph, strongly_typed=True)
        except Exception as error:  # noqa: BLE001  polygraphy has one class for everything
            return {"errors": [said.reason(error)]}
    ports = [network.get_input(i) for i in range(network.num_inputs)]
    ports += [network.get_output(i) for i in range(network.num_outputs)]
    kinds = [str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers)]
    types = {port.name: str(port.dtype).rpartition(".")[2] for port in ports}
    return {"errors": said.errors, "types": types, "layers": kinds}


def main() -> None:
    logging.basicConfig(level=logging.CRITICAL)
    tensorrt, poly = import_tensorrt(RTX), import_polygraphy(RTX)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        store = EngineStore(Path(folder))
        for job in (Job(**fields) for fields in json.loads(sys.argv[1])):
            bundle = Bundle(Path(job.bundle))
            plan = make_plan(bundle.manifest, tuple(job.slots), tuple(job.capacities))
            wish = BuildOptions(job.precision, stripped=job.stripped)
            place = EngineTarget(
                tensorrt.__version__, job.targets[0], "", "rtx", tuple(job.targets)
            )
            other = EngineTarget(job.form, "9.0", "GPU") if job.form else place
            tools = Tools(tensorrt, poly, place, lambda: None)
            for key in make_keys(bundle, plan, wish, other):
                if key.role not in job.roles:
                    continue
                result = {"role": key.role, "capacity": key.capacity}
                try:
                    result |= parse(poly, prepared_graph(bundle, key).SerializeToString())
                    if job.build:
                        info = build_engine(bundle, key, store=store, tools=tools)
                        result |= {"size": info.size, "seconds": info.build_seconds}
                except MT3Error as error:
                    result["errors"] = [str(error)]
                found.append(result)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
