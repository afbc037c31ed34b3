from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest

from mt3_export.checkpoints.checkpoint import CheckpointKind, identify, read_checkpoint
from mt3_export.weights import PositionTable, T5Shape
from mt3_runtime.errors import CheckpointError
from tests.export.attacks.lookalikes import LOOKALIKES
from tests.export.writers import (
    ext_array,
    inverse_frequencies,
    lightning,
    rounded,
    torch_config,
    torch_tensors,
    write_index,
    write_kunato,
    write_t5x,
    write_torch,
)
from tests.pace import HANGS
from tests.seeded import ISMIR2021, TINY, seeded_weights

ROOT = Path(__file__).parents[2]
FREQUENCIES = inverse_frequencies(TINY.d_model)


@pytest.fixture(scope="module")
def weights():
    return seeded_weights()


@pytest.fixture
def state(weights):
    return torch_tensors(weights, FREQUENCIES)


def assert_same(found, expected):
    assert found.shape == expected.shape
    for name, array in expected.tensors.items():
        assert np.array_equal(found.tensors[name], array), name


def test_a_t5x_folder_is_magentas_model(tmp_path, weights):
    write_t5x(tmp_path, weights.tensors)
    kind = CheckpointKind("t5x", "magenta_mt3", tmp_path)
    assert identify(tmp_path) == identify(tmp_path / "checkpoint") == kind
    contents = read_checkpoint(str(tmp_path), "magenta_mt3")
    assert_same(contents.weights, weights)
    assert contents.weights.positions.denominator == 255
    assert contents.weights.positions.frequencies is None
    assert (contents.variant, contents.layout) == ("magenta_mt3", "t5x")


def test_a_step_folder_is_entered(tmp_path, weights):
    write_t5x(tmp_path / "checkpoint_7", weights.tensors)
    assert identify(tmp_path).path == tmp_path / "checkpoint_7"
    assert_same(read_checkpoint(tmp_path).weights, weights)


def test_the_ports_folder_and_its_bare_file_are_one_checkpoint(tmp_path, weights):
    write_kunato(tmp_path, weights)
    folder, file = read_checkpoint(tmp_path), read_checkpoint(tmp_path / "mt3.pth", "mt3_pytorch")
    kind = identify(tmp_path)
    assert (kind.layout, kind.variant, kind.path) == ("torch", "mt3_pytorch", tmp_path / "mt3.pth")
    for contents in (folder, file):
        assert_same(contents.weights, weights)
        assert contents.weights.positions.denominator == 256
        assert np.array_equal(contents.weights.positions.frequencies, FREQUENCIES)
    assert folder.digest == file.digest
    assert [source.name for source in folder.source_files] == ["mt3.pth"]


def test_a_training_checkpoint_is_read_like_a_state_dict(tmp_path, weights, state):
    write_torch(tmp_path / "last.ckpt", state, prefix="model.", wrap=lightning)
    assert_same(read_checkpoint(tmp_path / "last.ckpt", "mt3_pytorch").weights, weights)


def test_the_config_file_is_optional(tmp_path, weights):
    write_kunato(tmp_path, weights)
    (tmp_path / "config.json").unlink()
    assert_same(read_checkpoint(tmp_path).weights, weights)


def test_the_digest_is_that_of_sha256sum(tmp_path, weights):
    write_t5x(tmp_path, weights.tensors, chunks=lambda shape: (11, *shape[1:]))
    (tmp_path / "state.param_states.v").mkdir()
    (tmp_path / "state.param_states.v" / "0").write_bytes(b"ignored")
    contents = read_checkpoint(tmp_path)
    used = sorted(
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file() and "param_states" not in str(path)
    )
    listing = "".join(
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in used
    )
    assert [source.name for source in contents.source_files] == used
    assert all(s.size == (tmp_path / s.name).stat().st_size for s in contents.source_files)
    assert contents.digest == hashlib.sha256(listing.encode()).hexdigest()
    (tmp_path / "target.decoder.logits_dense.kernel" / "0.0").touch()
    assert read_checkpoint(tmp_path).digest == contents.digest


@pytest.mark.parametrize("asked", ["magenta_mt3", "yptf_moe_multi"])
def test_another_variant_than_asked_for_is_refused(tmp_path, weights, asked):
    write_kunato(tmp_path, weights)
    with pytest.raises(CheckpointError, match=rf"is mt3_pytorch \(torch layout\), not {asked}"):
        read_checkpoint(tmp_path, asked)


def test_a_t5x_folder_is_not_the_port(tmp_path, weights):
    write_t5x(tmp_path, weights.tensors)
    with pytest.raises(CheckpointError, match=r"is magenta_mt3 \(t5x layout\), not mt3_pytorch"):
        read_checkpoint(tmp_path, "mt3_pytorch")


def test_the_vocabulary_tells_the_piano_model(tmp_path):
    weights = seeded_weights(ISMIR2021)
    write_t5x(tmp_path, weights.tensors)
    contents = read_checkpoint(tmp_path, "magenta_ismir2021")
    assert identify(tmp_path).variant == contents.variant == "magenta_ismir2021"
    assert_same(contents.weights, weights)
    assert contents.weights.positions.denominator == 255


def test_another_vocabulary_is_unknown(tmp_path):
    shape = T5Shape(**{**vars(TINY), "vocab_size": 99})
    write_t5x(tmp_path, seeded_weights(shape).tensors)
    with pytest.raises(CheckpointError, match=r"with 99 tokens; known are magenta_mt3 \(1536\)"):
        identify(tmp_path)


def test_another_t5x_model_is_named_as_such(tmp_path, weights):
    tensors = {n.replace("mlp.wi_0", "mlp.wi"): a for n, a in weights.tensors.items()}
    write_t5x(tmp_path, tensors)
    with pytest.raises(
        CheckpointError,
        match=r"but none of magenta.*: .* encoder\.layers_0\.mlp\.wi_0",
    ):
        identify(tmp_path)


@pytest.mark.parametrize("name", ["encoder.encoder_norm.scale", "decoder.layers_1.mlp.wo.kernel"])
def test_a_t5x_tensor_that_is_missing_is_not_filled_in(tmp_path, weights, name):
    write_t5x(tmp_path, {key: array for key, array in weights.tensors.items() if key != name})
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_found_in_both_layouts(tmp_path, weights, value):
    tensors = dict(weights.tensors)
    tensors["decoder.decoder_norm.scale"] = np.full(TINY.d_model, value, np.float32)
    broken = object.__new__(type(weights))
    object.__setattr__(broken, "shape", TINY)
    object.__setattr__(broken, "tensors", tensors)
    write_t5x(tmp_path / "t5x", tensors)
    write_kunato(tmp_path / "torch", broken)
    for folder in ("t5x", "torch"):
        with pytest.raises(CheckpointError, match=r"not finite: decoder\.decoder_norm\.scale"):
            read_checkpoint(tmp_path / folder)


def test_float64_beyond_float32_is_not_finite(tmp_path, weights):
    name = "decoder.decoder_norm.scale"
    leaves = {key: ext_array(array) for key, array in weights.tensors.items()}
    raw = np.full(TINY.d_model, 1e300).tobytes()
    leaves[name] = msgpack.ExtType(1, msgpack.packb(([TINY.d_model], "float64", raw)))
    write_index(tmp_path, leaves)
    with pytest.raises(CheckpointError, match=f"not finite: {name}"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["encoder.encoder.additive_pe.weight"], "ymt3_plus"),
        (["pre_decoder.0.projection_layer.weight"], "yptf_single"),
        (["pre_decoder.0.linear.weight"], "yptf_multi"),
        (["pre_decoder.0.linear.weight", "pitchshift.pshifters.1.window"], "yptf_multi_ps"),
        (
            ["pre_decoder.0.linear.weight", "encoder.blocks.0.mlp.experts.0.w1.weight"],
            "yptf_moe_multi",
        ),
    ],
)
def test_other_families_are_named_and_not_read(tmp_path, state, keys, family):
    state |= {key: np.ones(3, np.float32) for key in keys}
    write_torch(tmp_path / "model.ckpt", state)
    assert identify(tmp_path / "model.ckpt").variant == family
    with pytest.raises(CheckpointError, match=f"{family}, (whose weights cannot|but is not compl)"):
        read_checkpoint(tmp_path / "model.ckpt")


def test_an_unknown_state_dict_is_described_by_its_first_strange_tensor(tmp_path, state):
    state["encoder.block.0.layer.0.SelfAttention.bias"] = np.ones(3, np.float32)
    write_torch(tmp_path / "t5.pth", state)
    with pytest.raises(
        CheckpointError,
        match=r"56 tensors .*nearest is mt3_pytorch, which has no tensor .encoder",
    ):
        identify(tmp_path / "t5.pth")


def test_a_state_dict_of_pieces_is_no_model(tmp_path, state):
    write_torch(tmp_path / "head.pth", {"lm_head.weight": state["lm_head.weight"]})
    with pytest.raises(CheckpointError, match="no known model .*cannot do without .encoder"):
        identify(tmp_path / "head.pth")


def test_a_tensor_missing_from_the_port_is_not_filled_in(tmp_path, state):
    del state["encoder.block.1.layer.1.layer_norm.weight"]
    write_torch(tmp_path / "mt3.pth", state)
    with pytest.raises(
        CheckpointError, match=r"named like MT3.*missing: encoder\.layers_1\.pre_mlp_layer_norm\.s"
    ):
        read_checkpoint(tmp_path / "mt3.pth")


@pytest.mark.parametrize("alias", ["proj.weight", "decoder.embed_tokens.weight"])
def test_aliases_must_agree(tmp_path, weights, state, alias):
    without = {name: array for name, array in state.items() if name != alias}
    write_torch(tmp_path / "one.pth", without)
    assert_same(read_checkpoint(tmp_path / "one.pth").weights, weights)
    changed = state[alias].copy()
    changed[3, 4] += 1e-6
    write_torch(tmp_path / "mt3.pth", state | {alias: changed})
    with pytest.raises(CheckpointError, match="are one tensor of the model, but differ"):
        read_checkpoint(tmp_path / "mt3.pth")


def test_stored_frequencies_are_taken_as_they_are(tmp_path, weights):
    frequencies = FREQUENCIES * np.float32(1.001)
    write_torch(tmp_path / "mt3.pth", torch_tensors(weights, frequencies))
    positions = read_checkpoint(tmp_path / "mt3.pth").weights.positions
    assert positions.denominator == 256
    assert np.array_equal(positions.frequencies, frequencies)


def test_frequencies_of_magenta_in_a_torch_file_are_recognised(tmp_path, weights):
    frequencies = (10000.0 ** (-np.arange(16) / 15)).astype(np.float32)
    write_torch(tmp_path / "mt3.pth", torch_tensors(weights, frequencies))
    positions = read_checkpoint(tmp_path / "mt3.pth").weights.positions
    assert positions.denominator == 255
    table, expected = positions.table(100, 32), PositionTable(255).table(100, 32)
    assert np.allclose(table, expected, atol=1e-5)


def test_a_port_without_frequencies_runs_with_its_formula(tmp_path, weights):
    write_kunato(tmp_path, weights, frequencies=False)
    positions = read_checkpoint(tmp_path).weights.positions
    assert positions.denominator == 256
    assert positions.frequencies is None
    expected = PositionTable(256, FREQUENCIES).table(1024, 32)
    assert np.allclose(positions.table(1024, 32), expected, atol=1e-4)


def test_half_precision_frequencies_are_recognised(tmp_path, weights, state):
    write_torch(tmp_path / "mt3.pth", state, dtype="bfloat16")
    positions = read_checkpoint(tmp_path / "mt3.pth").weights.positions
    assert np.array_equal(positions.frequencies, rounded(FREQUENCIES, "bfloat16"))
    assert positions.denominator == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.pos_emb.inv_freq": None}, "must all be stored and equal"),
        ({"decoder.pos_emb.inv_freq": FREQUENCIES[::-1].copy()}, "must all be stored and equal"),
        (dict.fromkeys(("encoder", "decoder"), FREQUENCIES[::-1].copy()), "not the sinusoid"),
        (dict.fromkeys(("encoder", "decoder"), np.float32([1, 0.5])), "not the sinusoid"),
        (dict.fromkeys(("encoder", "decoder"), FREQUENCIES * np.nan), "must all be|not the sinu"),
    ],
    ids=["one", "different", "reversed", "short", "nan"],
)
def test_strange_frequencies_are_refused(tmp_path, state, changes, message):
    for key, value in changes.items():
        name = key if "." in key else f"{key}.pos_emb.inv_freq"
        if value is None:
            del state[name]
        else:
            state[name] = value
    write_torch(tmp_path / "mt3.pth", state)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "mt3.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps(torch_config(TINY) | {"d_ff": 2048}),
            "d_ff is 2048, the tensors .* make it 48",
        ),
        (json.dumps({"d_kv": 32, "num_heads": 4}), "d_kv is 32"),
        (json.dumps({"tie_word_embeddings": True}), "tie_word_embeddings is True"),
        ("{", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("[]", "expected a JSON object"),
        (" " * (2**20 + 1), "over 1,048,576 bytes"),
    ],
    ids=["d_ff", "heads", "tied", "broken", "deep", "list", "huge"],
)
def test_a_config_that_does_not_belong_is_refused(tmp_path, weights, content, message):
    write_kunato(tmp_path, weights)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)


def test_a_folder_with_one_torch_file_stands_for_it(tmp_path, state):
    write_torch(tmp_path / "last.ckpt", state)
    (tmp_path / "hparams.yaml").touch()
    assert identify(tmp_path).path == tmp_path / "last.ckpt"
    write_torch(tmp_path / "model.pt", state)
    with pytest.raises(
        CheckpointError, match="several checkpoints .'last.ckpt', 'model.pt'.; name"
    ):
        identify(tmp_path)
    write_torch(tmp_path / "mt3.pth", state)
    assert identify(tmp_path).path == tmp_path / "mt3.pth"


def test_a_path_with_nothing_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; expected a T5X folder or a .pth"):
        identify(tmp_path / "nowhere")
    with pytest.raises(
        CheckpointError, match=r"'checkpoint' \(T5X\) or one .*\.ckpt.*found nothing"
    ):
        identify(tmp_path)
    for name in "abcdef":
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match="found 'a', 'b', 'c', 'd' and 2 more"):
        identify(tmp_path)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_other_things_are_named_and_refused(tmp_path, name):
    builder, message = LOOKALIKES[name]
    path = tmp_path / "thing"
    builder(path)
    assert path.is_dir() == name.endswith("/")
    for open_ in (identify, read_checkpoint):
        with pytest.raises(CheckpointError, match=message) as caught:
            open_(path)
        assert str(caught.value).isprintable()


def test_what_does_not_fit_into_memory_is_a_checkpoint_error(tmp_path, weights, monkeypatch):
    write_kunato(tmp_path, weights)

    def exhaust(*_args, **_options):
        raise MemoryError

    monkeypatch.setattr("mt3_export.checkpoints.checkpoint._assemble", exhaust)
    with pytest.raises(CheckpointError, match="needs more memory than there is"):
        read_checkpoint(tmp_path)


def test_what_the_system_refuses_is_a_checkpoint_error(tmp_path, weights, monkeypatch):
    write_kunato(tmp_path, weights)

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mt3_export.checkpoints.checkpoint.TorchArchive", refuse)
    with pytest.raises(CheckpointError, match=r"cannot be read \(Permission denied\)"):
        identify(tmp_path)


def test_the_real_weights_survive_the_way_through_the_port(tmp_path, shared):
    real = read_checkpoint(shared / "checkpoints" / "magenta_mt3").weights
    write_kunato(tmp_path, real)
    contents = read_checkpoint(tmp_path)
    assert contents.weights.parameters == 45_896_704
    assert_same(contents.weights, real)


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_nothing_is_executed_written_or_allocated_in_bulk(tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "runtime"), str(ROOT / "export")])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "export" / "attacks" / "under_watch.py", tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "marker").exists()
