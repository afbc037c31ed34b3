from __future__ import annotations

import contextlib
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.checkpoints.inert_pickle import Inert, read_pickle
from mt3_export.checkpoints.torch_zip import TorchArchive
from mt3_runtime.errors import CheckpointError
from tests.export.attacks import hostile_torch
from tests.export.writers import (
    NONE,
    dict_,
    inverse_frequencies,
    lightning,
    rounded,
    storage,
    stream,
    tensor,
    torch_tensors,
    write_archive,
    write_torch,
)
from tests.pace import counted_work
from tests.seeded import seeded_normal, seeded_weights

TENSORS = torch_tensors(seeded_weights(), inverse_frequencies(32))

#: The largest pickle that is accepted costs this much at worst, nearly all in list objects.
MEMORY_LIMIT = 64 * 2**20
#: What interpreting it may cost in calls of functions; the worst hostile one takes 2.1 million.
CALLS_LIMIT = 6_000_000
RECIPE = Path(__file__).with_name("torch_save_recipe.py")


def read_all(path):
    with TorchArchive(path) as archive:
        return {name: tensor.read() for name, tensor in archive.state_dict().items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parameters": True},
        {"prefix": "model."},
        {"prefix": "model.", "wrap": lightning},
        {"wrap": lightning},
        {"wrap": lambda body: dict_({"state_dict": body, "epoch": NONE})},
    ],
    ids=["bare", "parameters", "prefix", "training", "training without prefix", "wrapped"],
)
def test_every_form_is_read_bit_exactly(tmp_path, options):
    write_torch(tmp_path / "mt3.pth", TENSORS, **options)
    assert_equal(read_all(tmp_path / "mt3.pth"), TENSORS)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_float_types_become_float32(tmp_path, dtype):
    write_torch(tmp_path / "mt3.pth", TENSORS, dtype=dtype)
    expected = {name: rounded(array, dtype) for name, array in TENSORS.items()}
    assert_equal(read_all(tmp_path / "mt3.pth"), expected)


def test_a_prefix_is_removed_only_where_all_names_have_it(tmp_path):
    write_torch(tmp_path / "mt3.pth", {"model.a": np.ones(2, np.float32), "b": np.ones(1, "f4")})
    assert read_all(tmp_path / "mt3.pth").keys() == {"model.a", "b"}


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_view_of_a_storage_is_read_or_refused(tmp_path, data):
    values = seeded_normal("storage", (60,))
    rank = data.draw(st.integers(0, 3))
    sizes = data.draw(st.tuples(*[st.integers(0, 5)] * rank))
    strides = data.draw(st.tuples(*[st.integers(0, 20)] * rank))
    offset = data.draw(st.integers(0, 61))
    body = dict_({"x": tensor(storage("0", 60), sizes, strides, offset=offset)})
    path = write_archive(tmp_path / "a.pth", stream(body), {"0": values.tobytes()})
    indices = offset + sum(
        (grid * step for grid, step in zip(np.indices(sizes), strides, strict=True)),
        start=np.zeros(sizes, int),
    )
    if indices.size <= 60 and (indices.size == 0 or indices.max() < 60):
        assert np.array_equal(read_all(path)["x"], values[indices.ravel()].reshape(sizes))
    else:
        with pytest.raises(CheckpointError, match="does not fit"):
            read_all(path)


def test_unknown_classes_are_placeholders_and_their_code_never_runs(tmp_path):
    marker = tmp_path / "marker"
    running = hostile_torch.running(marker)

    def wrap(body):
        return dict_({"hyper_parameters": running, "state_dict": body, "callbacks": running})

    write_torch(tmp_path / "last.ckpt", TENSORS, wrap=wrap)
    with TorchArchive(tmp_path / "last.ckpt") as archive:
        assert archive.content["hyper_parameters"] == Inert("posix.system")
    assert_equal(read_all(tmp_path / "last.ckpt"), TENSORS)
    assert not marker.exists()


def test_moments_of_the_optimiser_are_not_touched(tmp_path):
    # The writer's training checkpoint refers to moments whose values are not in the file.
    write_torch(tmp_path / "last.ckpt", TENSORS, wrap=lightning)
    with TorchArchive(tmp_path / "last.ckpt") as archive:
        moments = archive.content["optimizer_states"][0]["exp_avg"]
        with pytest.raises(CheckpointError, match="'archive/data/900' is missing"):
            moments.read()
        assert archive.content["hyper_parameters"] == {
            "config": Inert("omegaconf.dictconfig.DictConfig")
        }


def test_the_attack_is_real_pythons_own_unpickler_runs_it(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(stream(hostile_torch.running(marker)))
    assert marker.exists()


@pytest.mark.parametrize("attack", hostile_torch.ATTACKS)
def test_hostile_files_are_refused(tmp_path, attack):
    builder, message = hostile_torch.ATTACKS[attack]
    path, marker = tmp_path / "mt3.pth", tmp_path / "marker"
    builder(path, marker)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught, counted_work() as work:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not marker.exists()
    assert peak < MEMORY_LIMIT
    assert work.calls < CALLS_LIMIT
    assert str(caught.value).isprintable()


class Thing:
    pass


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(value=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_is_read_as_python_wrote_it(value, protocol):
    raw = pickle.dumps(value, protocol=protocol)
    assert read_pickle(raw, {}, persistent=lambda identity: identity) == value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_sets_and_recursion_are_inert(protocol):
    thing = Thing()
    thing.self = thing
    loop: list[object] = []
    pair = (loop,)
    loop.append(pair)
    within: list[object] = []
    ring = (1, 2, 3, 4, within)  # long enough for POP_MARK
    within.append(ring)
    value = {"thing": thing, "set": {1}, "frozen": frozenset({2}), "bytes": b"x", "loop": pair}
    value["ring"] = ring
    found = read_pickle(pickle.dumps(value, protocol), {}, persistent=lambda identity: identity)
    # Protocols 2 and 3 make sets and bytes through calls; later ones have instructions.
    assert isinstance(found["set"], Inert)
    assert isinstance(found["frozen"], Inert)
    assert isinstance(found["thing"], Inert)
    assert found["bytes"] == b"x" or isinstance(found["bytes"], Inert)
    assert found["loop"][0][0] is found["loop"]
    assert found["ring"][4][0] is found["ring"]


def test_a_long_stream_is_refused_before_it_is_interpreted():
    with pytest.raises(CheckpointError, match="5,242,880 bytes; expected at most 4,194,304"):
        read_pickle(bytes(5 * 2**20), {}, persistent=lambda identity: identity)


def test_keyword_construction_is_inert():
    class WithKeywords:
        def __getnewargs_ex__(self):
            return (1,), {"key": 2}

    globals()["WithKeywords"] = WithKeywords
    WithKeywords.__qualname__ = "WithKeywords"
    raw = pickle.dumps([WithKeywords()], protocol=4)
    assert isinstance(read_pickle(raw, {}, persistent=lambda i: i)[0], Inert)


#: What a stream can say by itself.
DATA = (bool, int, float, str, bytes, tuple, list, dict, set, frozenset, Inert, type(None))


@given(raw=st.binary(max_size=60))
def test_random_instructions_give_plain_data_or_our_error(raw):
    with contextlib.suppress(CheckpointError):
        found = read_pickle(raw + b".", {}, persistent=lambda identity: identity)
        assert type(found) in DATA


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_is_survived(tmp_path, position, value):
    small = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    write_torch(tmp_path / "a.pth", small)
    raw = bytearray((tmp_path / "a.pth").read_bytes())
    raw[int(position * len(raw))] = value
    (tmp_path / "a.pth").write_bytes(raw)
    try:
        found = read_all(tmp_path / "a.pth")
    except CheckpointError:
        return
    assert_equal(found, small)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, beside_torch):
    folder = tmp_path_factory.mktemp("torch")
    np.savez(folder / "arrays.npz", **TENSORS)
    beside_torch(RECIPE, folder / "arrays.npz", folder)
    return folder


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("state_dict.pth", "float32"),
        ("protocol_4.pth", "float32"),
        ("parameters.pth", "float32"),
        ("strided.pth", "float32"),
        ("training.ckpt", "float32"),
        ("float16.pth", "float16"),
    ],
)
def test_files_of_the_real_pytorch_are_read_bit_exactly(saved, name, dtype):
    expected = {key: rounded(array, dtype) for key, array in TENSORS.items()}
    assert_equal(read_all(saved / name), expected)
    if name.endswith(".ckpt"):  # MR-MT3's files are called so, too
        with pytest.raises(CheckpointError, match="may be mt3_pytorch or mr_mt3_context0"):
            read_checkpoint(saved / name)
    else:
        assert read_checkpoint(saved / name).variant == "mt3_pytorch"


def test_bfloat16_of_the_real_pytorch_is_read(saved):
    for name, array in read_all(saved / "bfloat16.pth").items():
        assert np.allclose(array, TENSORS[name], rtol=2**-8, atol=0)
        assert not np.any(array.view(np.uint32) & 0xFFFF)


def test_the_old_format_of_the_real_pytorch_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"before PyTorch 1\.6"):
        read_checkpoint(saved / "legacy.pth")
