"""Writing bundles: reproducible, whole or not at all, and never over anything else."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from mt3_export import bundle_writer as bundles
from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import VARIANTS, variant_named
from mt3_export.weights import T5Shape, Weights
from mt3_runtime.bundles.bundle import Bundle, Manifest
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import CheckpointError, MT3Error, OptionError, OutputError
from mt3_runtime.loading import load_model
from tests.seeded import TINY, seeded_weights


def _export(weights: Weights, out: Path, **options) -> Manifest:
    options.setdefault("source", {"layout": "seeded", "digest": "0" * 64})
    return export_bundle(weights, variant_named("magenta_mt3"), out, **options)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_equal_inputs_give_equal_bytes(tiny_weights: Weights, tmp_path: Path) -> None:
    _export(tiny_weights, tmp_path / "a")
    _export(tiny_weights, tmp_path / "b")
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")
    _export(tiny_weights, tmp_path / "a.mt3")
    _export(tiny_weights, tmp_path / "b.mt3")
    assert (tmp_path / "a.mt3").read_bytes() == (tmp_path / "b.mt3").read_bytes()


def test_the_export_id_tells_sources_and_precisions_apart(
    tiny_weights: Weights, tmp_path: Path
) -> None:
    found = {
        _export(tiny_weights, tmp_path / "a").export_id,
        _export(tiny_weights, tmp_path / "b", storage="fp16").export_id,
        _export(tiny_weights, tmp_path / "c", source={"digest": "1"}).export_id,
    }
    assert len(found) == 3
    one = _export(tiny_weights, tmp_path / "d", profiles=("portable",)).export_id
    assert one in found  # profiles of one export may be added later


def test_half_precision_bundles_run(tiny_weights: Weights, tmp_path: Path) -> None:
    manifest = _export(tiny_weights, tmp_path / "half", storage="fp16")
    assert manifest.precision == Precision("fp16-stored", weights="fp16")
    with load_model(tmp_path / "half") as model:
        model.warmup()


def test_an_older_bundle_is_replaced_whole(tiny_weights: Weights, tmp_path: Path) -> None:
    out = tmp_path / "model"
    _export(tiny_weights, out, profiles=("cpu", "compat"))
    _export(tiny_weights, out)
    assert sorted(_digests(out)) == ["bundle.json", "decoder.cpu.onnx", "encoder.cpu.onnx"]
    assert Bundle(out).profiles == ["cpu"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_taken(tiny_weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    _export(tiny_weights, tmp_path / "model")
    assert Bundle(tmp_path / "model").profiles == ["cpu"]


def test_missing_parents_are_made(tiny_weights: Weights, tmp_path: Path) -> None:
    _export(tiny_weights, tmp_path / "a" / "b" / "model")
    assert Bundle(tmp_path / "a" / "b" / "model").profiles == ["cpu"]


@pytest.mark.parametrize("name", ["music", "music.mt3", "file"])
def test_other_things_are_left_alone(tiny_weights: Weights, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name == "file":
        out.write_text("precious")
        kept = out
    else:
        out.mkdir()
        kept = out / "song.wav"
        kept.write_text("precious")
    with pytest.raises(OutputError, match="choose"):
        _export(tiny_weights, out)
    assert kept.read_text() == "precious"


def test_a_full_disk_leaves_the_old_bundle(
    tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    _export(tiny_weights, out)
    before = _digests(out)

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="No space left on device"):
        _export(tiny_weights, out, storage="fp16")
    assert _digests(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unwritable_place_is_one_error(tiny_weights: Weights, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        _export(tiny_weights, tmp_path / "file" / "model")


@pytest.mark.parametrize("profiles", [(), ("cpu", "cpu"), ("cpu", "gpu")])
def test_strange_profiles_are_refused(tiny_weights: Weights, tmp_path: Path, profiles) -> None:
    with pytest.raises(OptionError):
        _export(tiny_weights, tmp_path / "model", profiles=profiles)
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_the_variant_are_refused(tmp_path: Path) -> None:
    fields = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    for change, message in (({"vocab_size": 1664}, "1664"), ({"input_bins": 256}, "256")):
        with pytest.raises(CheckpointError, match=message):
            _export(seeded_weights(T5Shape(**fields | change)), tmp_path / "model")


def test_a_faulty_graph_is_a_bug_and_is_not_written(
    tiny_weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "lint", lambda model, **_: ["something is wrong"])
    with pytest.raises(RuntimeError, match="something is wrong"):
        _export(tiny_weights, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_unknown_variants_are_refused() -> None:
    assert variant_named("mt3_pytorch").decoding.max_tokens == 1023
    with pytest.raises(MT3Error, match=", ".join(VARIANTS)):
        variant_named("nonsense")
