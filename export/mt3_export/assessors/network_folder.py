"""Reads the checkpoint of one assessing network: ``config.json`` beside its tensors.

Contract: tensors have the names that PyTorch gives the published modules (``midi_encoder``,
``projection``, ``fusion``, ``aggregator``, ``mtl_head``), and leave here under canonical names,
``NAME.weight`` [out, in] and ``NAME.bias``, each of the expected shape and finite.  A tensor that
no such network has is an error, as is one that is missing.  The audio encoder has its own folder;
where a file holds one beside the network (``audio_encoder.``), it is passed over here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mt3_export.classifiers.model_folder import Settings, Source, Tensors
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.assessor_networks import (
    ALIGNMENTS,
    DIMENSION_NAME,
    FUSIONS,
    MAX_DIMENSIONS,
    AssessorNetwork,
    Fusion,
)
from mt3_runtime.errors import CheckpointError

MODEL_TYPE = "performance-assessor-network"

#: Fields of a token as published, with the number of their values and their share of the width.
TOKEN_FIELDS: tuple[tuple[str, int, int], ...] = (
    ("type", 5, 8),
    ("beat", 16, 8),
    ("position", 16, 8),
    ("pitch", 88, 4),
    ("duration", 128, 8),
    ("velocity", 128, 8),
    ("instrument", 1, 16),
    ("bar", 512, 16),
)

#: Of the published head: shared widths and that of each dimension.
HEAD_WIDTHS = (512, 256, 128)


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of a network; the published ones are the defaults.

    Attributes:
        audio_width: Of a frame.
        midi_width: Of a note; a multiple of 16.
        midi_layers: Of the MIDI encoder.
        midi_heads: Of its attention (the published class says 8, and is made with 4).
        width: Of the shared space.
        cross_heads: Of cross-attention.
        lstm_width: Per direction.
        lstm_layers: Number of them.
        pool_heads: Of the attention that pools over time.
        head_widths: Two of the shared layers, one of each dimension's.
    """

    audio_width: int = 768
    midi_width: int = 256
    midi_layers: int = 6
    midi_heads: int = 4
    width: int = 512
    cross_heads: int = 8
    lstm_width: int = 256
    lstm_layers: int = 2
    pool_heads: int = 4
    head_widths: tuple[int, ...] = HEAD_WIDTHS

    def faults(self) -> list[str]:
        """What does not fit; empty for a sound shape."""
        pairs = (
            ("midi_width", self.midi_width, "midi_heads", self.midi_heads),
            ("midi_width", self.midi_width, "16", 16),
            ("width", self.width, "cross_heads", self.cross_heads),
            ("2 lstm_width", 2 * self.lstm_width, "pool_heads", self.pool_heads),
        )
        found = [f"{a} {m} is no multiple of {b} {n}" for a, m, b, n in pairs if m % n]
        return found + ([] if len(self.head_widths) == 3 else ["head_widths are not three"])

    def fused(self, fusion: Fusion) -> int:
        """Width of what a fusion hands to the aggregation."""
        return 2 * self.width if fusion == "cross" else self.width


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """A network that was read.

    Attributes:
        spec: What the manifest says of it.
        shape: Its sizes.
        tensors: By canonical name.
    """

    spec: AssessorNetwork
    shape: NetworkShape
    tensors: Mapping[str, FloatArray]


def is_network(config: Settings) -> bool:
    """Whether a ``config.json`` is that of a network."""
    return config.values.get("model_type") == MODEL_TYPE


def read_network(source: Source, name: str) -> NetworkWeights:
    """Reads the folder of a network.

    Args:
        source: The opened folder.
        name: What it is called in its bundle.

    Raises:
        CheckpointError: A setting is none that can be written, or a tensor is missing, too many, of
            another shape or not finite.
    """
    config = source.config
    config.must_be("model_type", MODEL_TYPE)
    spec, shape = _spec(config, name), _shape(config)
    if faults := [*spec.faults(), *shape.faults()]:
        raise CheckpointError(f"{config.where}: {'; '.join(faults)}")
    own = {n: t for n, t in source.tensors.items() if not n.startswith("audio_encoder.")}
    tensors = Tensors(own, str(source.path))
    reader = _Reader(tensors, shape)
    if spec.reads:
        reader.midi_encoder(spec.max_notes)
    reader.fusion(spec.fusion)
    reader.aggregator(shape.fused(spec.fusion))
    reader.head(spec)
    tensors.done()
    return NetworkWeights(spec, shape, reader.found)


def _spec(config: Settings, name: str) -> AssessorNetwork:
    fusion = config.must_be("fusion", *FUSIONS)
    reads = fusion != "audio"
    dimensions = config.values.get("dimensions")
    if (
        not isinstance(dimensions, list)
        or not 1 <= len(dimensions) <= MAX_DIMENSIONS
        or not all(isinstance(d, str) and DIMENSION_NAME.fullmatch(d) for d in dimensions)
    ):
        raise CheckpointError(
            f"{config.where}: dimensions must be a list of 1 to {MAX_DIMENSIONS} lower-case names"
        )
    return AssessorNetwork(
        name,
        fusion,
        config.must_be("alignment", *ALIGNMENTS[fusion]),
        config.whole("max_notes", 512, 1, 4096) if reads else 0,
        config.flag("fill", usual=False),
        tuple(dimensions),
        config.whole("ordinal_classes", 0, 0, 1000),
    )


def _shape(config: Settings) -> NetworkShape:
    usual = NetworkShape()

    def size(name: str) -> int:
        return config.whole(name, getattr(usual, name), 1, 4096)

    return NetworkShape(
        audio_width=size("audio_width"),
        midi_width=size("midi_width"),
        midi_layers=size("midi_layers"),
        midi_heads=size("midi_heads"),
        width=size("width"),
        cross_heads=size("cross_heads"),
        lstm_width=size("lstm_width"),
        lstm_layers=size("lstm_layers"),
        pool_heads=size("pool_heads"),
        head_widths=config.sizes("head_widths", usual.head_widths),
    )


class _Reader:
    """Takes the tensors of one part after the other."""

    def __init__(self, tensors: Tensors, shape: NetworkShape) -> None:
        self._tensors, self._shape = tensors, shape
        self.found: dict[str, FloatArray] = {}

    def linear(self, name: str, out: int, width: int, canonical: str = "") -> None:
        """A linear layer."""
        canonical = canonical or name
        self.found[f"{canonical}.weight"] = self._tensors.take(f"{name}.weight", out, width)
        self.found[f"{canonical}.bias"] = self._tensors.take(f"{name}.bias", out)

    def norm(self, name: str, width: int) -> None:
        """A LayerNorm."""
        for part in ("weight", "bias"):
            self.found[f"{name}.{part}"] = self._tensors.take(f"{name}.{part}", width)

    def attention(self, name: str, width: int) -> None:
        """A ``MultiheadAttention`` whose three inputs are one width: query, key, value, out."""
        weight = self._tensors.take(f"{name}.in_proj_weight", 3 * width, width)
        bias = self._tensors.take(f"{name}.in_proj_bias", 3 * width)
        for index, part in enumerate(("query", "key", "value")):
            rows = slice(index * width, (index + 1) * width)
            self.found[f"{name}.{part}.weight"] = weight[rows]
            self.found[f"{name}.{part}.bias"] = bias[rows]
        self.linear(f"{name}.out_proj", width, width, f"{name}.out")

    def midi_encoder(self, positions: int) -> None:
        """Embeddings, positions, layers."""
        top, width = "midi_encoder", self._shape.midi_width
        for field, values, share in TOKEN_FIELDS:
            name = f"{top}.{field}_embed.weight"
            self.found[name] = self._tensors.take(name, values, width // share)
        self.linear(f"{top}.embed_projection", width, width)
        table = self._tensors.take(f"{top}.positional_encoding", 1, positions, width)
        self.found[f"{top}.positions"] = table[0]
        for layer in range(self._shape.midi_layers):
            place = f"{top}.transformer.layers.{layer}"
            self.attention(f"{place}.self_attn", width)
            self.linear(f"{place}.linear1", 4 * width, width, f"{place}.wide")
            self.linear(f"{place}.linear2", width, 4 * width, f"{place}.narrow")
            self.norm(f"{place}.norm1", width)
            self.norm(f"{place}.norm2", width)
        self.norm(f"{top}.layer_norm", width)

    def fusion(self, fusion: Fusion) -> None:
        """Projections of the modalities that are there, and what joins them."""
        shape, width = self._shape, self._shape.width
        sides = {"audio": shape.audio_width, "midi": shape.midi_width}
        for side in sides if fusion not in sides else (fusion,):
            place = f"projection.{side}_proj.projection"
            self.linear(f"{place}.0", width, sides[side])
            self.norm(f"{place}.1", width)
            self.linear(f"{place}.4", width, width)
            if fusion == "gated":
                self._block(f"fusion.{side}_transform", width, width)
            if fusion == "cross":
                self._crossing(side)
        if fusion == "gated":
            self.linear("fusion.gate", width, 2 * width)
        if fusion == "cross":
            return
        self._block("fusion.output", width, 2 * width if fusion == "concat" else width)

    def _block(self, name: str, out: int, width: int) -> None:
        self.linear(f"{name}.0", out, width)
        self.norm(f"{name}.1", out)

    def _crossing(self, side: str) -> None:
        width = self._shape.width
        other = {"audio": "audio_to_midi_attn", "midi": "midi_to_audio_attn"}[side]
        self.attention(f"fusion.{other}", width)
        self.norm(f"fusion.{side}_norm1", width)
        self.linear(f"fusion.{side}_ffn.0", 4 * width, width, f"fusion.{side}_ffn.wide")
        self.linear(f"fusion.{side}_ffn.3", width, 4 * width, f"fusion.{side}_ffn.narrow")
        self.norm(f"fusion.{side}_norm2", width)

    def aggregator(self, width: int) -> None:
        """LSTM, pooling, projection."""
        shape, hidden = self._shape, self._shape.lstm_width
        for layer in range(shape.lstm_layers):
            for way in ("", "_reverse"):
                read = width if layer == 0 else 2 * hidden
                for part, size in (
                    ("weight_ih", (4 * hidden, read)),
                    ("weight_hh", (4 * hidden, hidden)),
                    ("bias_ih", (4 * hidden,)),
                    ("bias_hh", (4 * hidden,)),
                ):
                    name = f"aggregator.lstm.{part}_l{layer}{way}"
                    self.found[name] = self._tensors.take(name, *size)
        self.attention("aggregator.attention", 2 * hidden)
        query = self._tensors.take("aggregator.attention_query", 1, 1, 2 * hidden)
        self.found["aggregator.query"] = query[0]
        self.norm("aggregator.layer_norm", 2 * hidden)
        self.linear("aggregator.projection.0", shape.width, 2 * hidden)

    def head(self, spec: AssessorNetwork) -> None:
        """Shared layers, dimensions, uncertainty, ordinal output."""
        first, second, each = self._shape.head_widths
        self.linear("mtl_head.shared_extractor.0", first, self._shape.width)
        self.linear("mtl_head.shared_extractor.3", second, first)
        outs = []
        for name in spec.dimensions:
            place = f"mtl_head.task_heads.{name}"
            self.linear(f"{place}.0", each, second)
            self.linear(f"{place}.3", 1, each)
            outs.append((self.found.pop(f"{place}.3.weight"), self.found.pop(f"{place}.3.bias")))
        self.found["mtl_head.dimensions.weight"] = np.concatenate([weight for weight, _ in outs])
        self.found["mtl_head.dimensions.bias"] = np.concatenate([bias for _, bias in outs])
        count = len(spec.dimensions)
        self.found["mtl_head.log_vars"] = self._tensors.take("mtl_head.log_vars", count)
        if spec.ordinal_classes:
            weight = self._tensors.take("mtl_head.ordinal.weight", 1, self._shape.width)
            self.found["mtl_head.ordinal.weight"] = weight
            bias = self._tensors.take("mtl_head.ordinal.bias", spec.ordinal_classes - 1)
            self.found["mtl_head.ordinal.bias"] = bias
