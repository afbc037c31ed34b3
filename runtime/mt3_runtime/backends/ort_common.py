"""Shared by the ONNX Runtime backends: the import, checks of loaded graphs, host side of slots.

Buffers are bound by address, so a graph whose tensors are larger than the manifest says would write
past their ends: `check_ports` compares every one of them before anything runs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from mt3_runtime.bundles.precision import ELEMENTS
from mt3_runtime.diagnostics import wheels
from mt3_runtime.diagnostics.cpu_kernels import check_cpu
from mt3_runtime.errors import BundleError, DeviceError, MissingDependencyError, OptionError
from mt3_runtime.imports.extras import require

if TYPE_CHECKING:
    from mt3_runtime.bundles.bundle import Bundle, GraphFile, Manifest, ModelSpec

#: More threads than any machine has cores; each costs a lane.
MAX_THREADS = 1024


def check_threads(threads: int | None) -> None:
    """Raises `OptionError` unless ``threads`` is None or a number from 1 to 1024."""
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise OptionError(f"threads must be a number from 1 to {MAX_THREADS}, got {threads!r}.")


def check_runnable(manifest: Manifest, device: str, kinds: Collection[str]) -> None:
    """Refuses a bundle whose numbers a device cannot compute with.

    Args:
        manifest: The bundle's.
        device: What the user calls the device.
        kinds: Types, of `mt3_runtime.bundles.precision.KINDS`, that it has kernels for.

    Raises:
        DeviceError: It uses others.
    """
    precision = manifest.precision
    used = (precision.arithmetic, precision.self_cache, precision.cross_cache)
    lacking = sorted(set(used) - set(kinds))
    if lacking:
        raise DeviceError(
            f"{manifest.name} is a bundle of precision {precision}, and device {device} has no "
            f"{' or '.join(lacking)} arithmetic; use the exact bundle there, or this one on "
            "another device."
        )


class HostSlots:
    """The part of a `Lane` that is on the host: what its slots read and what they chose.

    The attributes are those of `mt3_runtime.backends.base.Lane`.
    """

    def __init__(self, spec: ModelSpec, slots: int, start_id: int) -> None:
        self.spec, self.slots, self.channels = spec, slots, spec.channels
        self._start_id = start_id
        self.token_ids = np.zeros((slots, 1), np.int64)
        self.positions = np.zeros(slots, np.int32)
        self.allowed = np.ones((slots, spec.vocab_size), np.bool_)
        self.top_ids = np.zeros((slots, 2), np.int64)
        self.top_log_probs = np.zeros((slots, 2), np.float32)
        self.room = slots

    def widen(self) -> bool:
        """Nothing: there is memory for all slots from the start."""
        return False

    def restart(self, filled: slice) -> None:
        """Sends slots back to the start token."""
        self.token_ids[filled] = self._start_id
        self.positions[filled] = 0

    def move(self, source: int, target: int) -> None:
        """Copies what a running slot reads over that of a finished one."""
        for state in (self.token_ids, self.positions, self.allowed):
            state[target] = state[source]


def return_freed_memory() -> None:
    """Gives what loading has freed back to the system: 60 MB that glibc would keep for later."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime.

    Raises:
        DeviceError: It would end the process on this CPU.
        MissingDependencyError: No wheel of it is installed, or it cannot be loaded.
    """
    check_cpu()
    onnxruntime = require("onnxruntime", "Running a model", "cpu")
    if not hasattr(onnxruntime, "get_available_providers"):
        raise MissingDependencyError(
            "ONNX Runtime is hollow: a second wheel of it was removed and took shared files along. "
            f"Repair it with: {wheels.remedy('cpu')} (or onnxruntime-gpu, for an NVIDIA GPU)."
        )
    return onnxruntime


def check_ports(bundle: Bundle, graph: GraphFile, session: Any) -> None:
    """Compares a session's inputs and outputs with the manifest.

    Raises:
        BundleError: They have other names, shapes or types of elements.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = tuple(tuple(port.name for port in ports) for ports in (inputs, outputs))
    expected = expected_shapes(bundle.manifest, graph)
    if found != (graph.inputs, graph.outputs) or expected.keys() != set(sum(found, ())):
        raise BundleError(
            f"{graph.file} of {bundle.path} has other inputs or outputs than the manifest says. "
            "Export the model again."
        )
    for port in (*inputs, *outputs):
        # Buffers are bound by address, so a wrong size would be written past its end.
        if port.shape[1:] != expected[port.name]:
            raise BundleError(
                f"{port.name} of {graph.file} in {bundle.path} has the shape {port.shape}; the "
                f"manifest says {['rows', *expected[port.name]]}. Export the model again."
            )
        element = expected_element(bundle.manifest, port.name)
        if port.type != element:
            raise BundleError(
                f"{port.name} of {graph.file} in {bundle.path} is a {port.type}; the manifest says "
                f"{element}. Export the model again."
            )


def expected_element(manifest: Manifest, name: str) -> str:
    """ONNX Runtime's name of the element type of an input or output."""
    if name.startswith(("cross_", "present_cross_")):
        return ELEMENTS[manifest.precision.cross_cache]
    if name.startswith(("past_", "present_")):
        return ELEMENTS[manifest.precision.self_cache]
    if name.endswith("_ids"):
        return "tensor(int64)"
    return {"positions": "tensor(int32)", "allowed": "tensor(bool)"}.get(name, "tensor(float)")


def expected_shapes(manifest: Manifest, graph: GraphFile) -> dict[str, list[Any]]:
    """Shape behind the row axis of every input and output of a graph, by name."""
    spec = manifest.model
    value = [spec.heads, spec.cross_rows, spec.head_dim]
    key = [spec.heads, spec.head_dim, spec.cross_rows] if graph.cross_key_transposed else value
    by_layer: dict[str, list[Any]] = {"cross_key": key, "cross_value": value}
    shapes: dict[str, list[Any]] = {"features": [manifest.features.frames, manifest.features.bins]}
    if spec.memory:
        shapes["previous_ids"] = [manifest.decoding.memory_tokens]
    if graph.returns_cross:
        by_layer |= {f"present_{name}": shape for name, shape in by_layer.items()}
    if graph.role == "decoder":
        lengths = ("past", "present") if graph.cache == "concat" else ("capacity", "capacity")
        for side, length in zip(("past", "present"), lengths, strict=True):
            for part in ("key", "value"):
                by_layer[f"{side}_{part}"] = [spec.heads, length, spec.head_dim]
        shapes = {"token_ids": [1], "positions": [], "allowed": [spec.vocab_size]}
        shapes |= {"next_ids": [1], "top_ids": [2], "top_log_probs": [2]}
    for layer in range(spec.layers):
        shapes |= {f"{name}_{layer}": shape for name, shape in by_layer.items()}
    return shapes
