"""``small``: int8 caches under the products of ``fast``, for machines with little memory.

Contract: the graphs of `mt3_calibration.fast.recipe`, whose products they share, with the caches of
`mt3_calibration.precision.caches` in them.  The caches come first: their scales are folded into
fp32 columns, so that `fast` rounds what is really multiplied.
"""

from __future__ import annotations

from dataclasses import replace

from mt3_calibration.fast.recipe import integer_products
from mt3_calibration.precision.caches import with_caches
from mt3_calibration.precision.forced import segments_of
from mt3_calibration.precision.gate import GateName
from mt3_calibration.precision.material import Material
from mt3_calibration.precision.recipes import Product, Talk
from mt3_calibration.precision.source import Source


class Small:
    """Keeps caches and products in int8."""

    name = "small"
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        segments = segments_of(source.listen(material.calibration), source.manifest)
        changed = with_caches(source, segments, talk, self_caches=True)
        made = integer_products(changed, material, talk)
        precision = replace(made.precision, name=self.name, self_cache="int8", cross_cache="int8")
        return replace(made, precision=precision)


RECIPE = Small()
