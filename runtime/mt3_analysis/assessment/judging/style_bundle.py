"""Judges style by a small network on measures, from a bundle that a user has trained.

Contract: a bundle of kind ``assessor``, family ``measures``: ``bundle.json`` says which measures go
in and which dimensions come out, ``weights.bin`` holds the numbers (float32, little-endian),
checked by size and SHA-256.  Measures become normal scores by the quantiles of the training set, a
network of one hidden layer makes indices of them, several of them are averaged; it is all NumPy.
Bundles are made by `mt3 calibrate assess style`; none comes with the package.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment.assessment_results import Dimension
from mt3_analysis.assessment.judging.execution import FEWEST_NOTES
from mt3_analysis.assessment.measures.all_measures import MEASURES
from mt3_analysis.assessment.measures.measured_take import MISSING, Measured
from mt3_analysis.assessment.performance import Floats
from mt3_runtime.bundles.container import open_container
from mt3_runtime.bundles.manifest import FORMAT, FORMAT_VERSION, SHA256, parse_bundle, read_whole
from mt3_runtime.bundles.verified_graphs import MANIFEST, MAX_MANIFEST_BYTES
from mt3_runtime.errors import BundleError, BundleNotFoundError
from mt3_runtime.schema import Between, document_bytes

WEIGHTS = "weights.bin"
KNOTS = 33
"""Quantiles of a measure."""

BEYOND = 3.0
"""Normal scores are clipped to this; one value in 370 lies farther out."""

Count = Annotated[int, Between(1, 4096)]
Unit = Annotated[float, Between(-2.0, 2.0)]


@dataclass(frozen=True)
class StyleDimension:
    """A dimension that comes out.

    Attributes:
        name: Such as ``articulation_clarity``.
        low: Residual (label less prediction) that one performance in ten of a movement that was not
            trained with falls below.
        high: Residual that one in ten exceeds.
        r: Correlation with labels, on excerpts that were not trained with.
        pairs: Share of pairs of takes of such an excerpt in the right order.
    """

    name: str
    low: Unit
    high: Unit
    r: Unit
    pairs: Unit


@dataclass(frozen=True)
class StyleNetwork:
    """One of the networks, with or without measures that need a score.

    Attributes:
        with_score: Whether it takes them.
        measures: Names of its inputs in order.
        hidden: Units of the hidden layer.
        members: Networks that are averaged.
        farthest: Root mean square normal score that 99.5 % of the training set stay below.
    """

    with_score: bool
    measures: tuple[str, ...]
    hidden: Count
    members: Annotated[int, Between(1, 64)]
    farthest: Annotated[float, Between(0.0, 100.0)]

    def numbers(self, dimensions: int) -> int:
        """Floats of its weights."""
        inputs = len(self.measures)
        member = (inputs + 1) * self.hidden + (self.hidden + 1) * dimensions
        return inputs * KNOTS + self.members * member


@dataclass(frozen=True)
class StyleManifest:
    """The typed content of ``bundle.json``.

    Attributes:
        kind: ``assessor``.
        family: ``measures``.
        export_id: Marks the files of one export.
        name: The bundle's.
        licence: Of the labels it was trained with, as far as it is known.
        source: What it was trained with; ``digest`` is the SHA-256 of its labels.
        exporter: Who wrote this.
        dimensions: What comes out.
        networks: One or two, of which one takes no score.
        sha256: Digest of ``weights.bin``.
        size: Its bytes.
    """

    kind: Literal["assessor"]
    family: Literal["measures"]
    export_id: str
    name: str
    licence: str
    source: dict[str, str]
    exporter: str
    dimensions: tuple[StyleDimension, ...]
    networks: tuple[StyleNetwork, ...]
    sha256: str
    size: Annotated[int, Between(4, 1 << 26)]

    def to_json(self) -> bytes:
        """The file's bytes."""
        return document_bytes(self, FORMAT, FORMAT_VERSION)

    @classmethod
    def from_json(cls, data: bytes, where: str) -> StyleManifest:
        """Parses and checks a manifest; raises `BundleError`."""
        body = parse_bundle(data, where)
        if (body.get("kind"), body.get("family")) != ("assessor", "measures"):
            kind = f"{body.get('kind', 'transcriber')!r:.40}"
            raise BundleError(
                f"{where} is of kind {kind}; expected an assessor on measures, which "
                "`mt3 calibrate assess style` makes."
            )
        return read_whole(cls, body, where, remedy="Make it again.")

    def contradictions(self) -> list[str]:
        """What its parts say differently; empty for a sound one."""
        faults: list[str] = []
        if not SHA256.fullmatch(self.sha256):
            faults.append("the SHA-256 is not 64 hexadecimal digits")
        names = [each.name for each in self.dimensions]
        if not 1 <= len(names) <= 64 or len(set(names)) != len(names):
            faults.append("no dimensions, or one twice")
        if any(each.low > each.high for each in self.dimensions):
            faults.append("an interval that ends before it begins")
        if [each.with_score for each in self.networks] not in ([False], [False, True]):
            faults.append("networks other than one without, and at most one with a score")
        unknown = {m for each in self.networks for m in each.measures} - set(MEASURES)
        if unknown:
            faults.append(f"measures that this version does not have: {', '.join(sorted(unknown))}")
        if 4 * sum(each.numbers(len(names)) for each in self.networks) != self.size:
            faults.append("weights of another size")
        return faults


@dataclass(frozen=True, eq=False)
class Layers:
    """The numbers of a network.

    Attributes:
        knots: Float64 [inputs, KNOTS], quantiles of measures.
        members: First matrix [inputs, hidden], bias, second matrix [hidden, dimensions], bias.
    """

    knots: Floats
    members: tuple[tuple[Floats, Floats, Floats, Floats], ...]

    def forward(self, values: Floats) -> Floats:
        """Indices of dimensions, float64 [rows, dimensions], of normal scores [rows, inputs]."""
        outputs = [
            np.maximum(values @ first + bias, 0.0) @ second + last
            for first, bias, second, last in self.members
        ]
        return np.asarray(np.mean(outputs, axis=0))


def normal_scores(values: Floats, knots: Floats) -> Floats:
    """Normal scores of measures, float64 [rows, inputs]; 0, the median, where there is no value.

    Args:
        values: [rows, inputs], NaN where not measured.
        knots: [inputs, KNOTS].
    """
    shares = (np.arange(knots.shape[1]) + 0.5) / knots.shape[1]
    normal = np.sqrt(2.0) * _inverse_erf(2.0 * shares - 1.0)
    columns = []
    for column, points in zip(values.T, knots, strict=True):
        rising = points + np.arange(len(points)) * 1e-9 * max(1.0, float(np.abs(points).max()))
        inside = np.interp(column, rising, normal)
        # Beyond the ends one goes on with the slope of the outer quarter: far out is seen as such.
        slope = (normal[-1] - normal[0]) / max(float(rising[-1] - rising[0]), 1e-9)
        beyond = np.maximum(column - rising[-1], 0.0) + np.minimum(column - rising[0], 0.0)
        columns.append(np.clip(inside + slope * beyond, -BEYOND, BEYOND))
    scores = np.stack(columns, axis=1) if columns else np.zeros(values.shape)
    return np.where(np.isfinite(values), scores, 0.0)


def _inverse_erf(x: Floats) -> Floats:
    """Winitzki's formula and two steps of Newton's: exact to 1e-9 for the quantiles here."""
    from math import erf, pi  # noqa: PLC0415

    inner = np.log1p(-(x**2))
    term = 2 / (pi * 0.147) + inner / 2
    y = np.sign(x) * np.sqrt(np.sqrt(term**2 - inner / 0.147) - term)
    for _ in range(2):
        y = y - (np.vectorize(erf)(y) - x) * np.sqrt(pi) / 2 * np.exp(y**2)
    return np.asarray(y)


class StyleHead:
    """A trained head.

    Attributes:
        manifest: What the bundle says.
    """

    def __init__(self, manifest: StyleManifest, weights: npt.NDArray[np.float32]) -> None:
        """Takes the numbers, float32, in the order of the manifest's networks."""
        self.manifest = manifest
        numbers = weights.astype(np.float64)
        self._layers = []
        for network in manifest.networks:
            count = network.numbers(len(manifest.dimensions))
            self._layers.append(unpacked(numbers[:count], network, len(manifest.dimensions)))
            numbers = numbers[count:]

    def judge(self, measures: Mapping[str, Measured], *, notes: int) -> tuple[Dimension, ...]:
        """Judges all dimensions of style of a take, by its measures."""
        index = 1 if len(self._layers) > 1 and measures["matched_notes"].value is not None else 0
        network, layers = self.manifest.networks[index], self._layers[index]
        given = [measures[name] for name in network.measures]
        values = np.array([[np.nan if m.value is None else m.value for m in given]])
        scores = normal_scores(values, layers.knots)
        far = float(np.sqrt(np.mean(scores**2)))
        reason = None
        lacking = [m.reason for m in given if m.reason in MISSING.values()]
        if notes < FEWEST_NOTES:
            reason = f"{notes} notes; expected {FEWEST_NOTES} or more"
        elif lacking:
            reason = lacking[0]
        elif far > network.farthest:
            limit = network.farthest
            reason = f"unlike what was trained with (distance {far:.2f} > {limit:.2f})"
        output = layers.forward(scores)[0]
        return tuple(
            self._dimension(each, float(value), notes, reason, given, scores[0])
            for each, value in zip(self.manifest.dimensions, output, strict=True)
        )

    def _dimension(
        self,
        said: StyleDimension,
        value: float,
        notes: int,
        reason: str | None,
        given: Sequence[Measured],
        scores: Floats,
    ) -> Dimension:
        if reason is not None:
            return Dimension(said.name, "style", assessed=False, reason=reason)
        farthest = [given[i] for i in np.argsort(-np.abs(scores), kind="stable")[:3]]
        low, high = (float(np.clip(value + end, 0.0, 1.0)) for end in (said.low, said.high))
        value = float(np.clip(value, low, high))
        why = tuple(f"{m.name} {m.value:.3g} {m.unit}" for m in farthest if m.value is not None)
        return Dimension(
            said.name,
            "style",
            assessed=True,
            value=value,
            low=low,
            high=high,
            observations=notes,
            why=why,
        )


def unpacked(numbers: Floats, network: StyleNetwork, dimensions: int) -> Layers:
    """The numbers of a network as matrices."""
    inputs, hidden = len(network.measures), network.hidden
    knots, place = numbers[: inputs * KNOTS].reshape(inputs, KNOTS), inputs * KNOTS
    members = []
    for _ in range(network.members):
        parts = []
        for shape in ((inputs, hidden), (hidden,), (hidden, dimensions), (dimensions,)):
            count = int(np.prod(shape))
            parts.append(numbers[place : place + count].reshape(shape))
            place += count
        members.append((parts[0], parts[1], parts[2], parts[3]))
    return Layers(knots, tuple(members))


def packed(layers: Layers) -> Floats:
    """The matrices of a network as numbers, float64 [n]; the inverse of `unpacked`."""
    parts = [layers.knots, *(part for member in layers.members for part in member)]
    return np.concatenate([part.ravel() for part in parts])


def open_style(path: str | os.PathLike[str]) -> StyleHead:
    """Opens a bundle, a folder or one .mt3 file.

    Raises:
        BundleNotFoundError: There is none.
        BundleError: It is damaged or of another kind.
    """
    place = Path(path)
    if not place.exists():
        raise BundleNotFoundError(
            f"There is no bundle at {place}. Make one with: "
            f"mt3 calibrate assess style DIR -o {place}"
        )
    files = open_container(place)
    extent = files.find(MANIFEST)
    if extent.size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{MANIFEST} of {place} is too large; it is no manifest.")
    manifest = StyleManifest.from_json(extent.read(), str(place / MANIFEST))
    weights = files.find(WEIGHTS)
    data = weights.read() if weights.size == manifest.size else b""
    if hashlib.sha256(data).hexdigest() != manifest.sha256:
        raise BundleError(
            f"{WEIGHTS} in {place} is not the file that was written. Copy the bundle again from "
            "its source, or make it again."
        )
    numbers = np.frombuffer(data, "<f4")
    if not np.isfinite(numbers).all():
        raise BundleError(f"{WEIGHTS} in {place} holds numbers that are none. Make it again.")
    return StyleHead(manifest, numbers)
