"""Audio to features: reads files and streams, cuts segments, computes log-mel spectra."""

from mt3_runtime.imports.lazy import forward

__getattr__ = forward(
    __name__, {"sources": ("AudioSource", "AudioStream", "load_audio", "open_audio", "open_blocks")}
)
