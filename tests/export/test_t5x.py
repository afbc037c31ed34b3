from __future__ import annotations

import math
import tracemalloc

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.checkpoints.t5x import find_t5x, open_t5x
from mt3_export.checkpoints.zarr_array import open_zarr
from mt3_export.weights import T5Shape
from mt3_runtime.errors import CheckpointError
from tests.export.attacks import hostile_t5x
from tests.export.writers import (
    chunk_map,
    ext_array,
    rounded,
    spec,
    write_index,
    write_t5x,
    write_zarr,
)
from tests.pace import counted_work
from tests.seeded import seeded_normal, seeded_weights

TENSORS = dict(seeded_weights().tensors)

#: No hostile file may cost more; the good tiny checkpoint costs 2 MiB, zlib windows included.
MEMORY_LIMIT = 48 * 2**20


#: Nor more calls of functions; a good checkpoint takes 8,000, the worst hostile one 800,000.
CALLS_LIMIT = 3_000_000


def read_all(folder):
    return {name: tensor.read() for name, tensor in open_t5x(folder).tensors.items()}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], array), name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inline": lambda name: True},
        {"inline": lambda name: False},
        {"inline": lambda name: "kernel" in name},
        {"driver": "gfile"},
        {"driver": "gcs", "top_level": True},
        {"top_level": True},
        {"version": 0},
        {"codec": "zlib"},
        {"codec": None},
        {"chunks": lambda shape: tuple(math.ceil(size / 2) for size in shape)},
        {
            "chunks": lambda shape: tuple(
                min(size, 15 + 4 * axis) for axis, size in enumerate(shape)
            )
        },
        {"optimizer_folders": ["state.param_states.decoder.logits_dense.kernel.v_row"]},
    ],
    ids=[
        *("published", "all inline", "all folders", "kernels inline", "gfile", "gcs"),
        *("path on top", "version 0", "zlib", "raw", "four chunks", "edge chunks", "optimizer"),
    ],
)
def test_every_layout_is_read_bit_exactly(tmp_path, options):
    write_t5x(tmp_path, TENSORS, **options)
    assert_equal(read_all(tmp_path), TENSORS)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("inline", [True, False])
def test_other_float_types_become_float32(tmp_path, dtype, inline):
    write_t5x(tmp_path, TENSORS, dtype=dtype, inline=lambda name: inline)
    assert_equal(read_all(tmp_path), {n: rounded(a, dtype) for n, a in TENSORS.items()})


def test_chunk_maps_of_large_inline_arrays_are_joined(tmp_path):
    leaves = {name: ext_array(array) for name, array in TENSORS.items()}
    name = "decoder.logits_dense.kernel"
    leaves[name] = chunk_map(TENSORS[name], pieces=12)
    write_index(tmp_path, leaves)
    assert_equal(read_all(tmp_path), TENSORS)


def test_the_transform_of_a_whole_array_is_accepted(tmp_path):
    write_t5x(tmp_path, TENSORS)
    name = "decoder.logits_dense.kernel"
    leaves = {key: ext_array(array) for key, array in TENSORS.items()}
    for ends in ([32, 1536], [[32], [1536]]):
        transform = {"input_exclusive_max": ends, "input_inclusive_min": [0, 0]}
        write_index(tmp_path, leaves | {name: spec(name, TENSORS[name], transform=transform)})
        assert_equal(read_all(tmp_path), TENSORS)


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chunking_gives_the_array_back(tmp_path, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=3)))
    chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
    array = seeded_normal("chunks", shape)
    write_zarr(tmp_path, array, chunks=chunks)
    opened = open_zarr(tmp_path)
    assert np.array_equal(opened.read(), array)
    assert all(path.is_file() for path in opened.files)


def test_the_step_folder_is_found(tmp_path):
    write_t5x(tmp_path / "checkpoint_1000", TENSORS)
    (tmp_path / "checkpoint_2000.tmp").mkdir()
    assert find_t5x(tmp_path) == tmp_path / "checkpoint_1000"
    assert find_t5x(tmp_path / "checkpoint_1000") == tmp_path / "checkpoint_1000"
    assert find_t5x(tmp_path / "checkpoint_2000.tmp") is None
    write_t5x(tmp_path / "checkpoint_3000", TENSORS)
    with pytest.raises(CheckpointError, match=r"several checkpoints \(checkpoint_1000, checkpoint"):
        find_t5x(tmp_path)


def test_a_missing_chunk_is_named(tmp_path):
    write_t5x(tmp_path, TENSORS, chunks=lambda shape: (5, *shape[1:]))
    name = "target.encoder.layers_1.mlp.wo.kernel"
    (tmp_path / name / "3.0").unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: chunk 3\.0 is missing; the copy"):
        read_all(tmp_path)
    (tmp_path / name / "7.0").unlink()
    with pytest.raises(CheckpointError, match=r"chunk 3\.0 is missing \(and 1 more\)"):
        read_all(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    write_t5x(tmp_path, TENSORS)
    (tmp_path / "target.decoder.logits_dense.kernel").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"target\.decoder\.logits_dense\.kernel/\.zarray is"):
        open_t5x(tmp_path)


@pytest.mark.parametrize("attack", hostile_t5x.ATTACKS)
def test_hostile_folders_are_refused(tmp_path, attack):
    builder, message = hostile_t5x.ATTACKS[attack]
    folder, marker = tmp_path / "checkpoint_folder", tmp_path / "marker"
    folder.mkdir()
    builder(folder, marker)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught, counted_work() as work:
            read_checkpoint(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not marker.exists()
    assert peak < MEMORY_LIMIT
    assert work.calls < CALLS_LIMIT
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000 + 3 * len(str(folder))


@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_in_the_index_is_survived(tmp_path, position, value):
    leaves = {name: spec(name, array) for name, array in TENSORS.items()}
    leaves |= {n: msgpack.ExtType(1, ext_array(a).data[:99]) for n, a in TENSORS.items()}
    write_index(tmp_path, leaves)
    raw = bytearray((tmp_path / "checkpoint").read_bytes())
    raw[int(position * len(raw))] = value
    (tmp_path / "checkpoint").write_bytes(raw)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


def test_the_published_checkpoint_is_read_whole(shared):
    tracemalloc.start()
    try:
        contents = read_checkpoint(shared / "checkpoints" / "magenta_mt3")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    weights = contents.weights
    assert weights.shape == T5Shape()
    assert (len(weights.tensors), weights.parameters) == (189, 45_896_704)
    assert contents.variant == "magenta_mt3"
    assert weights.positions.denominator == 255
    scales = [t for name, t in weights.tensors.items() if name.endswith(".scale")]
    assert sum(tensor.size for tensor in scales) == 21_504
    assert not any(np.all(tensor == 1) for tensor in scales)
    assert peak < 1.1 * 4 * weights.parameters
