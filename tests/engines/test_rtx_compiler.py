"""Engines with the true parser and compiler: TensorRT for RTX, which needs no GPU to build.

Seeded weights in the published layout of every variant, every form of graphs, every precision: all
are parsed, a representative set is built (`scripts/nightly` builds all).  `rtx_builds.py` makes the
real calls, in the environment that has TensorRT for RTX.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest

from mt3_engines.running.rows import DEVICE_TYPES, HOST_TYPES
from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import VARIANTS, variant_named
from mt3_quantisation.forms.precision_bundle import write_graphs
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision
from tests import needs
from tests.conftest import _beside
from tests.engines.rtx_builds import Job
from tests.engines.test_quantized import quantised
from tests.export.test_yourmt3_end_to_end import PITCH_SHIFTED
from tests.export.test_yourmt3_end_to_end import SMALL as YOURMT3
from tests.seeded import ISMIR2021, MEMORY, TINY, seeded_weights

#: Small networks in the layout of every variant.
SMALL = {
    "magenta_mt3": TINY,
    "magenta_ismir2021": ISMIR2021,
    "mt3_pytorch": TINY,
    "mr_mt3_context0": TINY,
    "mr_mt3_context32": MEMORY,
    "mr_mt3_context64": MEMORY,
    **YOURMT3,
    **{f"{name}_ps": YOURMT3[name] for name in PITCH_SHIFTED},
}
#: Forms of graphs: those of TensorRT 10.3, 10.16 and 11.4, and that of TensorRT for RTX.
FORMS = ("10.3.0", "10.16.1.11", "11.4.0.106", "")
#: GPUs with all arithmetic.
NEWEST = ("8.9", "12.0", "12.1")

#: TensorRT's names of our types.
TYPES = {"INT64": np.int64, "INT32": np.int32, "FLOAT": np.float32, "BOOL": np.bool_,
         "HALF": np.float16}  # fmt: skip


@pytest.fixture(scope="session")
def compiled():
    """Runs jobs in the environment with TensorRT for RTX."""
    beside = _beside(needs.python_of("rtx"))

    def run(*jobs: Job) -> list[dict]:
        said = beside("-m", "tests.engines.rtx_builds", json.dumps([asdict(job) for job in jobs]))
        return json.loads(said)

    return run


@pytest.fixture(scope="session")
def small(made_once):
    """Bundles of small seeded networks, by variant or quantised format."""

    def make(name: str) -> str:
        def export(path: Path) -> None:
            export_bundle(
                seeded_weights(SMALL[name]),
                variant_named(name),
                path,
                source={"layout": "seeded", "digest": "0" * 64},
                profiles=("cpu", "portable"),
            )

        def quantise(path: Path) -> None:
            exact = Path(make("magenta_mt3"))
            graphs = {
                (role, "portable"): quantised(
                    onnx.load(exact / f"{role}.portable.onnx"), role, name
                )
                for role in ("encoder", "decoder")
            }
            path.mkdir()
            precision = Precision(name, weights=name, arithmetic=name)
            write_graphs(Bundle(exact).manifest, graphs, path, precision=precision)

        return str(made_once(f"rtx-{name}", export if name in SMALL else quantise))

    return make


def all_well(results: list[dict], *, built: bool = False) -> None:
    assert results
    assert [result["errors"] for result in results] == [[]] * len(results)
    assert all((result.get("size", 0) > 1000) is built for result in results)


def test_the_small_networks_are_those_of_all_variants():
    assert set(SMALL) == set(VARIANTS)


@pytest.mark.parametrize("form", FORMS)
def test_every_variant_in_every_form_is_parsed(compiled, small, form):
    jobs = [Job(small(name), "fp16", form) for name in dict.fromkeys(SMALL)]
    jobs += [
        Job(small(name), "fp32", form, targets=NEWEST)
        for name in ("magenta_mt3", "mr_mt3_context32", "yptf_moe_multi")
    ]
    all_well(compiled(*jobs))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_products_are_parsed_and_built(compiled, small, kind):
    jobs = [
        Job(small(kind), precision, form, targets=NEWEST, build=not form)
        for precision in ("fp32", "fp16")
        for form in ("10.16.1.11", "")
    ]
    results = compiled(*jobs)
    assert [result["errors"] for result in results] == [[]] * len(results)
    kinds = {layer for result in results for layer in result["layers"]}
    assert {"QUANTIZE", "DEQUANTIZE"} <= kinds
    assert sum("size" in result for result in results) == len(results) // 2


def test_buffers_have_the_types_that_the_parser_gives(compiled, small):
    """Token ids have 64 bits there and here, which is what its warnings ask for."""
    results = compiled(Job(small("mr_mt3_context32"), "fp16"), Job(small("yptf_multi"), "fp16"))
    seen = set()
    for result in results:
        for name, said in result["types"].items():
            known = {**HOST_TYPES, **DEVICE_TYPES}
            ours = np.float16 if name.startswith(("past", "present", "cross")) else known[name]
            assert TYPES[said] is ours, name
            seen.add(name)
    assert seen >= {*HOST_TYPES, *DEVICE_TYPES}


def test_caches_are_written_in_place(compiled, small):
    (_, small_cache, large) = compiled(Job(small("magenta_mt3"), "fp16"))
    for decoder in (small_cache, large):
        assert decoder["layers"].count("KV_CACHE_UPDATE") == 2 * TINY.decoder_layers


def test_a_representative_set_is_built(compiled, small):
    """One engine for all GPUs, exact ones, with memory, channels and experts."""
    all_well(
        compiled(
            Job(small("magenta_mt3"), "fp16", build=True),
            Job(small("magenta_mt3"), "fp32", targets=("8.0", *NEWEST), build=True),
            Job(small("magenta_mt3"), "fp32", slots=(4,), targets=("8.6",), build=True),
            Job(small("mr_mt3_context32"), "fp16", build=True),
            Job(small("yptf_moe_multi"), "fp16", build=True),
            Job(small("yptf_moe_multi"), "fp32", targets=NEWEST, build=True),
        ),
        built=True,
    )


@pytest.mark.parametrize("targets", [("8.9",), ("8.6", "8.9")])
def test_engines_without_weights_need_a_gpu(compiled, small, targets):
    """Why `--strip` does not go with `--for rtx`; a version that can would fail here."""
    job = Job(small("magenta_mt3"), "fp16", targets=targets, stripped=True, build=True)
    for result in compiled(job):
        (said,) = result["errors"]
        assert "could not build" in said
        assert "Myelin" in said


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (Job("magenta_mt3", "fp32"), "no fp32 matrix products for compute capability 7.5"),
        (Job("magenta_mt3", "fp32", targets=("7.5",)), "leave sm75 out of --targets"),
        (Job("fp8", "fp16"), "fp8 products need compute capability 8.9"),
        (Job("fp8", "fp32", targets=("8.6", "8.9")), "the engine is for 8.6"),
    ],
)
def test_arithmetic_that_a_target_lacks_is_refused_by_us(compiled, small, job, reason):
    job.bundle, job.build = small(job.bundle), True
    for result in compiled(job):
        assert len(result["errors"]) == 1
        assert reason in result["errors"][0]


def test_graphs_as_exported_are_what_they_are_rewritten_for(compiled, small):
    """The compiler's own word for it: the length of a cache must be fixed."""
    code = (
        "import sys; from mt3_engines.optional import import_polygraphy;"
        "from mt3_engines.versions import RTX; from tests.engines.rtx_builds import parse;"
        "print(parse(import_polygraphy(RTX), open(sys.argv[1], 'rb').read())['errors'])"
    )
    graph = Path(small("magenta_mt3")) / "decoder.portable.onnx"
    said = _beside(needs.python_of("rtx"))("-c", code, str(graph))
    assert "static sequence length" in said


@pytest.mark.nightly(part="compiler")
@pytest.mark.parametrize("name", [*SMALL, "int8", "fp8"])
def test_everything_is_built(compiled, small, name):
    targets = NEWEST if name == "fp8" else None
    half = Job(small(name), "fp16", build=True)
    half.targets = targets or half.targets
    jobs = [
        half,
        Job(small(name), "fp16", targets=NEWEST, slots=(8,), build=True),
        Job(small(name), "fp32", targets=NEWEST, build=True),
    ]
    jobs += [Job(small(name), "fp16", form, targets=NEWEST) for form in FORMS[:3]]
    results = compiled(*jobs)
    assert [result["errors"] for result in results] == [[]] * len(results)
