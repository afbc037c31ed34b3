"""Measures ranges: the exact graphs listen to calibration segments, a histogram at every product.

Histograms and the choice of a range from them are ONNX Runtime's calibraters'; what is kept is the
tool-neutral `Ranges`.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_calibration.precision.forced import Segment, encoded, forced, open_session
from mt3_calibration.precision.graphs import exposing
from mt3_calibration.precision.measure import ROLES
from mt3_calibration.precision.source import Source
from mt3_calibration.qdq.products import WeightProduct
from mt3_calibration.qdq.ranges import BARS, Method, Ranges, TensorRange
from mt3_runtime.errors import OptionError
from mt3_runtime.manifest import Role

if TYPE_CHECKING:
    from onnx import ModelProto

#: Profile of the graphs that are quantised: the one that engines are made of.
PROFILE = "portable"
#: Share of values, in percent, that stays inside a ``percentile`` range.
PERCENTILE = 99.99
#: Bars of the histograms while they are collected.  The search by entropy tries every second one
#: from 128 on, in Python: 2048 would take minutes.
_BINS: dict[Method, int] = {"absmax": 2048, "percentile": 2048, "entropy": 512}
#: Values of a tensor that are counted at once.
_TOGETHER = 1 << 20
#: Levels of the search by entropy: those of one sign in 8 bits.
_LEVELS = 128


def collect(
    source: Source,
    graphs: Mapping[Role, ModelProto],
    products: Sequence[WeightProduct],
    segments: Sequence[Segment],
    *,
    method: Method = "percentile",
    material: str = "",
) -> Ranges:
    """Measures the range of every activation that a product reads.

    Args:
        source: The exact bundle.
        graphs: Its encoder and decoder in the profile `PROFILE`.
        products: Of both graphs.
        segments: What is listened to.
        method: How ranges are chosen.
        material: What the segments are, for people.

    Raises:
        OptionError: An activation was zero throughout: the segments say nothing about it.
    """
    readers = {role: _readers(products, role) for role in ROLES}
    seen = {role: _Histograms(method) for role in ROLES}
    _listen_to_encoder(graphs["encoder"], segments, list(readers["encoder"]), seen["encoder"])
    steps = 0
    for thought in forced(
        graphs,
        source.manifest,
        segments,
        watch=list(readers["decoder"]),
        threads=source.threads,
    ):
        steps += len(thought.said)
        for name, values in thought.watched.items():
            seen["decoder"].add(name, values)
    tensors = [found for role in ROLES for found in seen[role].ranges(role, readers[role])]
    return Ranges(
        export_id=source.manifest.export_id,
        profile=PROFILE,
        encoder=source.bundle.graph("encoder", PROFILE).sha256,
        decoder=source.bundle.graph("decoder", PROFILE).sha256,
        method=method,
        material=material,
        segments=len(segments),
        tokens=steps,
        tensors=tuple(tensors),
    )


def _listen_to_encoder(
    encoder: ModelProto, segments: Sequence[Segment], watch: Sequence[str], seen: _Histograms
) -> None:
    """Runs an encoder segment by segment, as what is watched of one takes 25 MB."""
    fed = {value.name for value in encoder.graph.input}
    session = open_session(exposing(encoder, [name for name in watch if name not in fed]))
    for segment in segments:
        found = {**encoded(session, [segment]), "features": segment.features}
        for name in watch:
            seen.add(name, found[name])


def _readers(products: Sequence[WeightProduct], role: Role) -> dict[str, tuple[str, ...]]:
    """The activations of a graph, with the products that read them."""
    readers: dict[str, list[str]] = defaultdict(list)
    for product in products:
        if product.role == role:
            readers[product.activation].append(product.name)
    return {name: tuple(names) for name, names in readers.items()}


class _Histograms:
    """The calibrater of one graph."""

    def __init__(self, method: Method) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: PLC0415  1 s

        self._method = method
        self._collector = HistogramCollector(
            method="entropy" if method == "entropy" else "percentile",
            symmetric=True,
            num_bins=_BINS[method],
            num_quantized_bins=_LEVELS,
            percentile=PERCENTILE,
            scenario="same",
        )
        self._waiting: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
        self._largest: dict[str, float] = defaultdict(float)
        self._count: dict[str, int] = defaultdict(int)

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Hears one tensor; many small ones are counted together."""
        self._waiting[name].append(values.ravel())
        self._largest[name] = max(self._largest[name], float(np.abs(values).max(initial=0.0)))
        self._count[name] += values.size
        if sum(part.size for part in self._waiting[name]) > _TOGETHER:
            self._put(name)

    def ranges(self, role: Role, readers: dict[str, tuple[str, ...]]) -> list[TensorRange]:
        """What was found.

        Raises:
            OptionError: A tensor was zero throughout.
        """
        for name in list(self._waiting):
            self._put(name)
        chosen: dict[str, Any] = {}
        if self._method != "absmax":
            with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
                chosen = self._collector.compute_collection_result()
        found = []
        for name, products in readers.items():
            absmax = self._largest[name]
            if not absmax:
                raise OptionError(
                    f"The input of {products[0]} was zero throughout, so it has no range. Measure "
                    "on more music."
                )
            low, high = chosen.get(name, (-absmax, absmax))[:2]
            amax = min(max(-float(low), float(high)), absmax)
            counts, edges = self._collector.get_histogram_dict()[name][:2]
            found.append(
                TensorRange(
                    role=role,
                    tensor=name,
                    products=products,
                    amax=amax or absmax,
                    absmax=absmax,
                    values=self._count[name],
                    histogram=_summary(counts, edges, absmax),
                )
            )
        return found

    def _put(self, name: str) -> None:
        values = np.concatenate(self._waiting.pop(name)).astype(np.float32)
        with contextlib.redirect_stdout(io.StringIO()):
            self._collector.collect({name: values})


def _summary(counts: npt.NDArray[Any], edges: npt.NDArray[Any], absmax: float) -> tuple[int, ...]:
    """Fine bars, of values or of their size, as `BARS` of their size."""
    middles = np.minimum(np.abs((edges[:-1] + edges[1:]) / 2), absmax)
    bars, _ = np.histogram(middles, bins=BARS, range=(0.0, absmax), weights=counts)
    return tuple(int(count) for count in bars)
