"""Collects activation histograms of exact graphs over calibration segments.

What is kept is the tool-neutral `Ranges`.  The choice by percentile and by entropy is that of ONNX
Runtime's calibraters; they have none by error, which does best here, and their histograms are too
coarse where one value in a million is a hundred times as large as the rest.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mt3_quantisation.forms.products import WeightProduct
from mt3_quantisation.forms.step_graphs import exposing
from mt3_quantisation.gates.exact_bundle import FloatArray, Source
from mt3_quantisation.gates.measure import ROLES
from mt3_quantisation.gates.teacher_forcing import Segment, encoded, forced, open_session
from mt3_quantisation.qdq.ranges import BARS, Method, Ranges, TensorRange
from mt3_runtime.bundles.manifest import Role
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from onnx import ModelProto

#: Profile of the graphs that are quantised: the one that engines are made of.
PROFILE = "portable"
#: Share of values, in percent, that stays inside a ``percentile`` range.
PERCENTILE = 99.99
#: Bins of a histogram while it is collected; at least half of them are in use.
_BINS = 1 << 15
#: Values of a tensor that are counted at once.
_TOGETHER = 1 << 18
#: Ranges that are tried for the least error, from absmax down to a 400th of it.
_TRIED = np.geomspace(1.0, 1 / 400, 120)
#: Levels of one sign in 8 bits.
_LEVELS = 127
#: Bins and levels of the search by entropy, which tries every second bin, in Python.
_ENTROPY_BINS, _ENTROPY_LEVELS = 512, 128


def collect(
    source: Source,
    graphs: Mapping[Role, ModelProto],
    products: Sequence[WeightProduct],
    segments: Sequence[Segment],
    *,
    method: Method = "mse",
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
    seen: dict[Role, _Histograms] = {role: _Histograms() for role in ROLES}
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
    tensors = [
        _range(role, name, names, seen[role].found(name), method)
        for role in ROLES
        for name, names in readers[role].items()
    ]
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


class _Histogram:
    """How many absolute values lie in each of `_BINS` bins, which widen as larger ones come."""

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, np.int64)
        self.width = 0.0
        self.absmax = 0.0

    @property
    def middles(self) -> FloatArray:
        """Of the bins."""
        return ((np.arange(_BINS) + 0.5) * self.width).astype(np.float32)

    def add(self, values: FloatArray) -> None:
        """Counts values."""
        sizes = np.abs(values)
        largest = float(sizes.max(initial=0.0))
        self.absmax = max(self.absmax, largest)
        self.width = self.width or largest / (_BINS - 1)
        while largest >= self.width * _BINS and largest:
            self.counts[: _BINS // 2] = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[_BINS // 2 :] = 0
            self.width *= 2
        bins = (sizes / (self.width or 1.0)).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)

    def bars(self, count: int) -> npt.NDArray[np.int64]:
        """The same in ``count`` equal parts of 0..absmax."""
        places = np.minimum(self.middles, self.absmax)
        found, _ = np.histogram(places, count, (0.0, self.absmax), weights=self.counts)
        return found.astype(np.int64)


class _Histograms:
    """Of the tensors of one graph."""

    def __init__(self) -> None:
        self._found: dict[str, _Histogram] = defaultdict(_Histogram)
        self._waiting: dict[str, list[FloatArray]] = defaultdict(list)

    def add(self, name: str, values: npt.NDArray[Any]) -> None:
        """Hears one tensor; many small ones are counted together."""
        self._waiting[name].append(values.astype(np.float32).ravel())
        if sum(part.size for part in self._waiting[name]) > _TOGETHER:
            self._found[name].add(np.concatenate(self._waiting.pop(name)))

    def found(self, name: str) -> _Histogram:
        """What was heard of a tensor."""
        if name in self._waiting:
            self._found[name].add(np.concatenate(self._waiting.pop(name)))
        return self._found[name]


def _range(
    role: Role, name: str, products: tuple[str, ...], seen: _Histogram, method: Method
) -> TensorRange:
    if not seen.absmax:
        raise OptionError(
            f"The input of {products[0]} was zero throughout, so it has no range. Measure on more "
            "music."
        )
    return TensorRange(
        role=role,
        tensor=name,
        products=products,
        amax=min(_CHOICES[method](seen), seen.absmax) or seen.absmax,
        absmax=seen.absmax,
        values=int(seen.counts.sum()),
        histogram=tuple(seen.bars(BARS).tolist()),
    )


def _by_error(seen: _Histogram) -> float:
    """The range with the least mean square error of 8 bits, clipping included."""
    middles = np.minimum(seen.middles, seen.absmax)
    used = seen.counts > 0
    places, counts = middles[used], seen.counts[used]

    def error(amax: float) -> float:
        step = amax / _LEVELS
        rounded = np.minimum(np.round(places / step), _LEVELS) * step
        return float((counts * (places - rounded) ** 2).sum())

    return float(min(_TRIED * seen.absmax, key=error))


def _by_percentile(seen: _Histogram) -> float:
    edges = (np.arange(_BINS + 1) * seen.width).astype(np.float32)
    return _by_calibrater("percentile", seen, seen.counts, edges)


def _by_entropy(seen: _Histogram) -> float:
    half = seen.bars(_ENTROPY_BINS // 2)
    counts = np.concatenate([half[::-1], half])
    edges = np.linspace(-seen.absmax, seen.absmax, _ENTROPY_BINS + 1, dtype=np.float32)
    return _by_calibrater("entropy", seen, counts, edges)


def _by_calibrater(
    method: str, seen: _Histogram, counts: npt.NDArray[np.int64], edges: FloatArray
) -> float:
    """What one of ONNX Runtime's calibraters makes of a histogram."""
    from onnxruntime.quantization.calibrate import HistogramCollector  # noqa: PLC0415  1 s

    calibrater = HistogramCollector(
        method=method,
        symmetric=True,
        num_bins=len(counts),
        num_quantized_bins=_ENTROPY_LEVELS,
        percentile=PERCENTILE,
        scenario="same",
    )
    largest = np.float32(seen.absmax)
    calibrater.histogram_dict = {"": (counts, edges, -largest, largest, largest)}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        low, high = calibrater.compute_collection_result()[""][:2]
    return max(-float(low), float(high))


_CHOICES: dict[Method, Callable[[_Histogram], float]] = {
    "mse": _by_error,
    "percentile": _by_percentile,
    "entropy": _by_entropy,
    "absmax": lambda seen: seen.absmax,
}
