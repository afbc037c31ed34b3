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
from mt3_export.yourmt3 import PerceiverShape, YourMT3Shape

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

#: YourMT3's networks as small.  Latent heads are four wide there, or eight where their first four
#: columns turn with the position, as in the real one.
_SMALL_DECODER = {"d_model": 32, "heads": 2, "head_dim": 64, "d_ff": 48, "decoder_layers": 2}
TINY_YMT3 = YourMT3Shape(**_SMALL_DECODER, encoder_layers=2, vocab_size=596, input_bins=32)
_SMALL_PERCEIVER = {
    **_SMALL_DECODER,
    "encoder_layers": 0,
    "vocab_size": 596,
    "input_bins": 128,
    "filters": 12,
    "blocks": 2,
}
TINY_SINGLE = PerceiverShape(
    **_SMALL_PERCEIVER,
    decoder_channels=1,
    latents=4,
    width=32,
    ff_width=32,
    experts=0,
    position_rows=20,
)
TINY_MULTI = replace(TINY_SINGLE, decoder_channels=3, latents=6)
TINY_MOE = PerceiverShape(
    **_SMALL_PERCEIVER, decoder_channels=3, latents=6, width=64, ff_width=24, experts=5
)

#: YourMT3's published networks.
_MOE = PerceiverShape(encoder_layers=0, vocab_size=596, input_bins=1024)
_MULTI = replace(_MOE, experts=0, position_rows=120, ff_width=128)
YOURMT3 = {
    "ymt3_plus": YourMT3Shape(vocab_size=596),
    "yptf_single": replace(_MULTI, decoder_channels=1, latents=24),
    "yptf_multi": _MULTI,
    "yptf_moe_multi": _MOE,
}

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
    """A complete seeded network; `positions` defaults to Magenta's table, or YourMT3's."""
    tensors = {name: _tensor(name, size, shape, seed) for name, size in inventory(shape).items()}
    if positions is None:
        yourmt3 = isinstance(shape, YourMT3Shape)
        positions = PositionTable(256, rows=sinusoids(shape)) if yourmt3 else PositionTable(255)
    return Weights(shape, tensors, positions)


def sinusoids(shape: T5Shape, rows: int = 1034) -> FloatArray:
    """The table YourMT3 stores: frequencies 10000 ** (-2i / d_model), all in float64."""
    half = shape.d_model // 2
    angles = np.outer(np.arange(rows), 10000.0 ** (-np.arange(half) / half))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _tensor(name: str, size: tuple[int, ...], shape: T5Shape, seed: int) -> FloatArray:
    values = seeded_normal(f"{seed}:{name}", size)
    if ".rotary." in name:
        return np.array([1.0, 0.01] if name.endswith("temporal") else [np.pi, 5 * np.pi], "f4")
    if name.endswith((".bias", ".mean")):
        return np.asarray(0.1 * values, np.float32)
    if name.endswith(".variance"):
        return np.asarray(1.0 + 0.2 * np.abs(values), np.float32)
    if name.endswith(".filters"):
        return np.asarray(values * math.sqrt(2.0 / math.prod(size[1:])), np.float32)
    if name.endswith((".latents", ".latent_positions")):
        return np.asarray(0.7 * values, np.float32)
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
    if ".blocks_" in name:
        return _latent_gain(name)
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
    if name == "encoder.projection.kernel":
        return 0.25  # there is no norm behind it
    return 1.0


def _latent_gain(name: str) -> float:
    """The same inside YourMT3's encoder, where scores are scaled."""
    if ".router." in name:
        return 2.0  # some tokens are torn between experts, most are not
    if ".query." in name or ".key." in name:
        return 1.4
    return 2.0 if name.endswith((".wo.kernel", ".out.kernel")) else 1.0
