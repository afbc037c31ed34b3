"""Runs the MT3 family of music transcription models: audio in, multi-instrument MIDI out."""

from importlib import import_module, metadata

__version__ = metadata.version("mt3-runtime")
_HOMES = {
    "catalogue": ("download_model", "get_model_info", "list_models"),
    "errors": ("MT3Error",),
    "loading": ("Model", "clear_cache", "load_model", "transcribe"),
    "notes": ("Note",),
    "transcription": ("Progress", "Transcription"),
}
__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> object:  # lazy: `mt3 --help` need not wait for NumPy
    for home in (home for home, names in _HOMES.items() if name in names):
        return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
