"""Loads models by path or name: `load_model`, and `transcribe` for everything in one call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mt3_runtime.backends.devices import open_backend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import OptionError
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model

if TYPE_CHECKING:
    import mido

    from mt3_runtime.audio.sources import AudioSource
    from mt3_runtime.decoding.search import SearchName
    from mt3_runtime.leakage.leakage_report import AutoFilter
    from mt3_runtime.notes.instruments import Instruments


def load_model(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    auto_filter: AutoFilter = True,
    decoding: SearchName = "greedy",
    profile: str | None = None,
) -> Model:
    """Loads a model.

    Args:
        model: Path of a bundle (a folder that holds ``bundle.json``, or a ``.mt3`` file), or the
            name of an installed one.  If None: the environment variable ``MT3_MODEL``, else the
            only installed model, else ``default``, if the package was built with it.
        device: ``auto``, ``cpu``, ``cuda[:n]`` or ``tensorrt[:n]``.  A device that is asked for is
            used or refused, never replaced.
        threads: Worker threads on the CPU; all usable cores by default.
        auto_filter: Default for the model's calls.
        decoding: Default for the model's calls.
        profile: Graph profile; the device's own by default.

    Raises:
        BundleNotFoundError: There is no such model.
        BundleError: The bundle is damaged.
        DeviceError: The device cannot be used; the message says what to install.
        MissingDependencyError: ONNX Runtime is not installed.
        OptionError: An argument is out of range.
    """
    bundle = Bundle(resolve_model(_path(model)))
    backend = open_backend(bundle, device, threads=threads, profile=profile)
    return Model(bundle, backend, auto_filter=auto_filter, decoding=decoding)


#: The model that `transcribe` used last, so that a second call does not load it again.
_loaded: dict[tuple[object, ...], Model] = {}


def transcribe(
    audio: AudioSource,
    model: str | os.PathLike[str] | Model | None = None,
    *,
    sr: float | None = None,
    device: str = "auto",
    auto_filter: AutoFilter | None = None,
    instruments: Instruments | None = None,
    exclude: Instruments | None = None,
) -> mido.MidiFile:
    """Transcribes a recording to MIDI in one call; keeps the model for the next one.

    Args:
        audio: Path, binary file object, or samples; see `mt3_runtime.audio.sources.open_audio`.
        model: As in `load_model`, or a loaded model.
        sr: Sample rate of an array in Hz; the model's own if None.
        device: As in `load_model`.
        auto_filter: As in `Model.transcribe_notes`.
        instruments: As in `Model.transcribe_notes`.
        exclude: As in `Model.transcribe_notes`.
    """
    if not isinstance(model, Model):
        path = resolve_model(_path(model))
        key = (path, Path(path).stat().st_mtime_ns, device)
        if key not in _loaded:
            loaded = load_model(path, device=device)
            clear_cache()
            _loaded[key] = loaded
        model = _loaded[key]
    return model.transcribe(
        audio, sr=sr, auto_filter=auto_filter, instruments=instruments, exclude=exclude
    )


def clear_cache() -> None:
    """Frees the model that `transcribe` keeps."""
    _loaded.clear()


def _path(model: str | os.PathLike[str] | None) -> str | None:
    if model is None or isinstance(model, str):
        return model
    if not isinstance(model, os.PathLike):
        raise OptionError(f"model must be a path or a name, got {type(model).__name__}.")
    return os.fspath(model)
