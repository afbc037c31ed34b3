"""Writes checkpoints in the published layouts, byte by byte, with no framework.

The names and orientations are spelled out again here, independently of the readers: a mistake in a
mapping would otherwise cancel out.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from mt3_export.weights import FloatArray, MemoryShape, T5Shape, Weights

# --- words ---------------------------------------------------------------------------------------


def words(array: FloatArray, dtype: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The stored form of an array: bfloat16 (truncated) as uint16, everything else as itself."""
    if dtype == "bfloat16":
        return (array.view(np.uint32) >> np.uint32(16)).astype("<u2")
    return array.astype(np.dtype(dtype).newbyteorder("<"))


def rounded(array: FloatArray, dtype: str) -> FloatArray:
    """What a reader must return for an array stored as `dtype`."""
    stored = words(array, dtype)
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


# --- T5X -----------------------------------------------------------------------------------------


def ext_array(array: FloatArray, dtype: str = "float32") -> msgpack.ExtType:
    """flax's inline array."""
    payload = (list(array.shape), dtype, words(array, dtype).tobytes())
    return msgpack.ExtType(1, msgpack.packb(payload, use_bin_type=True))


def chunk_map(array: FloatArray, pieces: int) -> dict[str, Any]:
    """flax's form of an array too large for one MessagePack value."""
    flat = np.array_split(array.reshape(-1), pieces)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): size for i, size in enumerate(array.shape)},
        "chunks": {str(i): ext_array(part) for i, part in enumerate(flat)},
    }


def write_zarr(
    folder: Path,
    array: FloatArray,
    *,
    chunks: tuple[int, ...] | None = None,
    dtype: str = "float32",
    codec: str | None = "gzip",
    **changes: Any,
) -> None:
    """One zarr v2 folder; edge chunks are stored full size, padded with garbage."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = chunks or array.shape
    stored = words(array, dtype)
    meta = {
        "chunks": list(chunks),
        "compressor": None if codec is None else {"id": codec, "level": 1},
        "dimension_separator": ".",
        "dtype": "bfloat16" if dtype == "bfloat16" else stored.dtype.str,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    (folder / ".zarray").write_text(json.dumps(meta | changes))
    grid = [range(math.ceil(size / step)) for size, step in zip(array.shape, chunks, strict=True)]
    pack: dict[str | None, Callable[[bytes], bytes]] = {
        "gzip": lambda raw: gzip.compress(raw, 1, mtime=0),
        "zlib": lambda raw: zlib.compress(raw, 1),
        None: bytes,
    }
    for index in itertools.product(*grid):
        block = np.full(chunks, 7, stored.dtype)
        part = stored[
            tuple(slice(i * step, (i + 1) * step) for i, step in zip(index, chunks, strict=True))
        ]
        block[tuple(slice(0, size) for size in part.shape)] = part
        (folder / (".".join(map(str, index)) or "0")).write_bytes(pack[codec](block.tobytes()))


def spec(
    name: str, array: FloatArray, *, driver: str = "file", top_level: bool = False, **extra: Any
) -> dict[str, Any]:
    """TensorStore's reference to an array folder, as T5X writes it."""
    path = f"target.{name}/"
    store = {"driver": driver} | ({"bucket": "t5x-dummy-bucket"} if driver == "gcs" else {})
    metadata = {
        "chunks": list(array.shape),
        "compressor": {"id": "gzip", "level": 1},
        "shape": list(array.shape),
    }
    where = {"path": path, "kvstore": store} if top_level else {"kvstore": store | {"path": path}}
    return {"driver": "zarr", "dtype": "float32", "metadata": metadata} | where | extra


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *modules, last = name.split(".")
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[last] = leaf
    return tree


def write_index(folder: Path, leaves: Mapping[str, Any], *, version: int = 3) -> None:
    """The `checkpoint` file; optimiser state is added, which readers must ignore."""
    state = {
        "step": msgpack.ExtType(3, msgpack.packb(([], "int32", b"\1\0\0\0"), use_bin_type=True)),
        "param_states": {"decoder": {"v": ext_array(np.zeros(1, np.float32))}},
    }
    tree: dict[str, Any] = {"state": state, "target": nest(leaves)}
    content = {"version": version, "optimizer": tree} if version else tree
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_bytes(msgpack.packb(content, use_bin_type=True))


def write_t5x(
    folder: Path,
    tensors: Mapping[str, FloatArray],
    *,
    inline: Callable[[str], bool] = lambda name: name.endswith(".scale"),
    chunks: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
    dtype: str = "float32",
    codec: str | None = "gzip",
    driver: str = "file",
    top_level: bool = False,
    version: int = 3,
    optimizer_folders: Iterable[str] = (),
) -> Path:
    """A whole T5X checkpoint; by default norm scales inline and the rest in folders."""
    leaves = {}
    for name, array in tensors.items():
        if inline(name):
            leaves[name] = ext_array(array, dtype)
            continue
        shape = chunks(array.shape) if chunks else array.shape
        write_zarr(folder / f"target.{name}", array, chunks=shape, dtype=dtype, codec=codec)
        leaves[name] = spec(name, array, driver=driver, top_level=top_level)
        leaves[name]["metadata"]["chunks"] = list(shape)
    for name in optimizer_folders:
        (folder / name).mkdir(parents=True)
    write_index(folder, leaves, version=version)
    return folder


# --- pickle, one function per instruction --------------------------------------------------------

NONE, TRUE, FALSE = b"N", b"\x88", b"\x89"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def dict_(items: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def global_(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def reduce_(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_(*arguments) + b"R"


def ordered(items: Mapping[str, bytes]) -> bytes:
    """An OrderedDict with torch's `_metadata` attribute."""
    entries = b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"
    empty = reduce_(global_("collections", "OrderedDict"))
    return empty + entries + dict_({"_metadata": empty}) + b"b"


def storage(key: str, count: int, kind: str = "FloatStorage") -> bytes:
    return (
        tuple_(text("storage"), global_("torch", kind), text(key), text("cpu"), integer(count))
        + b"Q"
    )


def tensor(source: bytes, shape: Iterable[int], stride: Iterable[int], *, offset: int = 0) -> bytes:
    return reduce_(
        global_("torch._utils", "_rebuild_tensor_v2"),
        source,
        integer(offset),
        tuple_(*map(integer, shape)),
        tuple_(*map(integer, stride)),
        FALSE,
        reduce_(global_("collections", "OrderedDict")),
    )


def parameter(value: bytes) -> bytes:
    hooks = reduce_(global_("collections", "OrderedDict"))
    return reduce_(global_("torch._utils", "_rebuild_parameter"), value, TRUE, hooks)


def stream(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


# --- torch archives ------------------------------------------------------------------------------

_KINDS = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
}


def write_archive(
    path: Path,
    pickle: bytes,
    storages: Mapping[str, bytes] = {},
    *,
    root: str = "archive",
    compression: int = zipfile.ZIP_STORED,
    extra: Mapping[str, bytes] = {},
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, raw in storages.items():
            archive.writestr(f"{root}/data/{key}", raw)
        archive.writestr(f"{root}/version", b"3\n")
        for name, raw in extra.items():
            archive.writestr(name, raw)
    return path


def contiguous(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def write_torch(
    path: Path,
    tensors: Mapping[str, FloatArray],
    *,
    dtype: str = "float32",
    prefix: str = "",
    parameters: bool = False,
    wrap: Callable[[bytes], bytes] = lambda body: body,
) -> Path:
    """A state dict; arrays that are one object share one storage, as alias modules do.

    `wrap` makes the saved object from the state dict's instructions.
    """
    storages: dict[str, bytes] = {}
    keys: dict[int, str] = {}
    entries = {}
    for name, array in tensors.items():
        key = keys.setdefault(id(array), str(len(keys)))
        storages[key] = words(array, dtype).tobytes()
        source = storage(key, array.size, _KINDS[dtype])
        value = tensor(source, array.shape, contiguous(array.shape))
        entries[prefix + name] = parameter(value) if parameters else value
    return write_archive(path, stream(wrap(ordered(entries))), storages)


def lightning(state_dict: bytes) -> bytes:
    """A training checkpoint: unknown classes all over, and moments whose values are not there."""
    config = reduce_(global_("omegaconf.dictconfig", "DictConfig")) + dict_({"lr": NONE}) + b"b"
    moments = tensor(storage("900", 4), (4,), (1,))
    return dict_(
        {
            "epoch": integer(3),
            "pytorch-lightning_version": text("1.8.6"),
            "state_dict": state_dict,
            "optimizer_states": b"](" + dict_({"exp_avg": moments}) + b"e",
            "hyper_parameters": dict_({"config": config}),
        }
    )


def torch_tensors(weights: Weights, frequencies: FloatArray | None = None) -> dict[str, FloatArray]:
    """The 193 entries of the PyTorch ports' state dict, or MR-MT3's 206 where there is a memory."""
    source, shape = weights.tensors, weights.shape

    def turned(name: str) -> FloatArray:
        return np.ascontiguousarray(source[f"{name}.kernel"].T)

    result: dict[str, FloatArray] = {}
    result["proj.weight"] = result["encoder.embed_tokens.weight"] = turned(
        "encoder.continuous_inputs_projection"
    )
    embedding = np.array(source["decoder.token_embedder.embedding"])
    result["decoder_embed_tokens.weight"] = result["decoder.embed_tokens.weight"] = embedding
    result["lm_head.weight"] = turned("decoder.logits_dense")
    stacks = {"encoder": shape.encoder_layers, "decoder": shape.decoder_layers}
    if isinstance(shape, MemoryShape):
        stacks["memory_encoder"] = shape.memory_layers
        result["segmem_proj.weight"] = result["segmem_encoder.embed_tokens.weight"] = turned(
            "memory_encoder.token_projection"
        )
    for stack, layers in stacks.items():
        own = "self_attention" if stack == "decoder" else "attention"
        ff = 2 if stack == "decoder" else 1
        theirs = stack.replace("memory", "segmem")
        for i in range(layers):
            here, there = f"{stack}.layers_{i}", f"{theirs}.block.{i}.layer"
            for short, long in zip("qkvo", ("query", "key", "value", "out"), strict=True):
                result[f"{there}.0.SelfAttention.{short}.weight"] = turned(f"{here}.{own}.{long}")
                if stack == "decoder":
                    result[f"{there}.1.EncDecAttention.{short}.weight"] = turned(
                        f"{here}.encoder_decoder_attention.{long}"
                    )
            for part in ("wi_0", "wi_1", "wo"):
                result[f"{there}.{ff}.DenseReluDense.{part}.weight"] = turned(f"{here}.mlp.{part}")
            result[f"{there}.0.layer_norm.weight"] = source[f"{here}.pre_{own}_layer_norm.scale"]
            if stack == "decoder":
                result[f"{there}.1.layer_norm.weight"] = source[
                    f"{here}.pre_cross_attention_layer_norm.scale"
                ]
            result[f"{there}.{ff}.layer_norm.weight"] = source[f"{here}.pre_mlp_layer_norm.scale"]
        norm = "decoder_norm" if stack == "decoder" else "encoder_norm"
        result[f"{theirs}.final_layer_norm.weight"] = source[f"{stack}.{norm}.scale"]
        if frequencies is not None:
            result[f"{theirs}.pos_emb.inv_freq"] = frequencies
    return result


def torch_config(shape: T5Shape) -> dict[str, Any]:
    """The fields of the ports' `config.json`."""
    return {
        "d_ff": shape.d_ff,
        "d_kv": shape.head_dim,
        "d_model": shape.d_model,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
        "num_decoder_layers": shape.decoder_layers,
        "num_heads": shape.heads,
        "num_layers": shape.encoder_layers,
        "tie_word_embeddings": False,
        "vocab_size": shape.vocab_size,
    }


def inverse_frequencies(d_model: int) -> FloatArray:
    """What the ports register as `inv_freq`."""
    exponent = np.arange(0, d_model, 2, dtype=np.float32) / np.float32(d_model)
    return (1.0 / (10000.0**exponent)).astype(np.float32)


def write_kunato(folder: Path, weights: Weights, *, frequencies: bool = True) -> Path:
    """The published folder: `config.json` and `mt3.pth`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(torch_config(weights.shape)))
    stored = inverse_frequencies(weights.shape.d_model) if frequencies else None
    write_torch(folder / "mt3.pth", torch_tensors(weights, stored))
    return folder


def write_mr_mt3(path: Path, weights: Weights) -> Path:
    """MR-MT3's files: a training checkpoint if named ``.ckpt``, else its bare twin."""
    tensors = torch_tensors(weights, inverse_frequencies(weights.shape.d_model))
    if path.suffix == ".ckpt":
        return write_torch(path, tensors, prefix="model.", wrap=lightning)
    return write_torch(path, tensors)
