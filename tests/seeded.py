"""Deterministic weights for tests: the same bits on every machine and every NumPy.

Values come from integer hashing (splitmix64) and exact integer sums, not from a NumPy generator
whose streams may change.  The scales keep the network lively: attention is neither uniform nor
one-hot, logits have a standard deviation of about six, and end-of-sequence wins now and then.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mt3_export.weights import (
    FloatArray,
    MemoryShape,
    PositionTable,
    T5Shape,
    Weights,
    inventory,
)

#: A network small enough for unit tests, with every structural feature of the real one.  The head
#: width is the real one because folded kernels do not tell it and readers have to assume it.
TINY = T5Shape(
    d_model=32,
    heads=2,
    head_dim=64,
    d_ff=48,
    encoder_layers=2,
    decoder_layers=2,
    vocab_size=1536,
    input_bins=512,
)

#: The same with the vocabulary of Magenta's piano model.
ISMIR2021 = replace(TINY, vocab_size=1664)

#: The same with MR-MT3's memory.
MEMORY = MemoryShape(**vars(TINY))

EOS = 1

_MASK = np.uint64(0xFFFF)


def seeded_normal(key: str, shape: tuple[int, ...]) -> FloatArray:
    """Roughly normal values (mean 0, std 1) that depend on ``key`` and the position only."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    size = math.prod(shape)
    state = np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    # The sum of four 16-bit parts: mean 131070, variance 4 * (65536**2 - 1) / 12.
    total: npt.NDArray[np.uint64] = (
        (state & _MASK)
        + ((state >> np.uint64(16)) & _MASK)
        + ((state >> np.uint64(32)) & _MASK)
        + (state >> np.uint64(48))
    )
    values = (total.astype(np.float64) - 131070.0) / math.sqrt((65536.0**2 - 1.0) / 3.0)
    return values.astype(np.float32).reshape(shape)


def seeded_weights(
    shape: T5Shape = TINY, seed: int = 0, *, positions: PositionTable | None = None
) -> Weights:
    """A complete seeded network; `positions` defaults to Magenta's table."""
    tensors = {name: _tensor(name, size, shape, seed) for name, size in inventory(shape).items()}
    return Weights(shape, tensors, positions or PositionTable(255))


def _tensor(name: str, size: tuple[int, ...], shape: T5Shape, seed: int) -> FloatArray:
    values = seeded_normal(f"{seed}:{name}", size)
    if name.endswith(".scale"):
        return np.asarray(1.0 + 0.2 * values, np.float32)
    if name.endswith(".embedding"):
        return np.asarray(0.7 * values, np.float32)
    scaled = np.asarray(values * (_gain(name, shape) / math.sqrt(size[0])), np.float32)
    if ".logits_dense." in name:
        scaled[:, EOS] *= np.float32(2.6)  # wins every few dozen steps
    return scaled


def _gain(name: str, shape: T5Shape) -> float:
    """Standard deviation of a kernel's output for normalised inputs."""
    if ".query." in name or ".key." in name:
        # q.k then has a standard deviation of 4; there is no attention scaling.
        return math.sqrt(4.0 / math.sqrt(shape.head_dim))
    if ".encoder_decoder_attention.out." in name:
        return 1.5  # averaging over frames shrinks it; tokens must depend on the audio
    if ".mlp.wo." in name:
        return 4.0  # makes the next token depend on the whole prefix, not on the last token
    if ".logits_dense." in name:
        return 6.0
    if ".continuous_inputs_projection." in name:
        return 0.5
    return 1.0
