"""The recipes `int8` and `fp8`: weight products in 8 bits, for TensorRT engines.

Only the profile ``portable`` is written, which engines are made of.  On a CPU int8 runs as it is
written, slowly, and fp8 not at all: other graphs stand in for it when it is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_quantisation.forms.products import WeightProduct, find_products, without
from mt3_quantisation.forms.recipes import Product, Talk
from mt3_quantisation.forms.stored_halves import halved
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material
from mt3_quantisation.gates.measure import ROLES
from mt3_quantisation.gates.teacher_forcing import segments_of
from mt3_quantisation.qdq.collector import PROFILE, collect
from mt3_quantisation.qdq.insertion import Format, insert
from mt3_quantisation.qdq.ranges import Method, Ranges, read_ranges
from mt3_quantisation.qdq.standin import simulated
from mt3_runtime.bundles.manifest import Role
from mt3_runtime.bundles.precision import Precision

if TYPE_CHECKING:
    from onnx import ModelProto

#: Segments that ranges are measured on, evenly spread over the calibration material.
SEGMENTS = 24

#: What the ranges are called inside the bundle.
RANGES_FILE = "ranges.json"


@dataclass(frozen=True)
class Quantised:
    """Implements `mt3_quantisation.forms.recipes.Recipe`.

    Attributes:
        name: The format of the products.
        keep: Products, groups or layers that stay as they are.
        ranges: File of ranges to use; measured if None.
        method: How ranges are chosen where they are measured.
    """

    name: Format
    keep: tuple[str, ...] = ()
    ranges: Path | None = None
    method: Method = "mse"
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk: Talk) -> Product:
        graphs = portable_graphs(source)
        products = weight_products(graphs)
        ranges = self.ranges_of(source, graphs, products, material, talk)
        chosen = self.chosen(products, ranges, talk)
        made = {
            (role, PROFILE): insert(
                graphs[role],
                [product for product in chosen if product.role == role],
                ranges.of(role),
                self.name,
            )
            for role in ROLES
        }
        talk(f"{len(chosen)} of {len(products)} products are {self.name}")
        if source.manifest.precision.weights == "fp16":  # what is exact came from fp16
            made = {key: halved(model) for key, model in made.items()}
        fp8 = self.name == "fp8"
        return Product(
            made,
            Precision(self.name, weights=self.name, arithmetic=self.name),
            stand_ins={key: simulated(model) for key, model in made.items()} if fp8 else {},
            stand_in_precision=Precision("fp32") if fp8 else None,
            files={RANGES_FILE: ranges.to_json()},
        )

    def chosen(
        self, products: list[WeightProduct], ranges: Ranges, talk: Talk
    ) -> list[WeightProduct]:
        """The products that are quantised.

        Raises:
            OptionError: One that shall be kept does not exist.
        """
        wanted = without(products, self.keep)
        if self.name == "fp8":
            return wanted
        outlying = {(r.role, r.tensor) for r in ranges.tensors if r.outlying}
        fit = [product for product in wanted if (product.role, product.activation) not in outlying]
        for product in wanted:
            if product not in fit:
                talk(f"{product.name} stays exact: a few of its inputs are ten times all others")
        return fit

    def ranges_of(
        self,
        source: Source,
        graphs: dict[Role, ModelProto],
        products: list[WeightProduct],
        material: Material,
        talk: Talk,
    ) -> Ranges:
        """The ranges that were given, or fresh ones.

        Raises:
            BundleError: Those given are damaged, or of another bundle.
        """
        if self.ranges is not None:
            found = read_ranges(self.ranges)
            found.check(source.bundle)
            return found
        heard = source.listen(material.calibration)
        segments = segments_of(heard, source.manifest, most=SEGMENTS)
        talk(f"measuring ranges on {len(segments)} segments")
        return collect(
            source,
            graphs,
            products,
            segments,
            method=self.method,
            material=f"{len(heard)} pieces of synthetic music",
        )


def portable_graphs(source: Source) -> dict[Role, ModelProto]:
    """Encoder and decoder that engines are made of.

    Raises:
        BundleError: The bundle lacks them.
    """
    return {role: source.graph(role, PROFILE) for role in ROLES}


def weight_products(graphs: dict[Role, ModelProto]) -> list[WeightProduct]:
    """All products of both graphs that may be quantised."""
    return [product for role in ROLES for product in find_products(graphs[role], role)]


#: int8 does better to clip some values, and fp8, which has exponents, does not.
INT8, FP8 = Quantised("int8"), Quantised("fp8", method="absmax")
