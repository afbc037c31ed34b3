"""YourMT3 by its authors: a worker process (see `common.serve`) for their package's environment.

The package `yourmt3` of PyPI (tests/parity/yourmt3-requirements.txt) with its own encoder, batches
of eight segments, cached greedy loop.  Three things differ from a user's run: the spectrogram is
replaced by ready features, nothing is recorded for gradients (the package forgets to say so, which
costs its users memory and time), and matrix products stay in full float32, so that tokens can be
compared.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from common import HERE, ROOT, serve

# The package has the name of the benchmark, which lies beside this file.
sys.path[0] = str(ROOT / "tests" / "parity" / "recipes")
sys.path[:] = [folder for folder in sys.path if folder != str(HERE)]
from yourmt3_oracle import encode, import_package  # noqa: E402  needs the path above

EOS = 1
#: Segments at once, as in the authors' application and in mt3-infer.
BATCH = 8

_state: dict[str, Any] = {}


def load(model: str, weights: str, threads: int) -> dict[str, Any]:
    """Builds the network and loads a bare state dict."""
    begin = time.perf_counter()
    package = import_package()
    import torch  # noqa: PLC0415  after the stand-ins of import_package
    from yourmt3.model.t5mod_helper import task_cond_dec_generate  # noqa: PLC0415

    from mt3_runtime.commands.machine import versions  # noqa: PLC0415

    torch.set_num_threads(threads)
    network = package.YMT3(weights, model).model
    _state.update(network=network, torch=torch, generate=task_cond_dec_generate)
    found = versions(["torch", "transformers", "yourmt3"])
    return {"seconds": time.perf_counter() - begin, "versions": found, "threads": threads}


def features(path: str) -> dict[str, Any]:
    """Takes over the features that our side made."""
    _state["features"] = _state["torch"].from_numpy(np.load(path))
    return {"segments": len(_state["features"])}


def forced(lengths: list[list[int]]) -> dict[str, Any]:
    """Encodes and decodes the ready features; every sequence ends at its length."""
    from mt3_runtime.commands.machine import peak_rss  # noqa: PLC0415

    network, torch, inputs = _state["network"], _state["torch"], _state["features"]
    begin, encoder, tokens = time.perf_counter(), 0.0, []
    with torch.inference_mode():
        for start in range(0, len(inputs), BATCH):
            stop = start + BATCH
            before = time.perf_counter()
            encoded = encode(network, inputs[start:stop])
            encoder += time.perf_counter() - before
            head = Head(network.lm_head, torch.tensor(lengths[start:stop]))
            found = _state["generate"](
                decoder=network.decoder,
                decoder_type=network.decoder_type,
                embed_tokens=network.embed_tokens,
                lm_head=head,
                encoder_hidden_states=encoded,
                shift_right_fn=network.shift_right_fn,
                max_length=network.max_total_token_length,
            )
            rows = found.reshape(len(found), -1, found.shape[-1]).tolist()
            tokens += [row[:n] for segment, wanted in zip(rows, lengths[start:stop], strict=True)
                       for row, n in zip(segment, wanted, strict=True)]  # fmt: skip
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "encoder": encoder, "decoder": seconds - encoder,
            "tokens": tokens, "peak_rss": peak_rss()}  # fmt: skip


class Head:
    """The output head of one run of the greedy loop, with end-of-sequence where it is wanted."""

    def __init__(self, head: Any, lengths: Any) -> None:
        self._head, self._lengths, self._step = head, lengths, 0

    def __call__(self, hidden: Any) -> Any:
        """Hidden [B, (C,) 1, M] to logits [B, (C,) 1, V]."""
        logits = self._head(hidden)
        self._step += 1
        last = (self._lengths == self._step).reshape(logits.shape[:-2])
        logits[..., 0, EOS] = _state["torch"].where(last, float("inf"), float("-inf"))
        return logits


if __name__ == "__main__":
    serve({"load": load, "features": features, "forced": forced})
