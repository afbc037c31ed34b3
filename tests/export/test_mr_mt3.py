"""MR-MT3, from its authors' files to notes: with a memory of 64 or 32 rows, and without any."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mt3_export.checkpoints import mr_mt3
from mt3_export.checkpoints.checkpoint import identify, read_checkpoint
from mt3_export.weights import PositionTable, Weights
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import main
from mt3_runtime.errors import CheckpointError
from mt3_runtime.loading import load_model
from mt3_runtime.model import token_digest
from mt3_runtime.models.catalogue import get_model_info, list_models
from mt3_runtime.notes.note_rules import TORCH_PORT_QUIRKS
from tests import reference_t5
from tests.export.writers import (
    inverse_frequencies,
    torch_tensors,
    write_kunato,
    write_mr_mt3,
    write_torch,
)
from tests.seeded import MEMORY, TINY, seeded_weights

FREQUENCIES = inverse_frequencies(MEMORY.d_model)
CONTEXTS = ("mr_mt3_context0", "mr_mt3_context32", "mr_mt3_context64")


@pytest.fixture(scope="module")
def weights() -> Weights:
    """Of forty seeds one that has something to say on `audio` at every M: 5, 3 and 6 notes."""
    return seeded_weights(MEMORY, seed=32, positions=PositionTable(256, FREQUENCIES))


@pytest.fixture(scope="module")
def plain() -> Weights:
    """The same sizes without a memory."""
    return seeded_weights(TINY, positions=PositionTable(256, FREQUENCIES))


# --- what a file is ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("exp_segmemV2_prev_context=0.ckpt", "mr_mt3_context0"),
        ("exp_segmemV2_prev_context=0_MT3_1e-5_ep100_norandom.ckpt", "mr_mt3_context0"),
        ("exp_segmemV2_prev_context=32.ckpt", "mr_mt3_context32"),
        ("exp_segmemV2_prev_context=64_prevaug_frame=8.ckpt", "mr_mt3_context64"),
        ("exp_segmemV2_prev_context%3D64.pt", "mr_mt3_context64"),
        ("exp_segmemV2_prev_context=6.ckpt", None),
        ("last.ckpt", None),
        ("mt3.pth", None),
    ],
)
def test_a_files_name_says_how_long_its_memory_is(tmp_path, weights, name, variant):
    kind = identify(write_mr_mt3(tmp_path / name, weights))
    assert kind.variant == variant
    assert {kind.variant, *kind.others} == {variant, *CONTEXTS}


def test_the_catalogues_names_and_models_agree():
    models = [model for model in list_models() if model.family == "mr_mt3"]
    assert {model.exporter for model in models} == set(CONTEXTS)
    for model in models:
        name = Path(model.files[0].path)
        found = mr_mt3.context_of(name)
        assert found == model.exporter or name.name == "commu_mt3.pt"


def test_nothing_is_guessed(tmp_path, weights):
    path = write_mr_mt3(tmp_path / "last.ckpt", weights)
    with pytest.raises(
        CheckpointError,
        match=r"may be mr_mt3_context0 or mr_mt3_context32 or mr_mt3_context64: the length of its "
        r"memory is not stored in it\. Say which one it is with --variant",
    ):
        read_checkpoint(path)
    assert read_checkpoint(path, "mr_mt3_context32").variant == "mr_mt3_context32"


def test_who_says_otherwise_is_believed(tmp_path, weights):
    """The authors' own script contradicts the names of two files in its comments."""
    path = write_mr_mt3(tmp_path / "context=64_prevaug_frame=3.ckpt", weights)
    assert read_checkpoint(path).variant == "mr_mt3_context64"
    assert read_checkpoint(path, "mr_mt3_context32").variant == "mr_mt3_context32"
    with pytest.raises(CheckpointError, match="not mt3_pytorch"):
        read_checkpoint(path, "mt3_pytorch")


@pytest.mark.parametrize("suffix", ["ckpt", "pt"])
def test_both_forms_are_read(tmp_path, weights, suffix):
    """The training checkpoint names moments of the optimiser that are not even in the file."""
    path = write_mr_mt3(tmp_path / f"context=32.{suffix}", weights)
    contents = read_checkpoint(path)
    assert contents.weights.shape == MEMORY
    assert contents.weights.tensors.keys() == weights.tensors.keys()
    for name, array in weights.tensors.items():
        assert np.array_equal(contents.weights.tensors[name], array), name
    assert np.array_equal(contents.weights.positions.frequencies, FREQUENCIES)
    assert contents.weights.positions.denominator == 256


def test_a_memory_of_no_rows_is_left_out(tmp_path, weights):
    contents = read_checkpoint(write_mr_mt3(tmp_path / "context=0.ckpt", weights))
    assert contents.weights.shape == TINY
    assert not any(name.startswith("memory_encoder.") for name in contents.weights.tensors)


@pytest.mark.parametrize(
    "name",
    [
        "segmem_encoder.block.0.layer.0.SelfAttention.q.weight",
        "segmem_encoder.final_layer_norm.weight",
    ],
)
def test_a_tensor_missing_from_the_memory_is_not_filled_in(tmp_path, weights, name):
    tensors = torch_tensors(weights, FREQUENCIES)
    del tensors[name]
    path = write_torch(tmp_path / "context=32.pt", tensors)
    with pytest.raises(CheckpointError, match=r"not complete.*missing: memory_encoder\."):
        read_checkpoint(path)


@pytest.mark.parametrize("change", ["alias", "frequencies"])
def test_what_is_stored_several_times_must_agree(tmp_path, weights, change):
    tensors = torch_tensors(weights, FREQUENCIES)
    if change == "alias":
        name, message = "segmem_encoder.embed_tokens.weight", "are one tensor of the model"
    else:
        name, message = "segmem_encoder.pos_emb.inv_freq", "must all be stored and equal"
    tensors[name] = tensors[name] * np.float32(1.001)
    path = write_torch(tmp_path / "context=32.pt", tensors)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


# --- files without a memory ----------------------------------------------------------------------


def test_a_pth_without_memory_is_the_port(tmp_path, plain):
    write_kunato(tmp_path, plain)
    kind = identify(tmp_path)
    assert (kind.variant, kind.others) == ("mt3_pytorch", ("mr_mt3_context0",))
    with pytest.raises(CheckpointError, match=r"not mr_mt3_context64 \(it has no memory"):
        read_checkpoint(tmp_path, "mr_mt3_context64")


@pytest.mark.parametrize("name", ["commu_mt3.pt", "last.ckpt", "context=32.ckpt"])
def test_other_files_without_memory_may_be_either(tmp_path, plain, name):
    path = write_mr_mt3(tmp_path / name, plain)
    with pytest.raises(
        CheckpointError, match="may be mt3_pytorch or mr_mt3_context0: .* scaled is not stored"
    ):
        read_checkpoint(path)
    for variant in ("mt3_pytorch", "mr_mt3_context0"):
        contents = read_checkpoint(path, variant)
        assert (contents.variant, contents.weights.shape) == (variant, TINY)
    named = path.rename(tmp_path / "context=0.ckpt")
    assert read_checkpoint(named).variant == "mr_mt3_context0"


def test_magentas_weights_are_known_under_any_name(tmp_path, plain, monkeypatch):
    path = write_mr_mt3(tmp_path / "mr_mt3_context=64.ckpt", plain)
    published = get_model_info("mt3_pytorch")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file = replace(published.files[0], size=path.stat().st_size, sha256=digest)
    same = replace(published, files=(file,))
    monkeypatch.setattr(mr_mt3, "get_model_info", lambda name: {published.name: same}[name])
    assert read_checkpoint(path).variant == "mt3_pytorch"
    with pytest.raises(
        CheckpointError,
        match=r"is mt3_pytorch \(torch layout\), not mr_mt3_context64 \(its SHA-256 is that of "
        r"Magenta's weights .* MR-MT3's mt3\.pth; they have no memory\)",
    ):
        read_checkpoint(path, "mr_mt3_context64")
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # of the same size, but another file
    assert identify(path).variant is None


# --- bundles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [0, 32, 64])
def test_a_bundle_says_what_its_memory_is(tmp_path, weights, memory):
    path = write_mr_mt3(tmp_path / f"context={memory}.ckpt", weights)
    assert main(["export", str(path), "-o", str(tmp_path / "bundle")]) == 0
    manifest = Bundle(tmp_path / "bundle").manifest
    assert manifest.variant == manifest.name == f"mr_mt3_context{memory}"
    assert (manifest.family, manifest.licence) == ("mr_mt3", "MIT")
    assert manifest.notes.quirks == TORCH_PORT_QUIRKS
    assert manifest.decoding.max_tokens == 1023
    assert manifest.model.memory == memory
    assert manifest.decoding.memory_tokens == (1024 if memory else 0)
    assert manifest.decoding.memory_start == ((1134, 1) if memory else ())
    features = manifest.features
    assert (features.scaling, features.scale_low, features.scale_high) == ("fixed", -12.0, 5.0)


def test_the_command_asks_which_one_it_is(tmp_path, weights, capsys):
    path = write_mr_mt3(tmp_path / "last.ckpt", weights)
    assert main(["export", str(path), "-o", str(tmp_path / "bundle")]) == 3
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "Say which one it is with --variant" in printed.err
    assert not (tmp_path / "bundle").exists()


# --- from the file to notes ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[0, 32, 64], ids=lambda memory: f"M={memory}")
def memory(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, weights: Weights, memory: int) -> Path:
    """Exported from a training checkpoint."""
    folder = tmp_path_factory.mktemp(f"mr_mt3_{memory}")
    checkpoint = write_mr_mt3(folder / f"exp_segmemV2_prev_context={memory}.ckpt", weights)
    arguments = ["export", str(checkpoint), "-o", str(folder / "model.mt3"), "--weights", "fp32"]
    assert main(arguments) == 0
    return folder / "model.mt3"


def _previous(tokens: list[int] | None) -> npt.NDArray[np.int64]:
    """What the memory is made of, int64 [1, 1024]; None is ahead of the first segment."""
    ids = np.zeros((1, 1024), np.int64)
    opening = [1134, 1] if tokens is None else [0, *tokens]
    ids[0, : len(opening)] = opening[:1024]
    return ids


def test_tokens_are_the_references(bundle, weights, memory, audio) -> None:
    """The float64 reference, remembering the segment before, would have chosen each token."""
    with load_model(bundle) as model:
        features = model.preprocess(audio)
        sequences = model.forward(features)
    said = None
    for row, sequence in zip(features, sequences, strict=True):
        encoded = reference_t5.encode(weights, row[np.newaxis])
        remembered = reference_t5.remember(weights, _previous(said), memory)
        said = sequence.tokens.tolist()
        read = np.array([[0, *said[:-1]]], np.int64)
        seen = np.concatenate([encoded, remembered], axis=1)
        logits = reference_t5.teacher_forced(weights, seen, read)[0]
        assert logits.argmax(-1).tolist() == said


def test_notes_come_out(bundle, memory, audio) -> None:
    with load_model(bundle) as model:
        result = model.transcribe_notes(audio)
        assert result.token_digest == token_digest(model.forward(model.preprocess(audio)))
        assert [note for note in model.transcribe(audio) if note.type == "note_on"]
    assert len(result.notes) == {0: 5, 32: 3, 64: 6}[memory]
    assert len(result.segments) == 5


def test_both_forms_of_a_model_say_the_same(bundle, weights, memory, audio, tmp_path) -> None:
    path = write_mr_mt3(tmp_path / f"context={memory}.pt", weights)
    assert main(["export", str(path), "-o", str(tmp_path / "model"), "--weights", "fp32"]) == 0
    found = [load_model(b).transcribe_notes(audio) for b in (bundle, tmp_path / "model")]
    assert found[0].token_digest == found[1].token_digest
    assert found[0].notes == found[1].notes


@pytest.mark.parametrize("threads", [1, 2])
def test_many_recordings_are_as_one_by_one(bundle, audio, threads) -> None:
    recordings = [audio, audio[20_000:], audio[:40_000], audio[::-1], np.zeros(70_000, np.float32)]
    with load_model(bundle, threads=threads) as model:
        alone = [model.transcribe_notes(recording) for recording in recordings]
        together = list(model.transcribe_many(recordings))
    assert [each.token_digest for each in together] == [each.token_digest for each in alone]
    assert [each.notes for each in together] == [each.notes for each in alone]
    assert len({each.token_digest for each in alone}) == len(recordings)


def test_a_memory_makes_a_difference(weights, audio, tmp_path) -> None:
    """The first segment reads an empty memory, which is not none; later ones remember."""
    digests = set()
    for name in CONTEXTS:
        path = write_mr_mt3(tmp_path / f"{name.removeprefix('mr_mt3_')}.pt", weights)
        assert main(["export", str(path), "--variant", name, "-o", str(tmp_path / name)]) == 0
        with load_model(tmp_path / name) as model:
            features = model.preprocess(audio)
            together = [sequence.tokens.tolist() for sequence in model.forward(features)]
            alone = [model.forward(row[np.newaxis])[0].tokens.tolist() for row in features]
        assert together[0] == alone[0]
        assert (together == alone) == (name == "mr_mt3_context0")
        digests.add(str(together))
    assert len(digests) == len(CONTEXTS)
