"""YourMT3's Perceiver encoder in plain float64 NumPy, written from the formulas.

It shares no code with the exporter but the weights' names, as `tests.reference_t5` does for T5.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from mt3_export.weights import Weights

Array = npt.NDArray[np.float64]
HEADS, TOP = 8, 2


def encode(weights: Weights, features: npt.NDArray[np.float32]) -> Array:
    """What the decoder attends to, [n * channels, T, M], of features [n, T, bins]."""
    get, shape = _getter(weights), weights.shape
    n, frames, _ = features.shape
    x = features.astype(np.float64)[:, None]
    for block in range(3):
        x = _conv_block(get, f"encoder.conv_{block}", x, first=block == 0)
    source = x.transpose(0, 2, 1, 3)  # [n, T, filters, frequencies]
    z = np.broadcast_to(get("encoder.latents"), (n, frames, shape.latents, shape.width))
    if not shape.experts:
        z = z + get("encoder.latent_positions")[:frames]
    for block in range(shape.blocks):
        name = f"encoder.blocks_{block}"
        read = _attention(get, f"{name}.spectral", z, source, "spectral", shape.experts)
        z = read + z if shape.experts else read
        for kind, count in (("local", shape.local_layers), ("temporal", shape.temporal_layers)):
            z = z.swapaxes(1, 2) if kind == "temporal" else z
            for index in range(count):
                z = _layer(get, f"{name}.{kind}_{index}", z, kind, shape.experts)
            z = z.swapaxes(1, 2) if kind == "temporal" else z
    pooled = z.reshape(n, frames, shape.channels, -1).swapaxes(1, 2)
    return np.asarray(pooled @ get("encoder.projection.kernel")).reshape(-1, frames, shape.d_model)


def _getter(weights: Weights):  # type: ignore[no-untyped-def]
    return lambda name: weights.tensors[name].astype(np.float64)


def _conv_block(get, prefix: str, x: Array, *, first: bool) -> Array:
    y = np.maximum(
        _batch_norm(get, f"{prefix}.norm_1", _conv3(x, get(f"{prefix}.conv_1.filters"))), 0
    )
    y = _batch_norm(get, f"{prefix}.norm_2", _conv3(y, get(f"{prefix}.conv_2.filters")))
    if first:
        filters = get(f"{prefix}.shortcut.filters")[:, 0, 0, 0]
        x = x * filters[:, None, None] + get(f"{prefix}.shortcut.bias")[:, None, None]
    y = np.maximum(y + x, 0)
    return np.asarray(y.reshape(*y.shape[:3], -1, 2).mean(-1))


def _conv3(x: Array, filters: Array) -> Array:
    """3 x 3, zero padded: [n, c, t, f] with filters [o, c, 3, 3]."""
    n, _, frames, bins = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, len(filters), frames, bins))
    for i in range(3):
        for j in range(3):
            part = padded[:, :, i : i + frames, j : j + bins]
            out += np.einsum("oc,nctf->notf", filters[:, :, i, j], part)
    return out


def _batch_norm(get, prefix: str, x: Array) -> Array:
    scale, bias, mean, variance = (
        get(f"{prefix}.{part}")[:, None, None] for part in ("scale", "bias", "mean", "variance")
    )
    return np.asarray((x - mean) / np.sqrt(variance + 1e-5) * scale + bias)


def _layer_norm(get, prefix: str, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return np.asarray(normed * get(f"{prefix}.scale") + get(f"{prefix}.bias"))


def _linear(get, prefix: str, x: Array) -> Array:
    return np.asarray(x @ get(f"{prefix}.kernel") + get(f"{prefix}.bias"))


def _attention(get, prefix: str, z: Array, source: Array | None, kind: str, rotary: int) -> Array:
    """[..., L, C] attends to [..., L', S], or to itself where there is no source."""
    if source is None:
        queries = keys = _layer_norm(get, f"{prefix.removesuffix('.attention')}.attention_norm", z)
    else:
        queries = _layer_norm(get, f"{prefix}.query_norm", z)
        keys = _layer_norm(get, f"{prefix}.source_norm", source)

    def heads(x: Array, part: str) -> Array:
        folded = _linear(get, f"{prefix}.{part}", x)
        return folded.reshape(*folded.shape[:-1], HEADS, -1).swapaxes(-2, -3)

    q, k, v = heads(queries, "query"), heads(keys, "key"), heads(keys, "value")
    if rotary:
        q = _rotate(q, get(f"encoder.rotary.{kind}"), kind)
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    exp = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (exp / exp.sum(-1, keepdims=True)) @ v
    merged = mixed.swapaxes(-2, -3)
    return _linear(get, f"{prefix}.out", merged.reshape(*merged.shape[:-2], -1))


def _rotate(q: Array, frequencies: Array, kind: str) -> Array:
    """Turns columns (0, 1) and (2, 3) of every head as complex numbers."""
    count = q.shape[-2]
    positions = np.arange(count) if kind == "temporal" else np.linspace(-1, 1, count)
    turned = q.copy()
    for pair, frequency in enumerate(frequencies):
        a, b = 2 * pair, 2 * pair + 1
        spun = (q[..., a] + 1j * q[..., b]) * np.exp(1j * positions * frequency)
        turned[..., a], turned[..., b] = spun.real, spun.imag
    return turned


def _layer(get, name: str, z: Array, kind: str, experts: int) -> Array:
    z = z + _attention(get, f"{name}.attention", z, None, kind, experts)
    normed = _layer_norm(get, f"{name}.mlp_norm", z)
    if experts:
        return np.asarray(z + _experts(get, f"{name}.mlp", normed, experts))
    wide = _linear(get, f"{name}.mlp.wi", normed)
    erf = np.vectorize(math.erf)(wide / math.sqrt(2))
    return np.asarray(z + _linear(get, f"{name}.mlp.wo", 0.5 * wide * (1 + erf)))


def _experts(get, prefix: str, x: Array, count: int) -> Array:
    logits = x @ get(f"{prefix}.router.kernel")
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    shares = exp / exp.sum(-1, keepdims=True)
    kept = np.argsort(-shares, axis=-1, kind="stable")[..., :TOP]
    total = np.take_along_axis(shares, kept, -1).sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for e in range(count):
        name = f"{prefix}.experts_{e}"
        gate, linear = x @ get(f"{name}.wi_0.kernel"), x @ get(f"{name}.wi_1.kernel")
        y = (gate / (1 + np.exp(-gate)) * linear) @ get(f"{name}.wo.kernel")
        chosen = (kept == e).any(-1, keepdims=True)
        out += np.where(chosen, shares[..., e : e + 1] / total, 0) * y
    return out
