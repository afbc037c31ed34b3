"""Makes tests/parity/golden/log_mel.npz: log-mel values of Magenta's own TensorFlow operation.

Run it in an environment of its own (TensorFlow is not needed for anything else), from the root of
this repository:

    python -m venv /tmp/tf && /tmp/tf/bin/pip install tensorflow-cpu==2.21.0 soundfile soxr
    git clone https://github.com/magenta/mt3 /tmp/mt3 && git -C /tmp/mt3 checkout fa04532
    PYTHONPATH=runtime:. /tmp/tf/bin/python tests/parity/recipes/log_mel.py \
        /tmp/mt3/mt3/spectral_ops.py path/to/violin_solo.mp3

The first argument is the upstream module, which is executed as it is, with a stand-in for its
decorator library gin.  The second is the recording of `RECORDING`; only sampled values of its
features are kept.  The other signals are integer formulas, so no random generator can drift.

Arrays of the result: `NAME` holds every `STRIDE`-th value of the flattened features of a signal,
`NAME_mean` their mean over all bins in float64; `mel_rows`, `mel_columns` and `mel_weights` are the
non-zero entries of TensorFlow's filter bank.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import numpy.typing as npt

GOLDEN = Path(__file__).parents[1] / "golden" / "log_mel.npz"
STRIDE = 11
"""Odd, so that the samples visit every bin and every frame."""

RECORDING = "violin_solo.mp3"
RECORDING_SEGMENT = slice(20 * 32768, 21 * 32768)

Samples = npt.NDArray[np.float32]


def ramp() -> Samples:
    """A full segment with a flat, comb-like spectrum."""
    n = np.arange(32768)
    return (((7919 * n) % 2001 - 1000) / 2000).astype(np.float32)


def broadband(first: int = 0, count: int = 32768) -> Samples:
    """Noise (a hash of the sample number) with three sawtooth tones on top."""
    n = np.arange(first, first + count, dtype=np.uint64)
    hashed = (n * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    hashed = ((hashed ^ (hashed >> np.uint64(15))) * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    hashed ^= hashed >> np.uint64(13)
    noise = hashed.astype(np.float64) / 2**32 - 0.5
    saws = sum((n * np.uint64(hz) % np.uint64(16000)) / 16000 - 0.5 for hz in (110, 523, 2794))
    return (0.2 * noise + 0.2 * saws).astype(np.float32)


def partial() -> Samples:
    """The 37 hops of a last segment."""
    return broadband(first=100_000, count=37 * 128)


SIGNALS = {"ramp": ramp, "broadband": broadband, "partial": partial}


def _load_upstream(path: Path) -> types.ModuleType:
    gin = types.ModuleType("gin")
    gin.register = lambda function: function  # type: ignore[attr-defined]
    sys.modules["gin"] = gin
    spec = importlib.util.spec_from_file_location("spectral_ops", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python module.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(upstream: str, recording: str) -> None:
    """Compute and store everything."""
    import tensorflow as tf

    from mt3_runtime.audio.sources import load_audio

    operation = _load_upstream(Path(upstream)).compute_logmel
    signals = {name: make() for name, make in SIGNALS.items()}
    signals["recording"] = load_audio(recording)[RECORDING_SEGMENT]
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, samples in signals.items():
        features = operation(
            samples, lo_hz=20.0, bins=512, fft_size=2048, overlap=0.9375, sample_rate=16000
        ).numpy()
        arrays[name] = features.reshape(-1)[::STRIDE]
        arrays[f"{name}_mean"] = features.mean(dtype=np.float64)
    matrix = tf.signal.linear_to_mel_weight_matrix(512, 1025, 16000, 20.0, 7600.0).numpy()
    rows, columns = np.nonzero(matrix)
    arrays["mel_rows"], arrays["mel_columns"] = rows.astype(np.int16), columns.astype(np.int16)
    arrays["mel_weights"] = matrix[rows, columns]
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    main(*sys.argv[1:])
