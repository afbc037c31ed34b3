"""Execution contexts of one engine, with scratch memory of ours and kernels kept between starts.

Each recorded step has a context of its own, as TensorRT wants it unchanged afterwards.  Contexts
that run on one stream run one after the other, so that they share scratch memory: it is allocated
by whoever owns the stream, once, for the largest.

TensorRT for RTX finishes kernels when an engine runs first.  What it made is read from beside the
engine, and kept there.  We record steps ourselves, with the copies to and from the host, so its own
CUDA graphs are off (they would hold the engine alone); and as a recorded step keeps the kernels it
was recorded with, those for its shapes are made at once instead of later in the background.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mt3_engines.storage.kernels import keep_kernels, read_kernels
from mt3_engines.storage.shapes import Shape
from mt3_runtime.errors import DeviceError

log = logging.getLogger("mt3_engines")


class Contexts:
    """Makes contexts of an engine; for all threads."""

    def __init__(self, tensorrt: Any, engine: Any, kernels: Path | None = None) -> None:
        """Args: the module, the engine, and where finished kernels are kept; None for nowhere.

        TensorRT for RTX alone has strategies of its own, and kernels to finish.
        """
        self._tensorrt, self._engine, self._path = tensorrt, engine, kernels
        self._lock = threading.Lock()
        self._kept = b""
        self._config = self._configure() if hasattr(tensorrt, "CudaGraphStrategy") else None

    def make(
        self,
        profile: int,
        *,
        shapes: dict[str, Shape],
        addresses: dict[str, int],
        stream: int,
        scratch: Callable[[int], int],
    ) -> Any:
        """A context with its shapes, tensors and scratch memory.

        Args:
            profile: Number of the optimisation profile.
            shapes: Of all inputs.
            addresses: Of all inputs and outputs.
            stream: It runs on.
            scratch: Gives the address of so many bytes that nothing else uses on that stream.

        Raises:
            DeviceError: TensorRT refuses something, or there is no memory.
        """
        with self._lock:
            context = self._new()
        if context is None:
            raise DeviceError(
                "TensorRT makes no execution context; its log says why. If the GPU is full, build "
                "the engines with fewer --slots, or close other programs that use it."
            )
        done = [context.set_optimization_profile_async(profile, stream)]
        done += [context.set_input_shape(name, shape) for name, shape in shapes.items()]
        done += [context.set_tensor_address(name, at) for name, at in addresses.items()]
        if not all(done):
            raise DeviceError("TensorRT refuses the engines' shapes or addresses; see its log.")
        # Not what the largest profile takes: a lane of few rows has no memory for that.
        size = max(
            int(self._engine.get_device_memory_size_for_profile_v2(profile)),
            int(context.update_device_memory_size_for_shapes()),
        )
        if size:
            context.set_device_memory(scratch(size), size)
        return context

    def keep_kernels(self) -> None:
        """Writes what was finished since it was read, if there is anything new."""
        if self._path is None or self._config is None:
            return
        with self._lock:
            kernels = bytes(self._config.get_runtime_cache().serialize() or b"")
            if kernels and kernels != self._kept:
                keep_kernels(self._path, kernels)
                self._kept = kernels

    def _new(self) -> Any:
        user_managed = self._tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._config is None:
            return self._engine.create_execution_context(user_managed)
        return self._engine.create_execution_context(self._config)

    def _configure(self) -> Any:
        tensorrt, config = self._tensorrt, self._engine.create_runtime_config()
        user_managed = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        config.set_execution_context_allocation_strategy(user_managed)
        config.cuda_graph_strategy = tensorrt.CudaGraphStrategy.DISABLED
        strategies = tensorrt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        cache = config.create_runtime_cache()
        kernels = None if self._path is None else read_kernels(self._path)
        if kernels is not None:
            if cache.deserialize(kernels):
                self._kept = kernels
            else:
                log.info("%s is of another driver; its kernels are made again", self._path)
        config.set_runtime_cache(cache)
        return config
