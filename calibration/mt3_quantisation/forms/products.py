"""Finds the matrix products of a graph that may be quantised.

A product is named after its weight, without ``.kernel``: the name is the checkpoint's, so it is the
same in every profile, report and tool.  Its *group* is the name without the number of the layer
(``decoder.mlp.wo``), its *layer* what stands in front (``decoder.layers_3``).

The output head and the routers of experts stay exact: near-ties choose tokens and experts.  Norms,
softmax and products of activations with each other have no weights and are never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mt3_runtime.errors import OptionError

if TYPE_CHECKING:
    from onnx import ModelProto

    from mt3_runtime.bundles.bundle import Role

#: What a weight's parameter name ends with; constants of the graph have other names.
KERNEL = ".kernel"
#: Parameters whose products stay exact.
EXACT = ("logits_dense", ".router.")
_NUMBERED = re.compile(r"\.(layers|blocks)_\d+")
_LAYER = re.compile(r".*?\.(?:layers|blocks)_\d+")


@dataclass(frozen=True)
class WeightProduct:
    """One matrix product with a weight.

    Attributes:
        name: The weight's name without `KERNEL`.
        role: Graph it is in.
        node: Name of the node.
        activation: Tensor that is multiplied with the weight.
    """

    name: str
    role: Role
    node: str
    activation: str

    @property
    def weight(self) -> str:
        """Name of the parameter."""
        return self.name + KERNEL

    @property
    def group(self) -> str:
        """The name without the number of the layer."""
        return _NUMBERED.sub("", self.name)

    @property
    def layer(self) -> str:
        """The layer it is in; the name itself outside of all layers."""
        found = _LAYER.match(self.name)
        return found[0] if found else self.name


def find_products(model: ModelProto, role: Role) -> list[WeightProduct]:
    """All products of a graph with plain weights that may be quantised, in the graph's order."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        WeightProduct(node.input[1].removesuffix(KERNEL), role, node.name, node.input[0])
        for node in model.graph.node
        if node.op_type == "MatMul" and _is_weight(node.input[1]) and node.input[1] in stored
    ]


def _is_weight(name: str) -> bool:
    return name.endswith(KERNEL) and not any(part in name for part in EXACT)


def without(products: Sequence[WeightProduct], keep: Iterable[str]) -> list[WeightProduct]:
    """Leaves out products by name, group or layer.

    Raises:
        OptionError: A name means none of them.
    """
    left = list(products)
    for name in keep:
        matching = [p for p in products if name in (p.name, p.group, p.layer)]
        if not matching:
            groups = sorted({p.group for p in products})
            raise OptionError(
                f"There is no product {name!r} to keep. Name a group ({', '.join(groups)}), a "
                "layer (decoder.layers_0), or a product (decoder.layers_0.mlp.wo)."
            )
        left = [p for p in left if p not in matching]
    return left
