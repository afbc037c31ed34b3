"""``small``: int8 caches under the products of ``fast``, for machines with little memory.

Contract: the graphs of `mt3_calibration.fast.recipe`, whose products they share, with the caches of
`mt3_calibration.precision.caches` in them.  The caches come first: their scales are folded into
fp32 columns, so that `fast` rounds what is really multiplied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mt3_calibration.precision.caches import PROFILE, find_scales, int8_decoder, int8_encoder
from mt3_calibration.precision.forced import segments_of
from mt3_calibration.precision.gate import GateName
from mt3_calibration.precision.material import Material
from mt3_calibration.precision.recipes import Product, Talk, recipe_named
from mt3_calibration.precision.source import Changed, Source

if TYPE_CHECKING:
    from onnx import ModelProto

    from mt3_runtime.manifest import Role

PRODUCTS = "fast"
"""The recipe of the matrix products."""


class Small:
    """Keeps caches and products in int8."""

    name = "small"
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        talk("looking for the ranges of the caches")
        segments = segments_of(source.listen(material.calibration), source.manifest)
        scales = find_scales(source, segments)
        graphs: dict[tuple[Role, str], ModelProto] = {
            ("encoder", PROFILE): int8_encoder(source.graph("encoder", PROFILE), scales),
            ("decoder", PROFILE): int8_decoder(source.graph("decoder", PROFILE), scales),
        }
        made = recipe_named(PRODUCTS).apply(Changed(source, graphs), material, talk)
        precision = replace(made.precision, name=self.name, self_cache="int8", cross_cache="int8")
        return replace(made, precision=precision)


RECIPE = Small()
