"""Tiny models with channels and with memory, made of the small network's bundle.

Their encoders are the ordinary one with a few nodes around it, so that what they must say is known
from the ordinary model alone; how real families make channels and memory is tested elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mt3_export.graphs.decoder import build_decoder
from mt3_export.weights import Weights
from tests.seeded import seeded_normal

FRAMES, BINS, VOCABULARY = 256, 512, 1536
Change = Callable[[onnx.GraphProto, bool], None]


def with_channels(bundle: Path, out: Path, gains: tuple[float, ...]) -> Path:
    """A model whose channel c hears the features times ``gains[c]``.

    Args:
        bundle: The small network's.
        out: Folder to make.
        gains: One number per channel.
    """

    def change(graph: onnx.GraphProto, _transposed: bool) -> None:
        _read_instead(graph, "features", "heard")
        scale = np.array(gains, np.float32).reshape(1, -1, 1, 1)
        graph.initializer.extend(
            [
                numpy_helper.from_array(scale, "gains"),
                numpy_helper.from_array(np.array([1], np.int64), "second_axis"),
                numpy_helper.from_array(np.array([-1, FRAMES, BINS], np.int64), "rows_first"),
            ]
        )
        _prepend(
            graph,
            helper.make_node("Unsqueeze", ["features", "second_axis"], ["segments"]),
            helper.make_node("Mul", ["segments", "gains"], ["by_channel"]),
            helper.make_node("Reshape", ["by_channel", "rows_first"], ["heard"]),
        )
        for value in graph.output:
            value.type.tensor_type.shape.dim[0].dim_param = "channel_rows"

    def describe(document: dict[str, Any]) -> None:
        document["model"]["channels"] = len(gains)
        channel = {"name": "anything", "programs": [], "drums": True}
        document["notes"].update(assembly="yourmt3", channels=[channel] * len(gains))

    copy = Path(shutil.copytree(bundle, out))
    _change_encoders(copy, change)
    _edit(copy, describe)
    return copy


def with_memory(bundle: Path, out: Path, weights: Weights, *, tokens: int, rows: int) -> Path:
    """A model that attends to an embedding of the first ids it said about the previous segment.

    Args:
        bundle: The small network's.
        out: Folder to make.
        weights: The small network's.
        tokens: Length of ``previous_ids``.
        rows: M.
    """

    def change(graph: onnx.GraphProto, transposed: bool) -> None:
        graph.input.append(
            helper.make_tensor_value_info("previous_ids", TensorProto.INT64, ["rows", tokens])
        )
        for name, value in (("none", [0]), ("rows", [rows]), ("time", [1])):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        graph.node.append(
            helper.make_node("Slice", ["previous_ids", "none", "rows", "time"], ["kept_ids"])
        )
        for value in graph.output:
            _append_memory(graph, value, weights, transposed=transposed, rows=rows)

    copy = Path(shutil.copytree(bundle, out))
    _change_encoders(copy, change)
    for path in copy.glob("decoder.*.onnx"):
        metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
        decoder = build_decoder(
            weights,
            FRAMES + rows,
            max_tokens=int(metadata["mt3.max_tokens"]),
            profile=metadata["mt3.profile"],
            metadata=metadata,
        )
        path.write_bytes(decoder.SerializeToString())
    remember(copy, memory_tokens=tokens, memory_start=[1134, 1])
    _edit(copy, lambda document: document["model"].update(memory=rows))
    return copy


def remember(bundle: Path, **changes: Any) -> None:
    """Changes the manifest's entries about memory."""
    _edit(bundle, lambda document: document["decoding"].update(changes))


def _append_memory(
    graph: onnx.GraphProto,
    value: onnx.ValueInfoProto,
    weights: Weights,
    *,
    transposed: bool,
    rows: int,
) -> None:
    """Appends an embedding of ``kept_ids`` to one of the outputs."""
    name, shape = value.name, weights.shape
    flipped = transposed and "key" in name
    _write_instead(graph, name, f"{name}_audio")
    table = seeded_normal(name, (VOCABULARY, shape.heads, shape.head_dim))
    graph.initializer.append(numpy_helper.from_array(table, f"{name}_table"))
    perm = [0, 2, 3, 1] if flipped else [0, 2, 1, 3]
    axis = 3 if flipped else 2
    graph.node.extend(
        [
            helper.make_node("Gather", [f"{name}_table", "kept_ids"], [f"{name}_said"]),
            helper.make_node("Transpose", [f"{name}_said"], [f"{name}_memory"], perm=perm),
            helper.make_node("Concat", [f"{name}_audio", f"{name}_memory"], [name], axis=axis),
        ]
    )
    value.type.tensor_type.shape.dim[axis].dim_value = FRAMES + rows


def _change_encoders(bundle: Path, change: Change) -> None:
    document = json.loads((bundle / "bundle.json").read_bytes())
    for entry in document["graphs"]:
        if entry["role"] == "encoder":
            model = onnx.load(bundle / entry["file"])
            change(model.graph, entry["cross_key_transposed"])
            onnx.checker.check_model(model)
            (bundle / entry["file"]).write_bytes(model.SerializeToString())


def _edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the manifest, and makes it agree with the graph files."""
    document = json.loads((bundle / "bundle.json").read_bytes())
    change(document)
    for entry in document["graphs"]:
        data = (bundle / entry["file"]).read_bytes()
        graph = onnx.load_model_from_string(data).graph
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        entry |= {"inputs": [value.name for value in graph.input]}
    (bundle / "bundle.json").write_text(json.dumps(document))


def _prepend(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _write_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
