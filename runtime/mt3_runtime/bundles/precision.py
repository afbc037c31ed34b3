"""Precision of a bundle: what is stored, computed and cached in how many bits.

Contract: a `Precision` describes the graphs of a bundle truthfully, so that a backend can refuse
what it cannot run before anything is loaded, and allocate caches of the right type.  A bundle whose
graphs were made approximate on purpose also carries the `Verdict` of the gate that judged it, even
if that was a failure: what is not as good as the exact model says so itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from mt3_runtime.errors import BundleError
from mt3_runtime.schema import read_fields

Kind = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Types of numbers, from the exact one on."""

ELEMENTS = {
    "fp32": "tensor(float)",
    "fp16": "tensor(float16)",
    "bf16": "tensor(bfloat16)",
    "int8": "tensor(int8)",
    "fp8": "tensor(float8e4m3fn)",
}
"""ONNX Runtime's names of them, as of the inputs and outputs of graphs."""


@dataclass(frozen=True)
class Verdict:
    """What a gate said about approximate graphs.

    Attributes:
        gate: Name of the gate, see `mt3_quantisation.gates.gate`.
        passed: Whether the graphs passed.
        faults: What they failed by, one sentence each; empty if they passed.
        judged: On what they were judged: the material, and what computed.
        figures: Measured differences from the exact graphs, by name.
    """

    gate: str
    passed: bool
    faults: tuple[str, ...]
    judged: str
    figures: dict[str, float]

    @classmethod
    def from_dict(cls, data: object) -> Verdict:
        """Reads what ``asdict`` wrote.

        Raises:
            BundleError: A key or a type is wrong, or the parts contradict each other.
        """
        found = read_fields(cls, data, "gate")
        if found.passed == bool(found.faults):
            raise BundleError(f"gate: passed is {found.passed}, with {len(found.faults)} faults.")
        return found


@dataclass(frozen=True)
class Precision:
    """The numbers of a bundle's graphs; all but ``name`` and ``gate`` are of `KINDS`.

    Attributes:
        name: What this combination is called: ``fp32``, ``fp16-stored``, or what
            ``mt3 calibrate --precision`` was asked for.
        weights: Smallest type in which matrices are stored.
        arithmetic: Smallest type that enters matrix products.
        self_cache: Of the decoder's keys and values of what it said.
        cross_cache: Of its keys and values of what it hears.
        gate: What a gate said; None for graphs that were never judged.
    """

    name: str
    weights: Kind = "fp32"
    arithmetic: Kind = "fp32"
    self_cache: Kind = "fp32"
    cross_cache: Kind = "fp32"
    gate: Verdict | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def exact(self) -> bool:
        """Whether everything but the stored weights is fp32."""
        return {self.arithmetic, self.self_cache, self.cross_cache} == {"fp32"}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Precision:
        """Reads what `to_dict` wrote.

        Raises:
            BundleError: A key is missing or unknown, or a value is none of those above.
        """
        found = read_fields(cls, data, "precision")
        if not found.name:
            raise BundleError("precision: name is empty.")
        return found
