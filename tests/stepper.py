"""Drives a step graph the simple way, for tests: plain feeds, no binding, all rows every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from mt3_export.graphs.decoder import build_decoder
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.profiles import blocks_for
from mt3_export.weights import Weights

CAPACITY = 64


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A single-threaded session."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # unbound caches make it warn at every step
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


class Stepper:
    """Encodes features [n, T, bins], decodes one token of n * channels rows per `step`.

    ``previous`` int64 [rows, tokens] is what a memory of ``memory`` rows is made of.  ``graphs``
    (encoder, decoder) are driven instead of those of the profile, whose form of cache they have.
    """

    def __init__(
        self,
        weights: Weights,
        frames: int,
        profile: str,
        features: npt.NDArray[np.float32],
        *,
        expose_logits: bool = False,
        previous: npt.NDArray[np.int64] | None = None,
        memory: int = 0,
        graphs: tuple[onnx.ModelProto, onnx.ModelProto] | None = None,
    ) -> None:
        inputs: dict[str, npt.NDArray[Any]] = {"features": features}
        if previous is not None:
            inputs["previous_ids"] = previous
        tokens = 0 if previous is None else previous.shape[1]
        encoder_graph, decoder_graph = graphs or (
            build_encoder(weights, frames, profile=profile, memory=memory, memory_tokens=tokens),
            build_decoder(
                weights,
                frames + memory,
                max_tokens=CAPACITY,
                profile=profile,
                expose_logits=expose_logits,
            ),
        )
        encoder = session(encoder_graph)
        names = [output.name for output in encoder.get_outputs()]
        rows, shape = len(features) * weights.shape.channels, weights.shape
        columns = 0 if blocks_for(profile).cache == "concat" else CAPACITY
        self._decoder = session(decoder_graph)
        self._feeds: dict[str, npt.NDArray[Any]] = dict(
            zip(names, encoder.run(names, inputs), strict=True)
        )
        self._past = {
            f"past_{part}_{layer}": np.zeros(
                (rows, shape.heads, columns, shape.head_dim), np.float32
            )
            for layer in range(shape.decoder_layers)
            for part in ("key", "value")
        }
        self.ids = np.zeros((rows, 1), np.int64)
        self.positions = np.zeros(rows, np.int32)
        self.allowed = np.ones((rows, shape.vocab_size), np.bool_)

    def step(self) -> dict[str, npt.NDArray[Any]]:
        """One token for every row; returns all outputs by name."""
        names = [output.name for output in self._decoder.get_outputs()]
        feeds = {
            **self._feeds,
            **self._past,
            "token_ids": self.ids,
            "positions": self.positions,
            "allowed": self.allowed,
        }
        found = dict(zip(names, self._decoder.run(names, feeds), strict=True))
        self._past = {name: found[name.replace("past", "present")] for name in self._past}
        self.ids = found["next_ids"]
        self.positions = self.positions + np.int32(1)
        return found

    def restart(self, row: int) -> None:
        """Sends one row back to the start token, leaving its old cache as garbage."""
        self.ids[row] = 0
        self.positions[row] = 0
