"""Makers of engines, TensorRT and TensorRT for RTX: supported versions, and how they differ.

Everything the project does with TensorRT is restricted to what 10.3, 10.16 and 11.4 all offer, or
is asked for here.  The limits come from the bindings themselves (`tests/engines/bindings.py`) and
from the parser's operator table (`operators.json`).  TensorRT for RTX 1.7 has the interface and the
parser of TensorRT 11; what it alone has is a list of target GPUs, so that engines are built without
one, and a runtime cache of the kernels it finishes on the user's GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mt3_runtime.errors import DeviceError
from mt3_runtime.imports.extras import pip, requirement


class Version(NamedTuple):
    """The part of a version that decides anything; compares like a tuple."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


#: The first version with a layer that writes into a cache in place, and with RMS norms.
IN_PLACE = Version(10, 15)

MakerName = Literal["tensorrt", "rtx"]


@dataclass(frozen=True)
class Maker:
    """A compiler of engines, with the runtime that runs them.

    Attributes:
        name: That of its device, too.
        title: For people.
        module: Import name.
        extra: What brings it.
        oldest: Oldest supported version.
        too_new: The first that nobody has looked at.
        graphs: The TensorRT whose form of graphs all its versions read; None: each its own.
        targets: Compute capabilities it builds for without a GPU, ascending.
    """

    name: MakerName
    title: str
    module: str
    extra: str
    oldest: Version
    too_new: Version
    graphs: Version | None = None
    targets: tuple[str, ...] = ()

    def version(self, text: str) -> Version:
        """Reads the beginning of ``10.16.1.11`` and the like.

        Raises:
            DeviceError: It is not a version, or one that is not supported.
        """
        match = re.match(r"(\d{1,4})\.(\d{1,4})", text)
        version = Version(int(match[1]), int(match[2])) if match else Version(0, 0)
        if not self.oldest <= version < self.too_new:
            raise DeviceError(
                f"{self.title} {text} is not supported: engines need {self.oldest} or newer, and "
                f"nothing is known of {self.too_new.major}.x. Install another one: "
                f"{pip(requirement(self.module, self.extra))}."
            )
        return version

    def graph_version(self, text: str) -> Version:
        """The TensorRT whose form of graphs a version of this maker reads.

        Raises:
            DeviceError: As `version`.
        """
        version = self.version(text)
        return self.graphs or version


#: Ordinary TensorRT, from 10.3 (JetPack 6) on.
TENSORRT = Maker("tensorrt", "TensorRT", "tensorrt", "trt", Version(10, 3), Version(12, 0))

#: TensorRT for GeForce and RTX.
RTX = Maker(
    "rtx",
    "TensorRT for RTX",
    "tensorrt_rtx",
    "rtx",
    Version(1, 7),
    Version(2, 0),
    graphs=Version(11, 4),
    targets=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
)

MAKERS: dict[MakerName, Maker] = {maker.name: maker for maker in (TENSORRT, RTX)}


def updates_in_place(version: Version) -> bool:
    """Whether TensorRT can write into the cache; older ones copy it in every step."""
    return version >= IN_PLACE


def parse_version(text: str) -> Version:
    """`Maker.version` of ordinary TensorRT."""
    return TENSORRT.version(text)
