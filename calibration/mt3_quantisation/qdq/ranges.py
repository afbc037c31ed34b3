"""Activation ranges: chosen from histograms, kept in a file that no quantiser owns.

The file says, for every tensor that a weight is multiplied with, how large its values get.  It is
plain JSON (``docs/precision.md`` specifies it), so that ONNX Runtime's quantiser, NVIDIA's, or
anybody else's can read the same numbers, and so that what a quantised bundle was made from can be
looked at and kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from mt3_runtime.bundles.manifest import Role
from mt3_runtime.errors import BundleError
from mt3_runtime.filesystem.atomic import write_atomic
from mt3_runtime.schema import LARGEST_INT, Between, read_document, read_fields

if TYPE_CHECKING:
    from mt3_runtime.bundles.bundle import Bundle

FORMAT, FORMAT_VERSION = "mt3-runtime.ranges", 1

#: How a range is chosen.  ``mse``: with the least mean square error of 8 bits, what is clipped
#: included.  ``absmax``: the largest value.  ``percentile``: what 99.99 % of all values stay below.
#: ``entropy``: where 8 bits keep most of the distribution (KL divergence).
Method = Literal["mse", "absmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

#: A file has some hundred tensors; a larger one is not ours.
_MAX_BYTES = 1 << 23
#: Bars of the histogram that is kept of each tensor.
BARS = 64
#: 99.99 % of the values in the first 6 of 64 bars: a tenth of the range.
_NEARLY_ALL, _NARROW = 0.9999, 6


@dataclass(frozen=True)
class TensorRange:
    """What was seen of one tensor.

    Attributes:
        role: ``encoder`` or ``decoder``.
        tensor: Its name in the graph.
        products: Names of the products that read it.
        amax: The range: values from -amax to amax are represented, others are clipped.
        absmax: The largest absolute value.
        values: How many were seen.
        histogram: How many absolute values lie in each of `BARS` equal parts of 0..absmax.
    """

    role: Role
    tensor: str
    products: tuple[str, ...]
    amax: float
    absmax: float
    values: int
    histogram: tuple[int, ...]

    @property
    def outlying(self) -> bool:
        """Whether a few values are over ten times as large as all others.

        Then no static int8 scale suits both: it clips the few, or has no steps left for the rest.
        """
        return sum(self.histogram[:_NARROW]) >= _NEARLY_ALL * self.values


@dataclass(frozen=True)
class Ranges:
    """Ranges of all activations of a bundle.

    Attributes:
        export_id: The bundle's.
        profile: Profile of the graphs.
        encoder, decoder: SHA-256 of the graphs.
        method: How ``amax`` was chosen.
        material: What was listened to, for people.
        segments: How many segments that was.
        tokens: How many decoder steps.
        tensors: One per activation.
    """

    export_id: str
    profile: str
    encoder: str
    decoder: str
    method: Method
    material: str
    segments: int
    tokens: int
    tensors: tuple[TensorRange, ...]

    def of(self, role: Role) -> dict[str, TensorRange]:
        """The ranges of one graph, by tensor."""
        return {found.tensor: found for found in self.tensors if found.role == role}

    def check(self, bundle: Bundle) -> None:
        """Refuses ranges that were measured on other graphs.

        Raises:
            BundleError: They were.
        """
        graphs = {g.role: g.sha256 for g in bundle.manifest.graphs if g.profile == self.profile}
        if graphs != {"encoder": self.encoder, "decoder": self.decoder}:
            raise BundleError(
                f"The ranges were measured on other graphs than those of {bundle.path} (export "
                f"{self.export_id}, profile {self.profile}). Leave --ranges out to measure again."
            )

    def to_json(self) -> bytes:
        """The file's bytes."""
        document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}
        return (json.dumps(document, indent=1) + "\n").encode("ascii")


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Writes the file, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    write_atomic(path, ranges.to_json())


def read_ranges(path: Path) -> Ranges:
    """Reads and checks a file.

    Raises:
        BundleError: It cannot be read or does not hold ranges.
    """
    body = read_document(
        path,
        FORMAT,
        FORMAT_VERSION,
        most=_MAX_BYTES,
        otherwise="holds no ranges",
        remedy="Measure them again.",
    )
    found = read_fields(_Document, body, str(path))
    tensors = tuple(
        _tensor(entry, f"{path}, tensors[{index}]") for index, entry in enumerate(found.tensors)
    )
    if len({(tensor.role, tensor.tensor) for tensor in tensors}) != len(tensors):
        raise BundleError(f"{path} names a tensor twice.")
    return Ranges(**{**vars(found), "tensors": tensors})


@dataclass(frozen=True)
class _Document:
    """The keys of a file."""

    export_id: str
    profile: str
    encoder: str
    decoder: str
    method: Method
    material: str
    segments: Annotated[int, Between(1, LARGEST_INT)]
    tokens: Annotated[int, Between(0, LARGEST_INT)]
    tensors: tuple[object, ...]


def _tensor(value: object, where: str) -> TensorRange:
    found = read_fields(TensorRange, value, where)
    fine = (
        len(found.histogram) == BARS
        and min(found.histogram) >= 0
        and 0 < found.amax <= found.absmax
        and found.values > 0
    )
    if not fine:
        raise BundleError(f"{where} is no range; expected 0 < amax <= absmax and {BARS} counts.")
    return found
