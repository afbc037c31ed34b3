"""Tokens to notes: the vocabulary, assemblers, confidence, instruments and stems."""

from mt3_runtime.imports.lazy import forward

__getattr__ = forward(
    __name__,
    {
        "base": ("Assembler", "ChannelTokens", "SegmentReport"),
        "magenta_assembler": ("NoteAssembler",),
        "note": ("Note", "Probabilities"),
    },
)
