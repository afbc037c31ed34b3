"""Instrument leakage: what the audio says about notes, and the filters that read it."""

from mt3_runtime.imports.lazy import forward

__getattr__ = forward(__name__, {"leakage_report": ("Change", "LeakageReport", "Stretch")})
