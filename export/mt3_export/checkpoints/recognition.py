"""Explains state dicts of no known family: the nearest one, and what differs.

Names decide, as they do for known files (`torch_names.family_of`): a family knows a tensor if its
files may have one of that name, however many layers they have.  The nearest family knows most
of the tensors; the first one it does not know, or the first it could not do without, is the
difference that is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from mt3_export.checkpoints.stored_arrays import brief
from mt3_export.checkpoints.torch_names import is_port_name
from mt3_export.checkpoints.yourmt3_names import is_yourmt3_name

#: A tensor near the beginning of each part, without which there is no such model.
_PORT_NEEDS = (
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "decoder.block.0.layer.0.SelfAttention.q.weight",
    "lm_head.weight",
)
_YOURMT3_NEEDS = (
    "decoder.decoder.block.0.layer.0.SelfAttention.q.weight",
    "lm_head.lm_head.weight",
)


@dataclass(frozen=True)
class Family:
    """Files that are named alike.

    Attributes:
        name: What `torch_names.family_of` calls it.
        scheme: Whether a name is one of the naming scheme it belongs to.
        others: Names of the scheme that only other families have.
        needs: Names it cannot do without.
    """

    name: str
    scheme: Callable[[str], bool]
    others: str
    needs: tuple[str, ...]

    def knows(self, name: str) -> bool:
        """Whether this family's files may have a tensor of this name."""
        return self.scheme(name) and not re.search(self.others, name)


_NOT_PERCEIVER = r"encoder\.encoder\.|melspec|mel_stft|"
FAMILIES = (
    Family("mt3_pytorch", is_port_name, r"segmem_", _PORT_NEEDS),
    Family("mr_mt3", is_port_name, r"(?!)", (*_PORT_NEEDS, "segmem_proj.weight")),
    Family(
        "ymt3_plus",
        is_yourmt3_name,
        r"encoder\.blocks|pre_encoder|pre_decoder|latent_array|pos_emb|rotary",
        (*_YOURMT3_NEEDS, "encoder.encoder.additive_pe.weight"),
    ),
    Family(
        "yptf_single",
        is_yourmt3_name,
        _NOT_PERCEIVER + r"experts|mlp\.gate|rotary|pre_decoder\.0\.linear",
        (*_YOURMT3_NEEDS, "pre_decoder.0.projection_layer.weight"),
    ),
    Family(
        "yptf_multi",
        is_yourmt3_name,
        _NOT_PERCEIVER + r"experts|mlp\.gate|rotary|projection_layer",
        (*_YOURMT3_NEEDS, "pre_decoder.0.linear.weight"),
    ),
    Family(
        "yptf_moe_multi",
        is_yourmt3_name,
        _NOT_PERCEIVER + r"mlp\.dense|pos_emb|projection_layer",
        (*_YOURMT3_NEEDS, "encoder.blocks.0.local_transformer.0.mlp.experts.0.w1.weight"),
    ),
)


def describe_unknown(names: Collection[str]) -> str:
    """Describes the tensors of a state dict that no family claims, in one sentence.

    Args:
        names: Names of all tensors, at least one, in the order of the file.
    """
    known = {family.name: sum(map(family.knows, names)) for family in FAMILIES}
    nearest = max(FAMILIES, key=lambda family: known[family.name])  # the first of equals
    considered = ", ".join(f"{name} knows {count}" for name, count in known.items())
    if not known[nearest.name]:
        first = brief(next(iter(names)))
        return f"{len(names)} tensors of no known model ({considered}), the first named {first}"
    strange = next((name for name in names if not nearest.knows(name)), None)
    missing = next((name for name in nearest.needs if name not in names), None)
    difference = f"has no tensor {brief(strange)}" if strange else f"cannot do without {missing!r}"
    return (
        f"{len(names)} tensors of no known model ({considered}); nearest is {nearest.name}, which "
        f"{difference}"
    )
