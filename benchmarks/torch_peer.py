"""The fair baseline: a cached greedy loop in PyTorch, with the same weights and the same tokens.

A worker process (see `common.serve`) for the environment of tests/parity/oracle-requirements.txt.
The network is mt3-infer's vendored T5; around its own blocks runs the loop a careful user would
write: encoder in batches, 32 segments at once, key/value cache, finished rows dropped from batch
and cache, one read of the ids per step, no bookkeeping else.  The audio front end and the note
assembly of `song` are those of `mt3_runtime`, so that the only difference is the network's engine.

The position frequencies of the port, 10000^(-i/256), are replaced by those the weights were trained
with, 10000^(-i/255); without that the tokens differ.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import serve
from mt3_infer.models.mt3_pytorch.t5 import T5Config, T5ForConditionalGeneration
from transformers import logging
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands.machine import peak_rss, versions
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.model import Model, token_digest

PAD, EOS = 0, 1
#: Segments decoded at once: of 1, 8, 32 and 88 the best of this loop on the reference machine.
ROWS = 32
#: Segments encoded at once: no batch from 1 to 32 was faster than another by more than noise.
ENCODE_ROWS = 8
MAX_TOKENS = 1024

_state: dict[str, Any] = {}


def load(
    checkpoint: str,
    bundle: str,
    threads: int,
    *,
    device: str = "cpu",
    half: bool = False,
    compiled: bool = False,
) -> dict[str, Any]:
    """Builds the network, and a `Model` without backend for its front and back ends.

    Args:
        checkpoint: Folder with config.json and mt3.pth.
        bundle: Bundle of the same weights.
        threads: Threads of the CPU.
        device: ``cpu`` or ``cuda``.
        half: Compute in fp16.
        compiled: Run the encoder and the decoder's blocks through torch.compile.
    """
    begin = time.perf_counter()
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    folder = Path(checkpoint)
    config = T5Config.from_dict(json.loads((folder / "config.json").read_text()))
    network = T5ForConditionalGeneration(config).eval()
    network.load_state_dict(torch.load(folder / "mt3.pth", weights_only=True))
    for layer, block in enumerate(network.decoder.block):  # the constructor leaves this unset
        block.layer[0].SelfAttention.layer_idx = block.layer[1].EncDecAttention.layer_idx = layer
    network.to(device, torch.float16 if half else torch.float32)
    width = config.d_model // 2
    exact = torch.from_numpy((10000.0 ** (-np.arange(width) / (width - 1))).astype(np.float32))
    for stack in (network.encoder, network.decoder):
        stack.pos_emb = _Positions(stack.pos_emb.float(), network.proj.weight.dtype)
        stack.pos_emb.sinusoids.inv_freq.copy_(exact)
    if compiled:
        network.encoder = torch.compile(network.encoder)
        blocks = network.decoder.block
        for layer, block in enumerate(blocks):
            blocks[layer] = torch.compile(block, dynamic=True)  # the cache grows step by step
    _state.update(network=network, model=Model(Bundle(bundle), backend=None))
    found = versions(["torch", "transformers", "mt3-infer"])
    return {"seconds": time.perf_counter() - begin, "versions": found, "threads": threads}


class _Positions(torch.nn.Module):
    """Sinusoids in fp32, where fp16 would move them, then as the network computes."""

    def __init__(self, sinusoids: torch.nn.Module, kind: torch.dtype) -> None:
        super().__init__()
        self.sinusoids, self.kind = sinusoids, kind

    def forward(self, *arguments: Any, **named: Any) -> torch.Tensor:
        return self.sinusoids(*arguments, **named).to(self.kind)


def features(path: str) -> dict[str, Any]:
    """Takes over the features that our side made."""
    _state["features"] = np.load(path)
    return {"segments": len(_state["features"])}


def forward() -> dict[str, Any]:
    """Encodes and decodes the ready features."""
    begin = time.perf_counter()
    found = _transcribe(_state["features"])
    seconds = time.perf_counter() - begin
    return {
        "seconds": seconds,
        "digest": token_digest(found),
        "each": [token_digest([sequence]) for sequence in found],
        "lengths": [len(sequence.tokens) for sequence in found],
    }


def song(audio: str, midi: str) -> dict[str, Any]:
    """Audio file to MIDI file."""
    begin = time.perf_counter()
    model = _state["model"]
    found = _transcribe(model.preprocess(audio))
    model.decode(found).save(midi)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "digest": token_digest(found), "peak_rss": peak_rss()}


def steps(batch: int, count: int, threads: int) -> dict[str, Any]:
    """Times `count` decoder steps of `batch` rows; end-of-sequence is ignored."""
    torch.set_num_threads(threads)
    inputs = _state["features"]
    encoded = _encode(inputs[np.arange(batch) % len(inputs)])
    _run(encoded, 8, stop=False)
    begin = time.perf_counter()
    tokens = _run(encoded, count, stop=False)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds / count, "last_ids": [row[-1] for row in tokens]}


def _transcribe(inputs: Any) -> list[Sequence]:
    tokens: list[list[int]] = []
    for start in range(0, len(inputs), ROWS):
        tokens += _run(_encode(inputs[start : start + ROWS]), MAX_TOKENS)
    return [
        Sequence(np.array(row, np.int32), np.zeros(len(row), np.float32), row[-1] != EOS)
        for row in tokens
    ]


@torch.inference_mode()
def _encode(inputs: Any) -> torch.Tensor:
    network = _state["network"]
    parts = [
        network.encoder(inputs_embeds=network.proj(_there(part)), return_dict=True)[0]
        for part in np.split(inputs, range(ENCODE_ROWS, len(inputs), ENCODE_ROWS))
    ]
    return torch.cat(parts)


def _there(part: Any) -> torch.Tensor:
    """An array as a tensor where the network is, as it computes."""
    like = _state["network"].proj.weight
    return torch.from_numpy(part).to(like.device, like.dtype)


@torch.inference_mode()
def _run(encoded: torch.Tensor, limit: int, *, stop: bool = True) -> list[list[int]]:
    """Greedy decoding of all rows of [N, T, width]: N lists of tokens, end-of-sequence included."""
    network = _state["network"]
    decoder = network.decoder
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    positions = decoder.pos_emb(seq=limit)
    no_bias = encoded.new_zeros(
        1, 1, 1, 1
    )  # nothing is masked: every cached position precedes this one
    tokens: list[list[int]] = [[] for _ in encoded]
    rows = tokens
    ids = torch.full((len(encoded), 1), PAD, device=encoded.device)
    for step in range(limit):
        hidden = decoder.embed_tokens(ids) + positions[:, step : step + 1]
        place = torch.tensor([step], device=encoded.device)
        for block in decoder.block:
            hidden = block(
                hidden,
                position_bias=no_bias,
                encoder_hidden_states=encoded,
                encoder_decoder_position_bias=no_bias,
                past_key_values=cache,
                use_cache=True,
                cache_position=place,
            )[0]
        ids = network.lm_head(decoder.final_layer_norm(hidden))[:, -1].argmax(-1, keepdim=True)
        chosen = ids[:, 0].tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.append(token)
        if stop and EOS in chosen:
            alive = [index for index, token in enumerate(chosen) if token != EOS]
            if not alive:
                break
            rows = [rows[index] for index in alive]
            kept = torch.tensor(alive, device=encoded.device)
            ids, encoded = ids[kept], encoded[kept]
            cache.batch_select_indices(kept)
    return tokens


if __name__ == "__main__":
    serve({"load": load, "features": features, "forward": forward, "song": song, "steps": steps})
