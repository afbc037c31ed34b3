"""Collects the inputs of the matrix products of T5 layers over calibration music.

Contract: `layer_products` are the products of a graph whose weight is a projection of attention or
of the feed-forward in a layer, known by its name.  The front of the encoder, convolutions, experts,
the decoder's last layer and the head are none of them.  `watch_encoder` and `watch_decoder` run
exact graphs over segments and add up what came in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_quantisation.forms.products import WeightProduct, find_products
from mt3_quantisation.forms.step_graphs import exposing
from mt3_quantisation.gates.teacher_forcing import Segment, encoded, forced, open_session
from mt3_runtime.bundles.manifest import Manifest, Role

if TYPE_CHECKING:
    from onnx import ModelProto

SAMPLE = 5
"""Rows of each chunk of inputs that are kept as they are; of all others only the moments are."""

TINY = 1e-20
"""Keeps rows of zeros from being divided by zero."""

LAYERS = ".layers_"
"""In the names of the weights of T5 layers; those of YourMT3's Perceiver have others."""


def layer_products(model: ModelProto, role: Role) -> list[WeightProduct]:
    """The products of T5 layers in a graph, in its order; of a decoder all but the last layer's.

    No layer comes behind that one to dampen what it gets wrong: on Magenta's weights it makes half
    of the decoder's error.
    """
    found = [product for product in find_products(model, role) if LAYERS in product.name]
    last = found[-1].layer if found and role == "decoder" else None
    return [product for product in found if product.layer != last]


@dataclass
class Inputs:
    """What came into a product.

    Attributes:
        moments: X'X over all rows, each divided by its own root mean square, float64 [K, K].  A few
            rows are hundreds of times larger than all others, but so is the residual that their
            product is added to; without the division only they would count.
        largest: Largest size in every column, as it came, float32 [K].
        sample: Some of the rows, divided like those of the moments, float32 [n, K].
    """

    moments: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float32]
    sample: npt.NDArray[np.float32]


class _Gathering:
    """Adds up the rows of some tensors."""

    def __init__(self, names: Iterable[str]) -> None:
        self._moments: dict[str, Any] = dict.fromkeys(names, 0.0)
        self._largest: dict[str, Any] = dict.fromkeys(self._moments, 0.0)
        self._rows: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in self._moments}

    def add(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        for name in self._moments:
            rows = tensors[name].reshape(-1, tensors[name].shape[-1])
            self._largest[name] = np.maximum(self._largest[name], np.abs(rows).max(axis=0))
            rows = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + TINY)
            self._moments[name] = self._moments[name] + (rows.T @ rows).astype(np.float64)
            self._rows[name].append(rows[:: max(1, len(rows) // SAMPLE)].copy())

    def inputs(self) -> dict[str, Inputs]:
        return {
            name: Inputs(moments, self._largest[name], np.concatenate(self._rows[name]))
            for name, moments in self._moments.items()
        }


def watch_encoder(
    model: ModelProto, segments: Sequence[Segment], *, threads: int | None = None
) -> dict[str, Inputs]:
    """What comes into the products of an encoder, by the tensor's name."""
    names = sorted({p.activation for p in layer_products(model, "encoder")})
    gathering = _Gathering(names)
    session = open_session(exposing(model, names), threads)
    for segment in segments:
        gathering.add(encoded(session, [segment]))
    return gathering.inputs()


def watch_decoder(
    graphs: Mapping[Role, ModelProto],
    manifest: Manifest,
    segments: Sequence[Segment],
    *,
    threads: int | None = None,
) -> dict[str, Inputs]:
    """What comes into the products of a decoder that says the given tokens."""
    names = sorted({p.activation for p in layer_products(graphs["decoder"], "decoder")})
    gathering = _Gathering(names)
    for thought in forced(graphs, manifest, segments, watch=names, threads=threads):
        gathering.add(thought.watched)
    return gathering.inputs()
