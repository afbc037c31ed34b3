"""Engine keys: on which GPU, with which TensorRT and for which graph an engine may run.

An engine is a compiled program for one graph, one TensorRT, one kind of GPU, one precision and some
shapes.  `EngineKey` says which; it is stored beside the engine and compared before a byte of the
engine is given to TensorRT, which would refuse some mismatches with an error and accept others.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mt3_engines.storage.shapes import buckets_are_ascending
from mt3_engines.versions import parse_version
from mt3_runtime.bundles.bundle import Role
from mt3_runtime.errors import BundleError, DeviceError
from mt3_runtime.schema import read_fields

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

#: Format of the products that the bundle's graphs have quantised; empty for none.
Quantised = Literal["", "int8", "fp8"]
QUANTISED: tuple[Quantised, ...] = ("", "int8", "fp8")

#: Compute capability from which on there are fp8 products.
FP8_CAPABILITY = (8, 9)

#: On which GPUs an engine runs: the one kind it was built on, all of its compute capability, or all
#: from Ampere (8.0) on.
Hardware = Literal["this", "same", "ampere_plus"]
HARDWARE: tuple[Hardware, ...] = ("this", "same", "ampere_plus")

#: Raised whenever `mt3_engines.building.prepare` makes other graphs of the same bundle.
RECIPE = 1

_AMPERE = (8, 0)
_CAPABILITY = re.compile(r"(\d{1,2})\.(\d)")


@dataclass(frozen=True)
class EngineTarget:
    """What an engine runs on.

    Attributes:
        tensorrt: Full version, such as ``10.16.1.11``.
        capability: Compute capability, such as ``9.0``.
        gpu: Name of the GPU.
    """

    tensorrt: str
    capability: str
    gpu: str


@dataclass(frozen=True)
class EngineKey:
    """Everything that decides what an engine computes, and where.

    Attributes:
        export_id: The bundle's.
        role: ``encoder`` or ``decoder``.
        graph: SHA-256 of the bundle's graph file.
        recipe: `RECIPE` of the program that built it.
        precision: ``fp32`` or ``fp16``: of matrix products that are not quantised, and of caches;
            the rest is fp32.
        quantised: ``int8`` or ``fp8``: of the products that the bundle has quantised.
        slots: Rows it was built for; (1,), the one segment, for an encoder.
        capacity: Columns of the cache; 0 for an encoder.
        tensorrt: Full version of TensorRT.
        capability: Compute capability it was built on.
        gpu: GPU it was built on.
        version_compatible: It runs on later minor versions of TensorRT, too.
        hardware: Other GPUs it runs on.
        stripped: It holds no weights; they come from the bundle when it is loaded.
    """

    export_id: str
    role: Role
    graph: str
    recipe: int
    precision: Precision
    slots: tuple[int, ...]
    capacity: int
    tensorrt: str
    capability: str
    gpu: str
    version_compatible: bool = False
    hardware: Hardware = "this"
    stripped: bool = False
    quantised: Quantised = ""

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that differ whenever anything differs."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def numbers(self) -> str:
        """Its types of numbers: ``fp16``, or ``int8-fp16`` where products are quantised."""
        return "-".join(filter(None, (self.quantised, self.precision)))

    @property
    def stem(self) -> str:
        """Name of its files without the ending: says the most important, is unique."""
        shape = "x".join(map(str, self.slots))
        columns = f"-c{self.capacity}" if self.capacity else ""
        return (
            f"{self.role}-{self.numbers}-s{shape}{columns}-trt{self.tensorrt}"
            f"-sm{self.capability.replace('.', '')}-{self.digest[:12]}"
        )

    def same_work(self, other: EngineKey) -> bool:
        """Whether both compute the same, wherever they were built and whatever they hold."""
        place = {
            "tensorrt": "",
            "capability": "",
            "gpu": "",
            "version_compatible": False,
            "hardware": "this",
            "stripped": False,
        }
        return replace(self, **place) == replace(other, **place)  # type: ignore[arg-type]

    def obstacles(self, place: EngineTarget) -> list[str]:
        """Why it cannot run at a place; empty if it can."""
        found = []
        if self.tensorrt != place.tensorrt and not self._runs_on_version(place.tensorrt):
            found.append(f"it was built with TensorRT {self.tensorrt}, here is {place.tensorrt}")
        if not self._runs_on_gpu(place):
            found.append(
                f"it was built for {self.gpu} (compute capability {self.capability}), here is "
                f"{place.gpu} ({place.capability})"
            )
        return found

    def _runs_on_version(self, installed: str) -> bool:
        built, here = parse_version(self.tensorrt), parse_version(installed)
        return self.version_compatible and built.major == here.major and here >= built

    def _runs_on_gpu(self, place: EngineTarget) -> bool:
        if self.hardware == "ampere_plus":
            return capability_of(place.capability) >= _AMPERE
        same = self.capability == place.capability
        return same and (self.hardware == "same" or self.gpu == place.gpu)

    def lacking(self) -> str:
        """What the GPUs it is for do not have; empty if they have all."""
        lowest = _AMPERE if self.hardware == "ampere_plus" else capability_of(self.capability)
        if self.quantised == "fp8" and lowest < FP8_CAPABILITY:
            return (
                "fp8 products need compute capability 8.9 (Ada, Hopper or newer), and the engine "
                f"is for {'.'.join(map(str, lowest))}"
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any, where: str) -> EngineKey:
        """Checks what was read from JSON.

        Raises:
            BundleError: A key is missing, unknown or has a value that makes no sense.
        """
        key = read_fields(cls, value, where)
        if key.capacity < 0 or not buckets_are_ascending(key.slots):
            raise BundleError(f"{where} does not describe an engine; build the engine again.")
        try:
            capability_of(key.capability)
            parse_version(key.tensorrt)
        except DeviceError as error:
            raise BundleError(f"{where}: {error}") from error
        return key


def capability_of(text: str) -> tuple[int, int]:
    """Reads ``9.0``.

    Raises:
        DeviceError: It is not a compute capability.
    """
    match = _CAPABILITY.fullmatch(text)
    if not match:
        raise DeviceError(f"{text!r} is not a compute capability such as 9.0.")
    return int(match[1]), int(match[2])
