"""Makes tests/parity/golden/front_ends.npz: features of YourMT3's and MR-MT3's own code.

Run it in an environment of its own, from the root of this repository:

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch==2.13.0 torchaudio==2.11.0 \
        transformers==4.45.1 librosa==0.11.0 einops==0.8.2 packaging soundfile soxr mido
    /tmp/torch/bin/pip install --no-deps yourmt3==0.1.4 -e .
    git clone https://github.com/gudgud96/MR-MT3 /tmp/mr && git -C /tmp/mr checkout 826ea84
    PYTHONPATH=. /tmp/torch/bin/python tests/parity/recipes/front_ends.py \
        /tmp/mr/contrib/spectrograms.py path/to/violin_solo.mp3

(Beside a CPU build of torch the compiled part of torchaudio cannot be loaded and is not needed:
remove torchaudio/lib from the environment.)

The upstream modules are executed as they are; TensorFlow and ddsp, which MR-MT3 imports for a path
that is off by default, are stand-ins, and so is the package `yourmt3` itself, whose first lines
load a trainer.  MR-MT3 scales features outside that module; `scaled` repeats its two lines.

Arrays of the result, NAME being `FRONT_END.SIGNAL`: `NAME` holds every `STRIDE`-th value of the
flattened features, `NAME_mean` the mean of all in float64, `NAME_noise` by how much they differ, at
most and on average, from a float64 evaluation with the original's window and filters;
`FRONT_END.filters` holds every `STRIDE`-th weight of the filter bank.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.parity.recipes.log_mel import RECORDING_SEGMENT, Samples, broadband, ramp

GOLDEN = Path(__file__).parents[1] / "golden" / "front_ends.npz"
STRIDE = 53
"""Odd, so that the samples visit every bin and every frame."""

FULL = {"mr_mt3": 32768, "yourmt3_mel": 32767, "yourmt3_linear": 32767}
"""Samples of a full segment."""

Features = npt.NDArray[np.float32]


def quiet() -> Samples:
    """One part in a thousand of the broadband signal, behind silence."""
    samples = 0.001 * broadband(first=200_000)
    samples[:9000] = 0.0
    return samples.astype(np.float32)


SIGNALS: Mapping[str, Callable[[], Samples]] = {
    "ramp": ramp,
    "broadband": broadband,
    "quiet": quiet,
}


def partial(front_end: str) -> Samples:
    """A last segment: as long as its hops for MR-MT3, filled with silence for YourMT3."""
    samples = broadband(first=100_000, count=37 * 128)
    return samples if front_end == "mr_mt3" else np.pad(samples, (0, 32767 - len(samples)))


def scaled(log_mel: Features) -> Features:
    """What MR-MT3's inference.py does with the log-mel: clip to -12..5, then to 0..1."""
    clipped: Features = np.clip(log_mel, -12, 5)
    return (clipped - (-12)) / (5 - (-12))


def _load(path: Path) -> types.ModuleType:
    """MR-MT3's module of spectrograms."""
    for name in ("ddsp", "tensorflow"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["ddsp"].spectral_ops = None  # type: ignore[attr-defined]
    nothing = types.SimpleNamespace(set_visible_devices=lambda *_: None)
    sys.modules["tensorflow"].config = nothing  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("spectrograms", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["spectrograms"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    for name in ("ddsp", "tensorflow"):  # einops would take the stand-in for TensorFlow
        del sys.modules[name]
    return module


def originals(mr_mt3: Path) -> dict[str, Callable[[Samples], Features]]:
    """The three front ends, each from samples of a segment [n] to [frames, bins]."""
    import torch

    found = importlib.util.find_spec("yourmt3")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("The package yourmt3 is not installed.")
    package = types.ModuleType("yourmt3")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["yourmt3"] = package
    from yourmt3.config.config import audio_cfg
    from yourmt3.model.spectrogram import get_spectrogram_layer_from_audio_cfg

    upstream = _load(mr_mt3)
    layers = {
        "yourmt3_mel": get_spectrogram_layer_from_audio_cfg(dict(audio_cfg))[0],
        "yourmt3_linear": get_spectrogram_layer_from_audio_cfg(
            {**audio_cfg, "codec": "spec", "hop_length": 300}
        )[0],
    }

    def mr(samples: Samples) -> Features:
        whole = np.pad(samples, (0, 32768 - len(samples)))
        features = scaled(upstream.compute_spectrogram(whole, upstream.SpectrogramConfig()))
        features[-(-len(samples) // 128) :] = 0  # as inference.py does
        return features

    def yours(name: str, samples: Samples) -> Features:
        with torch.no_grad():
            found: Features = layers[name](torch.from_numpy(samples)[None, None])[0].numpy()
        return found

    return {
        "mr_mt3": mr,
        "yourmt3_mel": lambda samples: yours("yourmt3_mel", samples),
        "yourmt3_linear": lambda samples: yours("yourmt3_linear", samples),
    }


def in_float64(
    front_end: str, samples: Samples, filters: npt.NDArray[np.float64] | None
) -> npt.NDArray[np.float64]:
    """The same formulas without the rounding of float32, window and filters excepted."""
    import torch

    window = torch.hann_window(2048).numpy().astype(np.float64)
    signal = samples.astype(np.float64)
    hop = 300 if front_end == "yourmt3_linear" else 128
    centred = front_end != "mr_mt3"
    padded = np.pad(signal, 1024, mode="reflect") if centred else np.pad(signal, (0, 2048))
    count = 1 + len(signal) // hop if centred else -(-len(signal) // hop)
    frames = np.stack([padded[hop * i :][:2048] for i in range(count)])
    values = np.abs(np.fft.rfft(frames * window))
    if front_end == "yourmt3_mel":
        values **= 2
    values = values[:, 1:] if filters is None else values @ filters
    if not centred:
        log_mel = np.log(np.where(values <= 0, 1e-5, values))
        return np.pad((log_mel.clip(-12, 5) + 12) / 17, ((0, 256 - count), (0, 0)))
    logs = np.log(values + 1e-5)
    return (logs - logs.min()) / (logs.max() - logs.min() + 0.008)


def main(mr_mt3: str, recording: str) -> None:
    """Compute and store everything."""
    import torch
    import torchaudio

    from mt3_runtime.audio.sources import load_audio

    filters = {
        "mr_mt3": torchaudio.functional.melscale_fbanks(1025, 20.0, 7600.0, 512, 16000),
        "yourmt3_mel": torchaudio.functional.melscale_fbanks(1025, 50.0, 8000.0, 512, 16000),
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for name, matrix in filters.items():
        arrays[f"{name}.filters"] = matrix.numpy().reshape(-1)[::STRIDE]
    for front_end, original in originals(Path(mr_mt3)).items():
        full = FULL[front_end]
        signals = {name: make()[:full] for name, make in SIGNALS.items()}
        signals["partial"] = partial(front_end)
        signals["recording"] = load_audio(recording)[RECORDING_SEGMENT][:full]
        matrix64 = filters[front_end].double().numpy() if front_end in filters else None
        for name, samples in signals.items():
            features = original(samples)
            difference = np.abs(features - in_float64(front_end, samples, matrix64))
            noise = difference.max(), difference.mean()
            key = f"{front_end}.{name}"
            arrays[key] = features.reshape(-1)[::STRIDE]
            arrays[f"{key}_mean"] = features.mean(dtype=np.float64)
            arrays[f"{key}_noise"] = np.array(noise)
            print(
                key,
                features.shape,
                f"mean {features.mean():.6f} noise",
                *map("{:.1e}".format, noise),
            )
    np.savez_compressed(GOLDEN, **arrays)
    versions = f"torch {torch.__version__}, torchaudio {torchaudio.__version__}"
    print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes, {versions}")
    print("yourmt3", importlib.metadata.version("yourmt3"))


if __name__ == "__main__":
    main(*sys.argv[1:])
