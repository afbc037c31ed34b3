"""Canonical weights of a bundle: read back from the parameters of its graphs.

Graphs keep the names of the weights, so a bundle is a checkpoint as well: `read_bundle` undoes what
the builders did (side by side in one matrix, a batch norm folded into a convolution, experts
stacked, rotary frequencies turned into tables).  What is exported from the result is what was
exported from the checkpoint: with the same profile the same bytes, with another one its sibling.

Weights that are stored as fp16 are what they were rounded to; the checkpoint alone has the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper

from mt3_export.graphs.graph_builder import Storage
from mt3_export.graphs.perceiver_encoder import BATCH_EPSILON
from mt3_export.variants import Variant
from mt3_export.weights import FloatArray, PositionTable, T5Shape, Weights, infer_shape
from mt3_export.yourmt3 import ROTARY_PAIRS, infer_yourmt3
from mt3_runtime.bundles.bundle import Bundle, GraphFile, Manifest
from mt3_runtime.errors import BundleError, CheckpointError

_POSITIONS = ".position_table"
#: Several weights in one: their prefix, their names, and what they are.
_FUSED = re.compile(r"(.+)\.([a-z_0-9]+(?:\+[a-z_0-9]+)+)\.(kernel|bias|filters)")
_STACKED = re.compile(r"(.+)\.experts\.(wi_0\+wi_1|wo)\.kernel")
#: A position where a table is read may be this many turns on.
_TURNS = range(-8, 9)
#: Neighbours, in float32, of a frequency that is known to 1e-6.
_NEIGHBOURS = 40
#: By how much machines differ in cosines: the tables were computed in float32.
_SAME = 2.5e-7


@dataclass(frozen=True)
class BundleContents:
    """What a bundle can be exported from again.

    Attributes:
        weights: The network.
        variant: What the manifest says about it.
        storage: How its matrices are stored.
    """

    weights: Weights
    variant: Variant
    storage: Storage


def read_bundle(bundle: Bundle) -> BundleContents:
    """Reads the weights of a bundle with exact arithmetic.

    Raises:
        BundleError: A graph is damaged.
        CheckpointError: The arithmetic is not exact, or parameters are missing or of other names,
            as in graphs that another program wrote.
    """
    manifest = bundle.manifest
    stored = manifest.precision.weights
    if not bundle.profiles and manifest.graphs:
        bundle.graph("encoder", "cpu")  # says what it holds instead
    if not manifest.precision.exact or stored not in ("fp32", "fp16") or not bundle.profiles:
        raise CheckpointError(
            f"{bundle.path} is a bundle of precision {manifest.precision}, and only exact ones can "
            "be exported again; start from the one that it was made of, or from the checkpoint."
        )
    profile = "cpu" if "cpu" in bundle.profiles else bundle.profiles[0]
    encoder, decoder = (
        parsed_graph(bundle, bundle.graph(role, profile)) for role in ("encoder", "decoder")
    )
    tables = dict[str, FloatArray]()
    try:
        tensors = _canonical(_parameters(encoder) | _parameters(decoder), tables)
        tensors |= _rotary(encoder, manifest, tensors)
        shape = _shape(manifest, tensors)
        weights = Weights(shape, tensors, _positions(tables))
    except (CheckpointError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(
            f"{bundle.path} cannot be exported again, as its weights cannot be read back "
            f"({error}); export the checkpoint it came from."
        ) from error
    return BundleContents(weights, _variant(manifest), "fp32" if stored == "fp32" else "fp16")


def parsed_graph(bundle: Bundle, graph: GraphFile) -> onnx.ModelProto:
    """A verified graph of a bundle.

    Raises:
        BundleError: The file is missing, damaged, or no ONNX.
    """
    try:
        return onnx.load_model_from_string(bundle.data(graph))
    except DecodeError as error:
        raise BundleError(f"{graph.file} of {bundle.path} is no ONNX model: {error}.") from error


def _parameters(model: onnx.ModelProto) -> dict[str, FloatArray]:
    """All named parameters as float32; constants have no dots in their names."""
    return {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in model.graph.initializer
        if "." in tensor.name
    }


def _canonical(
    parameters: dict[str, FloatArray], tables: dict[str, FloatArray]
) -> dict[str, FloatArray]:
    """Parameters under canonical names; tables of positions go into ``tables``."""
    tensors = dict[str, FloatArray]()
    for name, value in parameters.items():
        if name.endswith(_POSITIONS):
            tables[name] = value.reshape(value.shape[-2:])
        elif stacked := _STACKED.fullmatch(name):
            tensors |= _unstacked(stacked[1], stacked[2], value, parameters)
        elif fused := _FUSED.fullmatch(name):
            tensors |= _unfused(fused[1], fused[2].split("+"), fused[3], value)
        else:
            tensors[name] = value
    return tensors


def _unfused(
    prefix: str, names: list[str], kind: str, value: FloatArray
) -> Iterator[tuple[str, FloatArray]]:
    """Weights that stand side by side, or a convolution with the norm that was folded into it."""
    if names[0].startswith("conv_"):
        conv, norm = names
        if kind == "filters":
            yield f"{prefix}.{conv}.filters", value
            ones = np.ones(len(value), np.float32)
            yield f"{prefix}.{norm}.scale", ones
            yield f"{prefix}.{norm}.mean", 0 * ones
            # With epsilon this is 1 but for 3e-8: too little to change a rounded product.
            yield f"{prefix}.{norm}.variance", ones - np.float32(BATCH_EPSILON)
        else:
            yield f"{prefix}.{norm}.bias", value
        return
    for name, part in zip(names, np.split(value, len(names), axis=-1), strict=True):
        yield f"{prefix}.{name}.{kind}", np.ascontiguousarray(part)


def _unstacked(
    prefix: str, part: str, value: FloatArray, parameters: dict[str, FloatArray]
) -> Iterator[tuple[str, FloatArray]]:
    """The matrices of experts that a profile multiplies all at once."""
    experts = parameters[f"{prefix}.router.kernel"].shape[1]
    if part == "wo":
        for index, matrix in enumerate(np.split(value, experts, axis=0)):
            yield f"{prefix}.experts_{index}.wo.kernel", np.ascontiguousarray(matrix)
        return
    for name, half in zip(part.split("+"), np.split(value, 2, axis=1), strict=True):
        for index, matrix in enumerate(np.split(half, experts, axis=1)):
            yield f"{prefix}.experts_{index}.{name}.kernel", np.ascontiguousarray(matrix)


def _positions(tables: dict[str, FloatArray]) -> PositionTable:
    """The table of positions that all stacks have the beginning of."""
    longest = max(tables.values(), key=len)
    for name, table in tables.items():
        if not np.array_equal(table, longest[: len(table)]):
            raise CheckpointError(f"{name} is no part of the table of the other stack")
    return PositionTable(256, rows=longest)


def _shape(manifest: Manifest, tensors: dict[str, FloatArray]) -> T5Shape:
    infer = infer_yourmt3 if manifest.family == "yourmt3" else infer_shape
    return infer(tensors, head_dim=manifest.model.head_dim)


def _variant(manifest: Manifest) -> Variant:
    return Variant(
        name=manifest.variant,
        family=manifest.family,
        licence=manifest.licence,
        features=manifest.features,
        segments=manifest.segments,
        vocabulary=manifest.vocabulary,
        notes=manifest.notes,
        decoding=manifest.decoding,
        confidence=manifest.confidence,
        memory=manifest.model.memory,
    )


# --- rotary frequencies ------------------------------------------------------------------------


def _rotary(
    encoder: onnx.ModelProto, manifest: Manifest, tensors: dict[str, FloatArray]
) -> dict[str, FloatArray]:
    """The frequencies of rotary tables, which have no names; none where there are no experts."""
    pairs = list(_tables(encoder))
    if not pairs:
        return {}
    latents = len(tensors["encoder.latents"])
    layers = {name.split(".")[2] for name in tensors if name.startswith("encoder.blocks_0.local_")}
    even = np.linspace(-1, 1, latents).astype(np.float32)
    steps = np.arange(manifest.features.frames).astype(np.float32)
    # In the order of the graph: one that reads the features, the local layers, the temporal ones.
    kinds = {"spectral": (0, even), "local": (1, even), "temporal": (1 + len(layers), steps)}
    return {
        f"encoder.rotary.{kind}": np.array(
            [_frequency(*pairs[index], places, pair) for pair in range(ROTARY_PAIRS)], np.float32
        )
        for kind, (index, places) in kinds.items()
    }


def _tables(encoder: onnx.ModelProto) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Cosines and sines [L, width] of every rotation, in the order of the graph."""
    constants = {t.name: t for t in encoder.graph.initializer if "." not in t.name}
    nodes = encoder.graph.node
    for swap, cosine, sine in zip(nodes, nodes[1:], nodes[2:], strict=False):
        if swap.op_type == "MatMul" and swap.input[1] in constants:
            cos, sin = (numpy_helper.to_array(constants[n.input[1]]) for n in (cosine, sine))
            yield cos, sin


def _frequency(cos: FloatArray, sin: FloatArray, places: FloatArray, pair: int) -> np.float32:
    """The frequency whose cosines and sines at all positions are those of two columns.

    An angle is the position times the frequency, rounded to fp32.  The smallest position but zero
    says what the frequency is, but for whole turns and the last digits; all of them decide.
    """
    columns = np.stack([cos[:, 2 * pair], sin[:, 2 * pair]])
    nearest = int(np.argmin(np.where(places == 0, np.inf, np.abs(places))))
    angle = np.arctan2(float(columns[1, nearest]), float(columns[0, nearest]))
    guesses = (angle + 2 * np.pi * np.array(_TURNS)) / places[nearest]
    # Numbers of one sign stand in the order of their bits.
    bits = guesses.astype(np.float32)[:, None].view(np.int32)
    offsets = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1, dtype=np.int32)
    candidates = (bits + offsets).reshape(-1).view(np.float32)
    angles = np.multiply.outer(candidates, places)
    found = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    errors = np.abs(found - columns).max(axis=(1, 2))
    best = int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))
    if not errors[best] <= _SAME:
        raise CheckpointError("its rotary tables are those of no frequency")
    return np.float32(candidates[best])
