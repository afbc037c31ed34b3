"""MR-MT3's decoding as published: the whole decoder over all tokens again for every new one.

A worker process (see `common.serve`) for the environment of tests/parity/oracle-requirements.txt.
The stacks are mt3-infer's copy of MR-MT3's own (`models/mr_mt3/t5.py`); the loop around them is
written here from what `models/t5_segmem_v2_with_prev.py` of gudgud96/MR-MT3 does, for that file is
on no package index: the encoder in one batch over a recording, its segments one after another, each
with a memory of the one before, no cache, and position tables computed anew at every call.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from common import serve
from mt3_infer.models.mr_mt3.t5 import T5ForConditionalGeneration, T5Stack
from transformers import T5Config, logging

from mt3_runtime.commands.machine import peak_rss, versions
from mt3_runtime.decoding.types import Sequence
from mt3_runtime.model import token_digest

PAD, EOS, TIE = 0, 1, 1134
MEMORY_TOKENS = 1024

_state: dict[str, Any] = {}


def load(checkpoint: str, threads: int) -> dict[str, Any]:
    """Builds the network from a ``.pt`` file, strictly."""
    begin = time.perf_counter()
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    config = T5Config(
        d_model=512, d_kv=64, d_ff=1024, num_heads=6, num_layers=8, num_decoder_layers=8,
        vocab_size=1536, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS, use_cache=False,
    )  # fmt: skip
    network = T5ForConditionalGeneration(config)
    network.segmem_proj = torch.nn.Linear(512, 512, bias=False)
    one_layer = T5Config.from_dict(
        config.to_dict() | {"num_layers": 1, "is_encoder_decoder": False, "dropout_rate": 0.0}
    )
    network.segmem_encoder = T5Stack(one_layer, network.segmem_proj, "segmem")
    network.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    _state["network"] = network.eval()
    found = versions(["torch", "transformers", "mt3-infer"])
    return {"seconds": time.perf_counter() - begin, "versions": found, "threads": threads}


@torch.inference_mode()
def forward(path: str, memory: int, tokens: int) -> dict[str, Any]:
    """Decodes recordings one after another.

    Args:
        path: File of features, float32 [recordings, segments, frames, bins].
        memory: M, rows of memory.
        tokens: Most tokens per segment.
    """
    recordings = np.load(path)
    begin = time.perf_counter()
    found = [_recording(torch.from_numpy(features), memory, tokens) for features in recordings]
    seconds = time.perf_counter() - begin
    digests = [
        token_digest(
            Sequence(np.array(row, np.int32), np.zeros(len(row), np.float32), row[-1] != EOS)
            for row in rows
        )
        for rows in found
    ]
    total = sum(len(row) for rows in found for row in rows)
    return {"seconds": seconds, "digests": digests, "tokens": total, "peak_rss": peak_rss()}


def _recording(features: torch.Tensor, memory: int, limit: int) -> list[list[int]]:
    network = _state["network"]
    encoded = network.encoder(inputs_embeds=network.proj(features), return_dict=True)[0]
    previous = torch.zeros((1, MEMORY_TOKENS), dtype=torch.long)
    previous[0, :2] = torch.tensor([TIE, EOS])
    rows = []
    for segment in encoded:
        remembered = network.segmem_encoder(network.decoder_embed_tokens(previous))[0]
        seen = torch.cat([segment[None], remembered[:, :memory]], dim=1)
        ids = torch.full((1, 1), PAD)
        for _ in range(limit):
            hidden = network.decoder(input_ids=ids, encoder_hidden_states=seen, return_dict=True)[0]
            chosen = network.lm_head(hidden)[:, -1, :].argmax(dim=-1)
            ids = torch.cat([ids, chosen[:, None]], dim=1)
            if int(chosen) == EOS:
                break
        previous = torch.nn.functional.pad(ids, (0, MEMORY_TOKENS - ids.shape[1]), value=PAD)
        rows.append(ids[0, 1:].tolist())
    return rows


if __name__ == "__main__":
    serve({"load": load, "forward": forward})
