"""The PyTorch sides of gpu.py: the cached greedy loop a careful user would write for a GPU.

A worker process (see `common.serve`) that needs torch and NumPy only.  The network is written from
T5's formulas over canonical weights (`gpu_setup`): scaled-dot-product attention, fused
query/key/value and gate products, norms and softmax in fp32, a cache that is allocated once.  Ids
stay on the device; every eight steps the host asks which rows have ended.

Plain, attention reads the written columns alone, and finished rows leave batch and cache.  Compiled
(``mode="reduce-overhead"``, so CUDA graphs), shapes must not change: rows stay, and the cache has
128 columns and doubles.  The audio front end and the note assembly of `song` are those of
`mt3_runtime`, so that the only difference is the network's engine.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import torch
from common import serve
from torch import Tensor
from torch.nn.functional import embedding, gelu, scaled_dot_product_attention

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.model import Model, token_digest

START, EOS = 0, 1
EPSILON = 1e-6
#: Segments decoded, and encoded, at once.
ROWS, ENCODE_ROWS = 32, 8
MAX_TOKENS, FIRST_CAPACITY, LOOK = 1024, 128, 8

_state: dict[str, Any] = {}


class Network:
    """The weights on a device, and what they compute."""

    def __init__(self, path: str, device: str, kind: torch.dtype) -> None:
        arrays = dict(np.load(path))
        sizes = json.loads(arrays.pop("sizes").item())
        self.heads, self.width = sizes["heads"], sizes["head_dim"]
        self.encoder_layers, self.layers = sizes["encoder_layers"], sizes["decoder_layers"]
        self.device, self.kind = torch.device(device), kind
        self.table = torch.from_numpy(arrays.pop("positions")).to(self.device, kind)
        self._weights = {
            name: torch.from_numpy(array).to(
                self.device, torch.float32 if name.endswith(".scale") else kind
            )
            for name, array in arrays.items()
        }
        for stack, layers in (("encoder", self.encoder_layers), ("decoder", self.layers)):
            own = "attention" if stack == "encoder" else "self_attention"
            for layer in range(layers):
                at = f"{stack}.layers_{layer}"
                self._fuse(f"{at}.{own}", ("query", "key", "value"))
                self._fuse(f"{at}.mlp", ("wi_0", "wi_1"))

    def _fuse(self, at: str, parts: tuple[str, ...]) -> None:
        kernels = [self._weights.pop(f"{at}.{part}.kernel") for part in parts]
        self._weights[f"{at}.fused.kernel"] = torch.cat(kernels, 1)

    def dense(self, x: Tensor, name: str) -> Tensor:
        return x @ self._weights[f"{name}.kernel"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + EPSILON)
        return (exact * self._weights[f"{name}.scale"]).to(self.kind)

    def split(self, x: Tensor) -> Tensor:
        """[N, L, H*D] -> [N, H, L, D]."""
        return x.unflatten(-1, (self.heads, self.width)).transpose(1, 2)

    def feed_forward(self, x: Tensor, layer: str) -> Tensor:
        gate, up = self.dense(self.norm(x, f"{layer}.pre_mlp_layer_norm"),
                              f"{layer}.mlp.fused").chunk(2, -1)  # fmt: skip
        return x + self.dense(gelu(gate, approximate="tanh") * up, f"{layer}.mlp.wo")

    def encode(self, features: Tensor) -> list[Tensor]:
        """[N, T, B] -> keys and values of all layers' cross-attention, [N, H, T, D] each."""
        x = self.dense(features, "encoder.continuous_inputs_projection")
        x = x + self.table[: x.shape[1]]
        for index in range(self.encoder_layers):
            layer = f"encoder.layers_{index}"
            fused = self.dense(self.norm(x, f"{layer}.pre_attention_layer_norm"),
                               f"{layer}.attention.fused")  # fmt: skip
            parts = (self.split(part) for part in fused.chunk(3, -1))
            mixed = scaled_dot_product_attention(*parts, scale=1.0)
            x = x + self.dense(mixed.transpose(1, 2).flatten(2), f"{layer}.attention.out")
            x = self.feed_forward(x, layer)
        x = self.norm(x, "encoder.encoder_norm")
        cross = [f"decoder.layers_{i}.encoder_decoder_attention" for i in range(self.layers)]
        return [
            self.split(self.dense(x, f"{at}.{part}")).contiguous()
            for at in cross
            for part in ("key", "value")
        ]

    def step(
        self,
        ids: Tensor,
        at: Tensor,
        cache: list[Tensor],
        cross: list[Tensor],
        seen: int | None,
    ) -> Tensor:
        """Reads ids [N, 1] at position ``at`` [1], writes the cache, and says the next ids.

        ``seen`` are the columns to read; None for all of them, with a mask.
        """
        x = embedding(ids, self._weights["decoder.token_embedder.embedding"])
        x = x + self.table.index_select(0, at)
        mask = None
        if seen is None:
            columns = torch.arange(cache[0].shape[2], device=self.device)
            mask = (columns <= at)[None, None, None]
        for index in range(self.layers):
            layer = f"decoder.layers_{index}"
            fused = self.dense(self.norm(x, f"{layer}.pre_self_attention_layer_norm"),
                               f"{layer}.self_attention.fused")  # fmt: skip
            query, *new = (self.split(part) for part in fused.chunk(3, -1))
            own = cache[2 * index : 2 * index + 2]
            for buffer, column in zip(own, new, strict=True):
                buffer.index_copy_(2, at, column)
            read = own if seen is None else [buffer[:, :, :seen] for buffer in own]
            mixed = scaled_dot_product_attention(query, *read, attn_mask=mask, scale=1.0)
            x = x + self.dense(mixed.transpose(1, 2).flatten(2), f"{layer}.self_attention.out")
            name = f"{layer}.encoder_decoder_attention"
            normed = self.norm(x, f"{layer}.pre_cross_attention_layer_norm")
            query = self.split(self.dense(normed, f"{name}.query"))
            there = cross[2 * index : 2 * index + 2]
            mixed = scaled_dot_product_attention(query, *there, scale=1.0)
            x = x + self.dense(mixed.transpose(1, 2).flatten(2), f"{name}.out")
            x = self.feed_forward(x, layer)
        logits = self.dense(self.norm(x, "decoder.decoder_norm"), "decoder.logits_dense")
        return logits[:, -1].argmax(-1, keepdim=True)

    def caches(self, rows: int, capacity: int) -> list[Tensor]:
        """Zeroed keys and values of all layers."""
        shape = (rows, self.heads, capacity, self.width)
        return [
            torch.zeros(shape, device=self.device, dtype=self.kind) for _ in range(2 * self.layers)
        ]


def load(
    weights: str, bundle: str, *, device: str, half: bool = False, compiled: str = ""
) -> dict[str, Any]:
    """Puts the network on a device; ``compiled`` names torch.compile's backend."""
    begin = time.perf_counter()
    if device == "cpu":
        torch.set_num_threads(1)  # beside other work its barriers wait longer than it computes
    if half:
        torch.backends.ort_gpu.matmul.allow_fp16_reduced_precision_reduction = False
    network = Network(weights, device, torch.float16 if half else torch.float32)
    encode, step = network.encode, network.step
    if compiled:
        options = {"mode": "reduce-overhead"} if compiled == "inductor" else {}
        encode = torch.compile(encode, backend=compiled, dynamic=False)
        step = torch.compile(step, backend=compiled, dynamic=False, fullgraph=True, **options)
    model = Model(Bundle(bundle), backend=None)
    _state.update(network=network, encode=encode, step=step, fixed=bool(compiled), model=model)
    _state["buffers"] = {}
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "seconds": time.perf_counter() - begin,
        "device": f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}",
    }


def take(path: str) -> dict[str, Any]:
    """Takes over the features that our side made, and warms up."""
    _state["features"] = np.load(path)
    _decode(_state["features"][:ROWS], 2 * LOOK, stop=False)
    return {"segments": len(_state["features"])}


def forward(copies: int = 1) -> dict[str, Any]:
    """Encodes and decodes the ready features, so many times over."""
    inputs = np.concatenate([_state["features"]] * copies)
    begin = time.perf_counter()
    found = _transcribe(inputs)
    seconds = time.perf_counter() - begin
    one = found[: len(found) // copies]
    return {
        "seconds": seconds,
        "digest": token_digest(one),
        "said": [sequence.tokens.tolist() for sequence in one],
        "tokens": sum(len(sequence.tokens) for sequence in found),
    }


def song(audio: str, midi: str) -> dict[str, Any]:
    """Audio file to MIDI file."""
    begin = time.perf_counter()
    model = _state["model"]
    found = _transcribe(model.preprocess(audio))
    model.decode(found).save(midi)
    return {"seconds": time.perf_counter() - begin, "digest": token_digest(found)}


def steps(rows: int, count: int) -> dict[str, Any]:
    """Times ``count`` decoder steps of so many rows; end-of-sequence is ignored."""
    inputs = _state["features"][np.arange(rows) % len(_state["features"])]
    _decode(inputs, count, stop=False)  # compiles, and asks for the memory
    cross = _cross(inputs)
    _wait()
    begin = time.perf_counter()
    found = _loop(cross, count, stop=False)
    _wait()
    seconds = time.perf_counter() - begin
    return {"seconds": seconds / count, "last_ids": [row[-1] for row in found]}


def _wait() -> None:
    if _state["network"].device.type == "cuda":
        torch.cuda.synchronize()


def _transcribe(inputs: Any) -> list[Sequence]:
    found = []
    for start in range(0, len(inputs), ROWS):
        part = inputs[start : start + ROWS]
        short = ROWS - len(part) if _state["fixed"] else 0  # shapes that change are compiled anew
        filled = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
        found += _decode(filled, MAX_TOKENS)[: len(part)]
    return [
        Sequence(np.array(row, np.int32), np.zeros(len(row), np.float32), row[-1] != EOS)
        for row in found
    ]


def _decode(inputs: Any, limit: int, *, stop: bool = True) -> list[list[int]]:
    return _loop(_cross(inputs), limit, stop=stop)


@torch.no_grad()
def _cross(inputs: Any) -> list[Tensor]:
    network = _state["network"]
    parts = []
    for start in range(0, len(inputs), ENCODE_ROWS):
        there = torch.from_numpy(inputs[start : start + ENCODE_ROWS])
        made = _state["encode"](there.to(network.device, network.kind))
        parts.append([tensor.clone() for tensor in made] if _state["fixed"] else made)
    joined = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
    if not _state["fixed"]:
        return joined
    # CUDA graphs read from where they were recorded, and copy what may move.
    kept = _kept("cross", len(inputs), lambda: [torch.empty_like(tensor) for tensor in joined])
    for buffer, tensor in zip(kept, joined, strict=True):
        buffer.copy_(tensor)
    return kept


def _kept(what: str, size: Any, make: Any) -> list[Tensor]:
    """Buffers that stay where they are, once per size."""
    buffers: dict[Any, list[Tensor]] = _state["buffers"]
    if (what, size) not in buffers:
        buffers[what, size] = made = make()
        for tensor in made:
            torch._dynamo.mark_static_address(tensor)  # noqa: SLF001  the documented way
    return buffers[what, size]


@torch.no_grad()
def _loop(cross: list[Tensor], limit: int, *, stop: bool) -> list[list[int]]:
    """Greedy decoding of all rows: lists of tokens, end-of-sequence included."""
    network, rows = _state["network"], len(cross[0])
    said: list[list[int]] = [[] for _ in range(rows)]
    running, step = list(range(rows)), 0
    ids = torch.full((rows, 1), START, device=network.device)
    capacity, cache = 0, list[Tensor]()
    while running and step < limit:
        if step == capacity:
            cache, capacity = _larger(cache, len(ids), capacity)
        chosen = []
        for _ in range(min(LOOK, limit - step, capacity - step)):
            at = torch.tensor([step], device=network.device)
            seen = None if _state["fixed"] else step + 1
            ids = _state["step"](ids, at, cache, cross, seen).clone()
            chosen.append(ids)
            step += 1
        block = torch.cat(chosen, 1).tolist()
        ended = [_extend(said[row], block[place], stop=stop) for place, row in enumerate(running)]
        kept = [place for place, over in enumerate(ended) if not over]
        if _state["fixed"]:
            # Rows that have ended go on unheard.
            if not kept:
                break
        elif len(kept) < len(running):
            running = [running[place] for place in kept]
            index = torch.tensor(kept, device=network.device, dtype=torch.int64)
            ids = ids[index]
            cache, cross = [t[index] for t in cache], [t[index] for t in cross]
    return said


def _extend(row: list[int], tokens: list[int], *, stop: bool) -> bool:
    """Adds tokens up to the end of the sequence; whether that was reached."""
    for token in tokens:
        if stop and row and row[-1] == EOS:
            return True
        row.append(token)
    return stop and row[-1] == EOS


def _larger(old: list[Tensor], rows: int, capacity: int) -> tuple[list[Tensor], int]:
    """A cache with twice the columns."""
    network, size = _state["network"], 2 * capacity or FIRST_CAPACITY
    if _state["fixed"]:
        new = _kept("cache", (rows, size), lambda: network.caches(rows, size))
    else:
        new = network.caches(rows, size)
    for buffer, tensor in zip(new[: len(old)], old, strict=True):
        buffer[:, :, :capacity].copy_(tensor)
    return new, size


if __name__ == "__main__":
    serve({"load": load, "take": take, "forward": forward, "song": song,
           "steps": steps})  # fmt: skip
