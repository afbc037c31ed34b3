"""Precision recipes by name: ways to make the graphs of an exact bundle smaller or faster.

Contract: a `Recipe` is a name, the gate that judges it, and `apply`, which turns a `Source` into a
`Product`: new graphs, and what numbers are in them.  It may look at the calibration part of the
material and at nothing else.  Judging, stamping, checking and writing are not its business
(`mt3_quantisation.precision_command`).  `RECIPES` lists them by name; a module is imported when its
recipe is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material
from mt3_runtime.bundles.manifest import Role
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from onnx import ModelProto

RECIPES: dict[str, str] = {
    "fp16-stored": "mt3_quantisation.forms.stored_halves",
    "fp16": "mt3_quantisation.forms.halves:FP16",
    "bf16": "mt3_quantisation.forms.halves:BF16",
    "fast": "mt3_quantisation.integers.integer_recipe:FAST",
    "small": "mt3_quantisation.integers.integer_recipe:SMALL",
    "int8": "mt3_quantisation.qdq.qdq_recipe:INT8",
    "fp8": "mt3_quantisation.qdq.qdq_recipe:FP8",
}
"""Where each recipe is, by its name: the ``RECIPE`` of a module, unless another one is named."""

Graphs = Mapping[tuple[Role, str], "ModelProto"]
"""Graphs by role and profile."""

Talk = Callable[[str], None]
"""Says something to the person watching, in one line."""


@dataclass(frozen=True)
class Product:
    """What a recipe makes.

    Attributes:
        graphs: The bundle's graphs, encoder and decoder of at least one profile; inputs, outputs
            and form of the cache are those of the source's graph of the same role and profile.
        precision: What numbers are in them; without a gate.
        stand_ins: Graphs with the same arithmetic that ONNX Runtime's CPU provider can run, for
            judging where it cannot run ``graphs``; empty where it can.
        stand_in_precision: What numbers go in and out of the stand-ins.
        files: Further files of the bundle that no runtime reads (ranges, reports), by name.
    """

    graphs: Graphs
    precision: Precision
    stand_ins: Graphs = field(default_factory=dict)
    stand_in_precision: Precision | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


class Recipe(Protocol):
    """A way to make graphs less exact.

    Attributes:
        name: What ``--precision`` calls it.
        gate: The gate that judges it.
    """

    name: str
    gate: GateName

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        """Makes the graphs; takes minutes at most, and is deterministic.

        Raises:
            BundleError: The source lacks a profile that is needed.
            MissingDependencyError: A library or sounds are not installed.
        """
        ...


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        OptionError: There is none.
    """
    if name not in RECIPES:
        raise OptionError(f"--precision is {name!r}; expected one of {', '.join(RECIPES)}.")
    module, _, attribute = RECIPES[name].partition(":")
    recipe: Recipe = getattr(importlib.import_module(module), attribute or "RECIPE")
    return recipe
