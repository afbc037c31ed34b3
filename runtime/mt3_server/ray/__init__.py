"""Many machines with Ray: batches with Ray Data, requests with Ray Serve; extra ``ray``."""

from mt3_runtime.imports.lazy import forward

__getattr__ = forward(
    __name__,
    {
        "ray_batch": ("RayReport", "transcribe_files"),
        "ray_service": ("service",),
    },
)
