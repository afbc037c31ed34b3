"""Transcribes music with the MT3 family of models: audio in, multi-instrument MIDI out."""

from mt3_runtime.imports.lazy import forward, keep_former_paths, version
from mt3_runtime.imports.telemetry import refuse as refuse_telemetry

_HOMES = {
    "errors": ("MT3Error",),
    "loading": ("Model", "clear_cache", "load_model", "transcribe"),
    "models.catalogue": ("download_model", "get_model_info", "list_models"),
    "notes.note": ("Note",),
    "transcription": ("Progress", "Transcription"),
}
__all__ = [name for names in _HOMES.values() for name in names]
__getattr__ = forward(__name__, _HOMES, {"__version__": version})
keep_former_paths()
refuse_telemetry()
