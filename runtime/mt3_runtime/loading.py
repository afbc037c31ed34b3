"""Loads models by path or name: `load_model`, and `transcribe` for everything in one call.

Contract: threads may call both at once.  A model of `load_model` may be pickled: it travels as its
path and the arguments, and is loaded again where it arrives.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mt3_runtime.backends.devices import Device, open_backend
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import BundleError
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
        device: ``auto``, ``cpu``, ``cuda[:n]``, ``tensorrt[:n]``, ``rtx[:n]``, ``plugin:NAME[:n]``.
            A device that is asked for is used or refused, never replaced.
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
    bundle = Bundle(resolve_model(model))
    options = {"device": device, "threads": threads, "profile": profile}
    again = partial(_load_again, bundle.path.absolute(), bundle.manifest.export_id, options)
    backend = open_backend(bundle, device, threads=threads, profile=profile)
    return Model(bundle, backend, auto_filter=auto_filter, decoding=decoding, again=again)


def _load_again(path: Path, export_id: str, options: dict[str, Any]) -> Model:
    """What a pickled model says is to be done where it arrives.

    Raises:
        BundleError: The bundle at that path is another one by now, or as `load_model`.
    """
    model = load_model(path, **options)
    if model.info.export_id != export_id:
        model.close()
        raise BundleError(
            f"{path} is not the bundle this model was loaded from (export {export_id}): it was "
            "exported again. Load the model where it is used, with load_model."
        )
    return model


class _Kept:
    """The model that `transcribe` used last, so that a second call does not load it again."""

    def __init__(self) -> None:
        self._models: dict[tuple[object, ...], Model] = {}
        self._renew()
        if hasattr(os, "register_at_fork"):  # another thread may be loading at that moment
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def get(self, path: Path, device: str) -> Model:
        """The model, loaded once however many threads ask for it."""
        key = (path, path.stat().st_mtime_ns, device)
        with self._lock:
            model = self._models.get(key)
            if model is None:
                model = load_model(path, device=device)
                self._models = {key: model}
            return model

    def clear(self) -> None:
        """Forgets it; calls that use it are not disturbed."""
        with self._lock:
            self._models = {}


_kept = _Kept()


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
        Device.parse(device)
        model = _kept.get(resolve_model(model), device)
    return model.transcribe(
        audio, sr=sr, auto_filter=auto_filter, instruments=instruments, exclude=exclude
    )


def clear_cache() -> None:
    """Frees the model that `transcribe` keeps."""
    _kept.clear()
