"""HuBERT and Wav2Vec2 for sequence classification: reads their folders, writes their graph.

    samples [rows, n]  ->  logits [rows, labels]

DistilHuBERT is one of two layers.  The mean over time is taken before the projector, which is
linear: the same result for less work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import ModelProto, TensorProto

from mt3_export.classifiers.model_folder import Source, Tensors
from mt3_export.classifiers.transformer_blocks import TransformerBlocks
from mt3_export.classifiers.wave_body import WaveShape, hidden_states, read_body, read_shape
from mt3_export.graphs.graph_builder import Storage
from mt3_export.weights import FloatArray
from mt3_runtime.bundles.classifier import Activation, FrontEnd, WaveConfig, WindowSpec
from mt3_runtime.errors import CheckpointError

FAMILIES = ("hubert", "wav2vec2")
RATE = 16000
#: Of GTZAN's clips, with which the published genre classifiers were trained.
CLIP_SECONDS = 30


@dataclass(frozen=True, eq=False)
class WaveWeights:
    """The network: its sizes, tensors by canonical name, labels and settings."""

    shape: WaveShape
    tensors: Mapping[str, FloatArray]
    labels: tuple[str, ...]
    normalise: bool
    activation: Activation


def is_wave(source: Source) -> bool:
    """Whether this is the folder of a HuBERT or Wav2Vec2."""
    return source.config.values.get("model_type") in FAMILIES


def read_wave(source: Source) -> WaveWeights:
    """Reads a classifier's folder.

    Raises:
        CheckpointError: It is one of another head, a tensor is missing, too many or of another
            shape, or a setting is one that the graph does not compute.
    """
    config = source.config
    shape = read_shape(config, FAMILIES)
    stored = {name: t for name, t in source.tensors.items() if "masked_spec_embed" not in name}
    tensors = Tensors(stored, str(source.path))
    if "classifier.weight" not in tensors:
        raise CheckpointError(
            f"{source.path} has no classifier; expected a model ...ForSequenceClassification"
        )
    classes = tensors.shape("classifier.weight")[0]
    found = read_body(tensors, shape, f"{shape.family}.")
    sizes = {
        "projector": (shape.projected, shape.width),
        "classifier": (classes, shape.projected),
    }
    for name, size in sizes.items():
        found[f"{name}.weight"] = tensors.take(f"{name}.weight", *size)
        found[f"{name}.bias"] = tensors.take(f"{name}.bias", size[0])
    tensors.done()
    normalise = source.preprocessor.flag("do_normalize", usual=True)
    source.preprocessor.must_be("sampling_rate", RATE)
    several = config.values.get("problem_type") == "multi_label_classification"
    labels = config.labels() if "id2label" in config.values else ()
    return WaveWeights(shape, found, labels, normalise, "probability" if several else "share")


def front_end_of_wave(weights: WaveWeights) -> FrontEnd:
    """The manifest's section."""
    return FrontEnd(wave=WaveConfig(RATE, weights.normalise))


def window_of_wave(weights: WaveWeights) -> WindowSpec:
    """Clips of the length it was taught with, side by side."""
    return WindowSpec(CLIP_SECONDS * RATE, CLIP_SECONDS * RATE, weights.shape.shortest)


def build_wave(
    weights: WaveWeights, *, profile: str, storage: Storage, metadata: dict[str, str]
) -> ModelProto:
    """Writes the graph; arguments as in `mt3_export.classifiers.ast_network.build_ast`."""
    shape, tensors = weights.shape, weights.tensors
    blocks = TransformerBlocks(
        shape.family,
        tensors,
        profile=profile,
        storage=storage,
        heads=shape.heads,
        epsilon=shape.epsilon,
    )
    *_, hidden = hidden_states(blocks, shape)
    logits = blocks.linear(blocks.linear(blocks.mean(hidden), "projector"), "classifier")
    blocks.graph.op("Identity", logits, out="logits")
    blocks.graph.output("logits", TensorProto.FLOAT, ["rows", len(tensors["classifier.bias"])])
    return blocks.graph.build(metadata)
