"""Reads recordings to features and salience, in this process or a pool of reader processes."""

from mt3_runtime.imports.lazy import forward

__getattr__ = forward(
    __name__,
    {
        "local_reading": ("LocalReading",),
        "reader_child": ("freeze_support",),
        "reader_limits": ("ReaderLimits",),
        "reader_pool": ("ReaderPool",),
        "reading_plan": ("ReadingPlan",),
    },
)
