"""Parses and builds single graphs with the true TensorRT for RTX, in the environment that has it.

    python -m tests.engines.rtx_graphs GRAPH LENGTH ...

LENGTH is what every free dimension of GRAPH is set to.  What came out goes to stdout as one JSON
list of objects: ``errors``, and ``size`` of the engine.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from mt3_engines.building.compiler_log import heard
from mt3_engines.optional import import_polygraphy, import_tensorrt
from mt3_engines.versions import RTX


def build(poly: Any, graph: bytes, length: int) -> dict[str, Any]:
    """Builds an engine for one shape."""
    with heard() as said:
        try:
            parsed = poly.network_from_onnx_bytes(graph, strongly_typed=True)
            network = parsed[1]
            profile = poly.Profile()
            for index in range(network.num_inputs):
                port = network.get_input(index)
                shape = tuple(length if size < 0 else size for size in port.shape)
                profile.add(port.name, min=shape, opt=shape, max=shape)
            config = poly.CreateConfig(profiles=[profile])
            engine = poly.engine_bytes_from_network(parsed, config=config)
        except Exception as error:  # noqa: BLE001  polygraphy has one class for everything
            return {"errors": [said.reason(error)]}
    return {"errors": said.errors, "size": len(bytes(engine))}


def main() -> None:
    logging.basicConfig(level=logging.CRITICAL)
    import_tensorrt(RTX)
    poly = import_polygraphy(RTX)
    pairs = zip(sys.argv[1::2], sys.argv[2::2], strict=True)
    print(json.dumps([build(poly, Path(p).read_bytes(), int(n)) for p, n in pairs]))


if __name__ == "__main__":
    main()
