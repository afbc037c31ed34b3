"""MERT as an audio encoder: reads its published folder, writes samples to the mean of some layers.

    audio [rows, samples]  ->  frames [rows, t, width]

MERT-v1-95M is a HuBERT base for 24 kHz: seven convolutions, positions from a convolution, twelve
layers.  Where the mean of hidden states 5, 6 and 7 is read, the layers above the seventh are
neither stored nor run: the same numbers for 84 instead of 125 GMAC per 10 s.  Of its two teachers
nothing is left in the published weights, and with constant-Q features in the front end
(``feature_extractor_cqt``) there is no such graph here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from mt3_export.classifiers.model_folder import Source, Tensors
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.classifiers.wave_body import WaveShape, hidden_states, read_body, read_shape
from mt3_export.graphs.graph_builder import Storage
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.assessor_networks import AudioEncoderSpec
from mt3_runtime.errors import CheckpointError

MODEL_TYPES = ("mert_model", "hubert")
RATE = 24000
#: Clips of the study's networks.
CLIP_SECONDS = 10
#: The hidden states whose mean they read.
LAYERS = (5, 6, 7)
_FIRST = "feature_extractor.conv_layers.0.conv.weight"


@dataclass(frozen=True, eq=False)
class MertWeights:
    """The encoder.

    Attributes:
        shape: Of the network, with all its layers.
        tensors: By canonical name, of the layers that are run.
        layers: The hidden states that are averaged.
        clip: Samples of a clip.
        digest: SHA-256 of the file.
    """

    shape: WaveShape
    tensors: Mapping[str, FloatArray]
    layers: tuple[int, ...]
    clip: int
    digest: str

    @property
    def spec(self) -> AudioEncoderSpec:
        """The manifest's section."""
        return AudioEncoderSpec(
            RATE,
            self.clip,
            self.shape.shortest,
            math.prod(self.shape.strides),
            self.shape.width,
            self.layers,
            normalise=True,
        )


def is_mert(source: Source) -> bool:
    """Whether this is the folder of a MERT."""
    return source.config.values.get("model_type") == MODEL_TYPES[0]


def read_mert(
    source: Source, *, layers: tuple[int, ...] = LAYERS, clip: int = CLIP_SECONDS * RATE
) -> MertWeights:
    """Reads the folder of a MERT, whatever heads or prefix its tensors have.

    Args:
        source: The opened folder.
        layers: The hidden states whose mean is wanted.
        clip: Samples of a clip.

    Raises:
        CheckpointError: A tensor is missing or of another shape, a setting is one that the graph
            does not compute, or a layer is asked for that it does not have.
    """
    config = source.config
    shape = read_shape(config, MODEL_TYPES)
    config.fixed("feature_extractor_cqt", value=False)
    config.fixed("deepnorm", value=False)
    source.preprocessor.must_be("sampling_rate", RATE)
    if (
        not layers
        or len(set(layers)) < len(layers)
        or not 0 <= min(layers) <= max(layers) <= shape.layers
    ):
        raise CheckpointError(
            f"{source.path}: the hidden states {', '.join(map(str, layers)) or 'of no layer'} were "
            f"asked for; expected different ones from 0 to {shape.layers}"
        )
    found = [name for name in source.tensors if name.endswith(_FIRST)]
    if len(found) != 1:
        raise CheckpointError(f"{source.path} has no tensor {_FIRST!r}; it is no MERT")
    prefix = found[0].removesuffix(_FIRST)
    ours = {name: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}
    tensors = Tensors(ours, str(source.path))
    body = read_body(tensors, shape, prefix, layers=max(layers))
    return MertWeights(shape, body, layers, clip, source.digest)


def build_mert(
    weights: MertWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph.

    Args:
        weights: The encoder.
        profile: ``cpu``, ``portable`` or ``compat``.
        storage: Precision of the stored matrices.
        metadata: Of the file.
    """
    shape = weights.shape
    blocks = TransformerBlocks(
        "mert",
        weights.tensors,
        profile=profile,
        storage=storage,
        heads=shape.heads,
        epsilon=shape.epsilon,
    )
    graph = blocks.graph
    states = list(hidden_states(blocks, shape, layers=max(weights.layers), samples="audio"))
    total = states[weights.layers[0]]
    for layer in weights.layers[1:]:
        total = graph.op("Add", total, states[layer])
    share = graph.constant(1.0 / len(weights.layers), np.float32)
    graph.op("Mul", total, share, out="frames")
    graph.output("frames", TensorProto.FLOAT, ["rows", "t", shape.width])
    return graph.build(metadata)
