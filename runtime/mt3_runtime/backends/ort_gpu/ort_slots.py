"""Device buffers of a lane's slots: caches, cross keys and values, features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mt3_runtime.backends.ort_gpu.ort_memory import Buffer, DeviceSpec, Staging

if TYPE_CHECKING:
    from mt3_runtime.bundles.manifest import ModelSpec, Role


#: The id of a graph that ONNX Runtime takes for none: the step is neither recorded nor replayed.
_NO_GRAPH = "-1"


class Slots:
    """The device's side of a lane: its buffers, and bindings over them.

    Caches of every capacity that was needed once are kept, smaller ones too: a CUDA graph is good
    for one set of addresses, and the next segments begin small again.

    Attributes:
        recorded: Rows and capacities of the steps that were run before.
        plain: The same of those that could not be recorded, and run without.
    """

    def __init__(
        self,
        runtime: Any,
        place: DeviceSpec,
        slots: int,
        *,
        spec: ModelSpec,
        sessions: tuple[Any, Any],
        shapes: dict[Role, dict[str, list[Any]]],
    ) -> None:
        """Allocates all but the caches.

        Args:
            runtime: The module ``onnxruntime``.
            place: Where.
            slots: Number of slots.
            spec: Sizes of the model.
            sessions: Encoder and decoder.
            shapes: What `expected_shapes` says of each, by role.
        """
        encoder, self._decoder = sessions
        self.slots, self._runtime, self._place, self._spec = slots, runtime, place, spec
        elements = {port.name: port.type for port in self._decoder.get_inputs()}
        self.allowed = self._buffer(slots, shapes["decoder"]["allowed"], elements["allowed"])
        self.cross = {
            name: self._buffer(slots, shapes["decoder"][name], elements[name])
            for name in elements
            if name.startswith("cross_")
        }
        self._cache_element = elements["past_key_0"]
        self.taken = self._staging({"token_ids": ((1,), "tensor(int64)"),
                                    "positions": ((), "tensor(int32)")})  # fmt: skip
        self.given = self._staging({"top_ids": ((2,), "tensor(int64)"),
                                    "top_log_probs": ((2,), "tensor(float)")})  # fmt: skip
        # Nobody reads it: the same ids come back in `given`.
        self._next_ids = self._buffer(slots, (1,), "tensor(int64)")
        heard = {
            port.name: (tuple(shapes["encoder"][port.name]), port.type)
            for port in encoder.get_inputs()
        }
        self.segment = Staging(runtime, place, 1, tensors=heard)
        self.recorded: set[tuple[int, int]] = set()
        self.plain: set[tuple[int, int]] = set()
        self._caches: dict[int, list[Buffer]] = {}
        self._steps: dict[tuple[int, int], tuple[Any, Any]] = {}

    def cache(self, capacity: int) -> list[Buffer]:
        """Keys and values of all layers with so many columns, in the order of the layers."""
        if capacity not in self._caches:
            shape = (self._spec.heads, capacity, self._spec.head_dim)
            self._caches[capacity] = [
                self._buffer(self.slots, shape, self._cache_element)
                for _ in range(2 * self._spec.layers)
            ]
        return self._caches[capacity]

    def step(self, rows: int, capacity: int, graph_ids: Iterator[int] | None) -> tuple[Any, Any]:
        """The binding of a step and its run options, which tell CUDA graphs apart."""
        if (rows, capacity) not in self._steps:
            options = self._runtime.RunOptions()
            if graph_ids is not None:
                options.add_run_config_entry("gpu_graph_id", str(next(graph_ids)))
            self._steps[rows, capacity] = self._bind(rows, capacity), options
        binding, options = self._steps[rows, capacity]
        if (rows, capacity) in self.plain:
            options = self._runtime.RunOptions()
            options.add_run_config_entry("gpu_graph_id", _NO_GRAPH)
        return binding, options

    def _bind(self, rows: int, capacity: int) -> Any:
        binding, used = self._decoder.io_binding(), slice(0, rows)
        for name in ("token_ids", "positions"):
            self.taken.bind(binding.bind_input, name, rows)
        self.allowed.bind(binding.bind_input, "allowed", used)
        for name, buffer in self.cross.items():
            buffer.bind(binding.bind_input, name, used)
        for index, buffer in enumerate(self.cache(capacity)):
            name = f"{('key', 'value')[index % 2]}_{index // 2}"
            buffer.bind(binding.bind_input, f"past_{name}", used)
            buffer.bind(binding.bind_output, f"present_{name}", used)
        self._next_ids.bind(binding.bind_output, "next_ids", used)
        for name in ("top_ids", "top_log_probs"):
            self.given.bind(binding.bind_output, name, rows)
        return binding

    def _buffer(self, rows: int, shape: Any, element: str) -> Buffer:
        return Buffer(self._runtime, self._place, rows, shape=shape, element=element)

    def _staging(self, tensors: dict[str, tuple[tuple[int, ...], str]]) -> Staging:
        return Staging(self._runtime, self._place, self.slots, tensors=tensors)
