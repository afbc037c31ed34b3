"""``small``: the products of ``fast`` over int8 caches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_quantisation import precision_command
from mt3_quantisation.gates.exact_bundle import Changed, Source
from mt3_runtime import cli
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.loading import load_model
from tests.quantisation.tiny_material import known_material
from tests.seeded import MEMORY, TINY_MULTI, seeded_weights

MULTI = replace(TINY_MULTI, input_bins=1024, position_rows=120, decoder_channels=13, latents=26)


@pytest.fixture
def calibrate(monkeypatch: pytest.MonkeyPatch):
    """The command, with little material that the bundle's own model has labelled."""

    def run(bundle: Path, out: Path) -> Bundle:
        material = known_material(bundle)
        monkeypatch.setattr(precision_command, "Material", lambda: material)
        # Of a few seeded notes, one that moves is more than any gate allows.
        words = (bundle, "--precision", "small", "-o", out, "--force", "--threads", "1")
        assert cli.main(["calibrate", *map(str, words)]) == 0
        return Bundle(out)

    return run


def test_everything_is_int8_and_still_near(calibrate, tiny_bundle, audio, tmp_path, capsys):
    small = calibrate(tiny_bundle, tmp_path / "small.mt3")
    found = small.manifest.precision
    assert (found.name, found.weights, found.arithmetic) == ("small", "int8", "int8")
    assert (found.self_cache, found.cross_cache) == ("int8", "int8")
    assert found.gate is not None
    assert found.gate.gate == "relaxed"
    assert 0.0 < found.gate.figures["kl"] < 0.02
    assert "tokens independent of batch and slots: yes" in capsys.readouterr().out
    assert small.profiles == ["cpu"]
    assert not small.graph("decoder", "cpu").cross_key_transposed
    exact = Bundle(tiny_bundle)
    sizes = [
        sum(b.graph(role, "cpu").size for role in ("encoder", "decoder")) for b in (small, exact)
    ]
    assert sizes[0] < sizes[1]
    with load_model(small.path, device="cpu", threads=2) as model:
        assert model.transcribe_notes(audio, 16000).segments


@pytest.mark.parametrize(
    ("shape", "variant"), [(MEMORY, "mr_mt3_context32"), (MULTI, "yptf_multi")]
)
def test_other_families_become_small(calibrate, shape, variant, audio, tmp_path):
    exact = tmp_path / variant
    export_bundle(seeded_weights(shape), variant_named(variant), exact, source={"digest": "0" * 64})
    small = calibrate(exact, tmp_path / "small")
    gate = small.manifest.precision.gate
    assert gate is not None
    assert gate.figures["kl"] < 0.1
    assert not any("depend" in fault for fault in gate.faults)


def test_a_changed_source_gives_copies_and_hears_the_exact_model(tiny_bundle):
    source = Source(Bundle(tiny_bundle), threads=1)
    other = source.graph("decoder", "cpu")
    other.graph.name = "changed"
    changed = Changed(source, {("decoder", "cpu"): other})
    changed.graph("decoder", "cpu").graph.name = "changed again"
    assert changed.graph("decoder", "cpu").graph.name == "changed"
    assert changed.graph("encoder", "cpu").graph.name == source.graph("encoder", "cpu").graph.name
    excerpts = known_material(tiny_bundle).calibration[:1]
    (mine,), (theirs,) = changed.listen(excerpts), source.listen(excerpts)
    assert np.array_equal(mine.features, theirs.features)
    assert mine is theirs
