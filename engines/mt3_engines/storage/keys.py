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
from mt3_engines.versions import MAKERS, Maker, MakerName
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

#: On which GPUs an engine of TensorRT runs: the one kind it was built on, all of its compute
#: capability, or all from Ampere (8.0) on.
Hardware = Literal["this", "same", "ampere_plus"]
HARDWARE: tuple[Hardware, ...] = ("this", "same", "ampere_plus")

#: Raised whenever `mt3_engines.building.prepare` makes other graphs of the same bundle.
RECIPE = 2

_AMPERE = (8, 0)
_CAPABILITY = re.compile(r"(\d{1,2})\.(\d)")


@dataclass(frozen=True)
class EngineTarget:
    """What engines are built for, or run on.

    Attributes:
        tensorrt: Full version of the maker, such as ``10.16.1.11``.
        capability: Compute capability, such as ``9.0``; the lowest of the targets where an engine
            is built for several.
        gpu: Name of the GPU; empty where none is needed.
        maker: What builds and runs them.
        targets: Compute capabilities they are built for, ascending; empty for the GPU that is here.
    """

    tensorrt: str
    capability: str
    gpu: str
    maker: MakerName = "tensorrt"
    targets: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        """Maker and version, for people."""
        return f"{MAKERS[self.maker].title} {self.tensorrt}"


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
        slots: Rows it was built for; numbers of segments for an encoder.
        capacity: Columns of the cache; 0 for an encoder.
        tensorrt: Full version of what built it.
        capability: Compute capability it was built on; the lowest of its targets.
        gpu: GPU it was built on; empty if that needed none.
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
    #: What built it.
    maker: MakerName = "tensorrt"
    #: Compute capabilities it was built for without a GPU, ascending.
    targets: tuple[str, ...] = ()

    @property
    def made_by(self) -> Maker:
        """What built it, and runs it."""
        return MAKERS[self.maker]

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
        made_by = f"{self.made_by.extra}{self.tensorrt}"
        gpus = "x".join(self.targets or [self.capability]).replace(".", "")
        return f"{self.role}-{self.numbers}-s{shape}{columns}-{made_by}-sm{gpus}-{self.digest[:12]}"

    def same_work(self, other: EngineKey) -> bool:
        """Whether both compute the same by one maker, wherever it was, and whatever they hold."""
        place = {
            "tensorrt": "",
            "capability": "",
            "gpu": "",
            "version_compatible": False,
            "hardware": "this",
            "stripped": False,
            "targets": (),
        }
        return replace(self, **place) == replace(other, **place)  # type: ignore[arg-type]

    def obstacles(self, place: EngineTarget) -> list[str]:
        """Why it cannot run at a place; empty if it can."""
        if self.maker != place.maker:
            return [f"it was built with {self.made_by.title}, here is {MAKERS[place.maker].title}"]
        title, found = self.made_by.title, []
        if self.tensorrt != place.tensorrt and not self._runs_on_version(place.tensorrt):
            found.append(f"it was built with {title} {self.tensorrt}, here is {place.tensorrt}")
        if self.targets and place.capability not in self.targets:
            found.append(
                f"it was built for compute capability {', '.join(self.targets)}, and {place.gpu} "
                f"has {place.capability}"
            )
        elif not self.targets and not self._runs_on_gpu(place):
            found.append(
                f"it was built for {self.gpu} (compute capability {self.capability}), here is "
                f"{place.gpu} ({place.capability})"
            )
        return found

    def _runs_on_version(self, installed: str) -> bool:
        built, here = self.made_by.version(self.tensorrt), self.made_by.version(installed)
        return self.version_compatible and built.major == here.major and here >= built

    def _runs_on_gpu(self, place: EngineTarget) -> bool:
        if self.hardware == "ampere_plus":
            return capability_of(place.capability) >= _AMPERE
        same = self.capability == place.capability
        return same and (self.hardware == "same" or self.gpu == place.gpu)

    @property
    def matrix_products(self) -> bool:
        """Whether all its GPUs have matrix products of fp32.

        TensorRT for RTX has none on Turing: it refuses some, and others come out as zeros.
        """
        return self.maker != "rtx" or "7.5" not in self.targets

    def lacking(self) -> str:
        """What the GPUs it is for do not have; empty if they have all."""
        lowest = _AMPERE if self.hardware == "ampere_plus" else capability_of(self.capability)
        if self.precision == "fp32" and not self.matrix_products:
            return (
                f"{self.made_by.title} has no fp32 matrix products for compute capability "
                f"{self.capability} (Turing); build with --precision fp16, or leave sm75 out of "
                "--targets"
            )
        if self.quantised == "fp8" and lowest < FP8_CAPABILITY:
            return (
                "fp8 products need compute capability 8.9 (Ada, Hopper or newer), and the engine "
                f"is for {'.'.join(map(str, lowest))}; use a bundle of int8, or the exact one"
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
        made_for = key.made_by.targets
        sound = key.targets == tuple(target for target in made_for if target in key.targets)
        sound = sound and bool(key.targets) == bool(made_for)
        if key.capacity < 0 or not buckets_are_ascending(key.slots) or not sound:
            raise BundleError(f"{where} does not describe an engine; build the engine again.")
        try:
            capability_of(key.capability)
            key.made_by.version(key.tensorrt)
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
