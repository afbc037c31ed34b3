"""mt3-infer as it ships: a worker process (see `common.serve`) for the PyTorch environment.

Its default model (`mt3_pytorch`) with its own reader, features, decoding and MIDI writer, the way
its command line drives them: one segment at a time, the whole prefix again for every token.  That
takes minutes per song, so a part of the segments can be timed and scaled to all of them.

Its features need torchaudio, whose wheels do not fit the pinned torch.  Where it is missing, a
stand-in computes the same mel spectrogram with `torch.stft`: under a second of the whole song.
"""

from __future__ import annotations

import sys
import time
import types
from typing import Any

import librosa
import mt3_infer
import numpy as np
import torch
import transformers  # noqa: F401  looks for torchaudio when imported: before the stand-in is there
from common import serve
from mt3_infer.utils.audio import load_audio

from mt3_runtime.commands.machine import peak_rss, versions

_state: dict[str, Any] = {}


class MelSpectrogram:
    """torchaudio's transform with the options mt3-infer gives it (HTK mels, no norm, centred)."""

    def __init__(self, sample_rate: int, n_fft: int, hop_length: int, n_mels: int,
                 f_min: float, power: float, normalized: bool) -> None:  # fmt: skip  # noqa: FBT001
        self.sizes, self.power = (n_fft, hop_length), power
        mel = librosa.filters.mel(
            sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, htk=True, norm=None
        )
        self.mel, self.window = torch.from_numpy(mel), torch.hann_window(n_fft)
        if normalized:
            raise NotImplementedError

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """Samples [n] to [mels, frames]."""
        spectrum = torch.stft(samples, *self.sizes, window=self.window, return_complex=True)
        return self.mel @ spectrum.abs() ** self.power


def _provide_torchaudio() -> str:
    try:
        import torchaudio.transforms  # noqa: F401, PLC0415  looked for, not used
    except ImportError:
        package, module = types.ModuleType("torchaudio"), types.ModuleType("torchaudio.transforms")
        module.MelSpectrogram = MelSpectrogram  # type: ignore[attr-defined]
        package.transforms = module  # type: ignore[attr-defined]
        sys.modules.update({"torchaudio": package, "torchaudio.transforms": module})
        return "stand-in"
    return "torchaudio"


def load(checkpoint: str, threads: int) -> dict[str, Any]:
    """Loads the default model."""
    begin = time.perf_counter()
    features = _provide_torchaudio()
    torch.set_num_threads(threads)
    _state["model"] = mt3_infer.load_model(checkpoint_path=checkpoint, device="cpu")
    _clock(_state["model"]._model)  # noqa: SLF001  the loop over segments is its own
    return {
        "seconds": time.perf_counter() - begin,
        "adapter": type(_state["model"]).__name__,
        "mel": features,
        "threads": threads,
        "versions": versions(["torch", "transformers", "mt3-infer"]),
    }


def _clock(network: Any) -> None:
    """Keeps of every segment its seconds, its tokens, and whether it came to an end."""
    generate, end = network.generate, network.config.eos_token_id
    _state["each"] = []

    def clocked(**options: Any) -> Any:
        begin = time.perf_counter()
        found = generate(**options)
        seconds, tokens = time.perf_counter() - begin, found.shape[1] - 1
        ended = bool((found == end).any())
        _state["each"].append({"seconds": seconds, "tokens": tokens, "ended": ended})
        return found

    network.generate = clocked


def song(audio: str, midi: str, part: tuple[int | None, float]) -> dict[str, Any]:
    """Audio file to MIDI file.

    Args:
        audio: The file.
        midi: The file to write; with only some segments it is not of the whole song.
        part: How many evenly spaced segments to run (None: all), and by what fraction of their
            distance to shift them.
    """
    model = _state["model"]
    begin = time.perf_counter()
    features = model.preprocess(*load_audio(audio))
    ready = time.perf_counter()
    total, (segments, offset) = len(features), part
    chosen = np.arange(total)
    if segments is not None and segments < total:
        chosen = np.floor((np.arange(segments) + offset) * total / segments).astype(int)
    _state["each"].clear()
    outputs = model.forward(features[chosen])
    decoded = time.perf_counter()
    model._last_frame_times = model._last_frame_times[chosen]  # noqa: SLF001  decode() reads it
    model.decode(outputs).save(midi)
    done = time.perf_counter()
    around = ready - begin + done - decoded
    return {
        "seconds": around + (decoded - ready) * total / len(chosen),
        "measured": done - begin,
        "around": around,
        "segments": total,
        "timed": chosen.tolist(),
        "each": _state["each"],
        "tokens": int((outputs >= 0).sum()),
        "peak_rss": peak_rss(),
    }


if __name__ == "__main__":
    serve({"load": load, "song": song})
