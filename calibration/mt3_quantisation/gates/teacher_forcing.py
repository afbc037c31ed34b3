"""Teacher forcing: log-probabilities that graphs give to tokens fed to them.

Contract: `forced` feeds every segment's exact tokens to a pair of graphs, whatever they would have
said themselves, and yields what they thought at each step.  Two pairs of graphs that are fed the
same segments yield the same rows in the same order, so their thoughts can be compared, and further
tensors of a graph can be watched on the way, to find their ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mt3_quantisation.forms.step_graphs import exposing, log_probs_of
from mt3_quantisation.gates.exact_bundle import FloatArray, Heard
from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.backends.ort_session import open_session as open_ort_session
from mt3_runtime.bundles.manifest import Manifest, Role
from mt3_runtime.decoding.search import previous_ids
from mt3_runtime.diagnostics.cores import usable_cores

if TYPE_CHECKING:
    from onnx import ModelProto

ROWS = 16
"""Sequences that are decoded at a time."""

NUMPY: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
}
"""Element types that a cache may have, by ONNX Runtime's name."""


class Segment(NamedTuple):
    """A segment with its tokens.

    Attributes:
        features: [frames, bins].
        tokens: Of each channel, int32.
        previous_ids: What a model with memory reads; None for others.
    """

    features: FloatArray
    tokens: tuple[npt.NDArray[np.int32], ...]
    previous_ids: npt.NDArray[np.int64] | None


class StepOutput(NamedTuple):
    """One step of some rows.

    Attributes:
        said: int32 [n], the tokens that are said here.
        log_probs: [n, V], natural logarithms of the probabilities.
        watched: The tensors that were asked for, by name.
    """

    said: npt.NDArray[np.int32]
    log_probs: FloatArray
    watched: dict[str, npt.NDArray[Any]]


def segments_of(
    heard: Iterable[Heard], manifest: Manifest, *, most: int | None = None
) -> list[Segment]:
    """The segments of excerpts; of more than ``most`` so many, evenly spread."""
    spec, channels = manifest.decoding, manifest.model.channels
    found = []
    for one in heard:
        last = None
        for index, features in enumerate(one.features):
            said = one.tokens[index * channels : (index + 1) * channels]
            memory = previous_ids(last, spec) if spec.memory_tokens else None
            found.append(Segment(features, tuple(s.tokens for s in said), memory))
            last = said[0]
    if most is None or len(found) <= most:
        return found
    return [found[k * len(found) // most] for k in range(most)]


def forced(
    graphs: Mapping[Role, ModelProto],
    manifest: Manifest,
    segments: Sequence[Segment],
    *,
    watch: Sequence[str] = (),
    threads: int | None = None,
) -> Iterator[StepOutput]:
    """What a pair of graphs thinks at every step of given tokens.

    Args:
        graphs: Encoder and decoder.
        manifest: Of the bundle they are from.
        segments: In any order; they are fed longest first.
        watch: fp32 tensors of the decoder to give out as well.
        threads: CPU threads; all usable cores by default.
    """
    thoughts = log_probs_of(graphs["decoder"])
    encoder = open_session(graphs["encoder"], threads)
    decoder = open_session(exposing(graphs["decoder"], [thoughts, *watch]), threads)
    order = sorted(segments, key=lambda s: -max(map(len, s.tokens)))
    at_once = max(1, ROWS // manifest.model.channels)
    for first in range(0, len(order), at_once):
        chunk = order[first : first + at_once]
        cross = encoded(encoder, chunk)
        rows = [tokens for segment in chunk for tokens in segment.tokens]
        longest_first = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        cross = {name: value[longest_first] for name, value in cross.items()}
        yield from _decoded(
            decoder, [rows[k] for k in longest_first], cross, manifest, thoughts, watch
        )


def open_session(model: ModelProto, threads: int | None = None) -> Any:
    """A session of ONNX Runtime's CPU provider, which computes Q/DQ pairs as they are written.

    Its own int8 kernels saturate on some CPUs, and its fusions do not know fp8.
    """
    return open_ort_session(
        import_onnxruntime(),
        model.SerializeToString(),
        threads=threads or usable_cores(),
        entries={"session.disable_quant_qdq": "1"},
    )


def encoded(encoder: Any, segments: Iterable[Segment]) -> dict[str, npt.NDArray[Any]]:
    """All outputs of an encoder for some segments, by name, one after the other in rows."""
    names = [port.name for port in encoder.get_outputs()]
    found = []
    for segment in segments:
        feeds: dict[str, npt.NDArray[Any]] = {"features": segment.features[np.newaxis]}
        if segment.previous_ids is not None:
            feeds["previous_ids"] = segment.previous_ids[np.newaxis]
        found.append(encoder.run(names, feeds))
    return {name: np.concatenate(parts) for name, *parts in zip(names, *found, strict=True)}


def _decoded(
    decoder: Any,
    rows: list[npt.NDArray[np.int32]],
    cross: dict[str, npt.NDArray[Any]],
    manifest: Manifest,
    thoughts: str,
    watch: Sequence[str],
) -> Iterator[StepOutput]:
    """The steps of rows that are sorted by length, longest first."""
    lengths = np.array([len(row) for row in rows])
    past = _empty(decoder, len(rows), int(lengths[0]))
    names = [thoughts, *watch, *(name.replace("past", "present", 1) for name in past)]
    last = np.full(len(rows), manifest.decoding.start_id, np.int64)
    for position in range(int(lengths[0])):
        count = int(np.count_nonzero(lengths > position))
        feeds = {name: value[:count] for name, value in (*cross.items(), *past.items())}
        feeds["token_ids"] = last[:count, np.newaxis]
        feeds["positions"] = np.full(count, position, np.int32)
        feeds["allowed"] = np.ones((count, manifest.model.vocab_size), np.bool_)
        found = dict(zip(names, decoder.run(names, feeds), strict=True))
        past = {name: found[name.replace("past", "present", 1)] for name in past}
        said = np.array([row[position] for row in rows[:count]], np.int32)
        last = said.astype(np.int64)
        yield StepOutput(said, found[thoughts], {name: found[name] for name in watch})


def _empty(decoder: Any, rows: int, capacity: int) -> dict[str, npt.NDArray[Any]]:
    """Empty caches of a decoder: with room for all tokens where they have a capacity."""
    return {
        port.name: np.zeros(
            (rows, port.shape[1], capacity if port.shape[2] == "capacity" else 0, port.shape[3]),
            NUMPY[port.type],
        )
        for port in decoder.get_inputs()
        if port.name.startswith("past_")
    }
