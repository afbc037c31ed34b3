"""A plug-in provider that ONNX Runtime's CPU provider plays.

`Runtime` stands in front of ONNX Runtime: it keeps a list of devices and says which node went
where, and the graphs are really computed.  No library is loaded.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mt3_runtime.backends import ort_common, ort_cpu, ort_plugin
from mt3_runtime.bundles.tiny_graphs import float_product_model

EP = "PlayedExecutionProvider"


class Options(onnxruntime.SessionOptions):
    """Notes what plug-in devices a session is given."""

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.given = (devices, options)


class Session:
    """A session of the CPU provider that says its nodes lie on the plug-in."""

    def __init__(self, runtime: Runtime, source: str | bytes, options: Options) -> None:
        self._session = onnxruntime.InferenceSession(source, options)
        self._runtime, self._product = runtime, source == float_product_model()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = self._session.run(names, feeds)
        if not (self._product and self._runtime.coarse):
            return found
        bits = np.frombuffer(found[0].tobytes(), np.uint32) & 0xFFFF0000  # as bf16 has them
        return [bits.astype(np.uint32).view(np.float32).reshape(found[0].shape)]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        lost = self._runtime.lost
        strays = [SimpleNamespace(name=f"node_{n}", op_type=kind) for n, kind in enumerate(lost)]
        taken = SimpleNamespace(name="all", op_type="MatMul")
        return [
            SimpleNamespace(ep_name=EP, get_nodes=lambda: [taken]),
            SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: strays),
        ]


class Runtime:
    """ONNX Runtime with a plug-in of so many devices.

    Attributes:
        coarse: Products come out in bf16.
        lost: Operators that are given to the CPU instead.
        loaded: Libraries that were registered.
        given: Devices and options of every session on the plug-in.
    """

    SessionOptions = Options

    def __init__(self, devices: int = 1, *, coarse: bool = False, lost: tuple[str, ...] = ()):
        self.coarse, self.lost, self._count = coarse, lost, devices
        self.loaded: list[str] = []
        self.given: list[tuple[list[Any], dict[str, str]]] = []
        self.broken = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(onnxruntime, name)

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if self.loaded:
            raise RuntimeError(f"EP library is already registered under {name}")
        if self.broken:
            raise RuntimeError(self.broken)
        self.loaded.append(path)

    def get_ep_devices(self) -> list[Any]:
        own = [("CPUExecutionProvider", "host")]
        played = [(EP, f"chip {n}") for n in range(self._count)] if self.loaded else []
        return [
            SimpleNamespace(
                ep_name=ep,
                ep_metadata={"FULL_DEVICE_NAME": name, "ov_device": "CPU"},
                device=SimpleNamespace(type=SimpleNamespace(name="CPU"), vendor="Maker"),
            )
            for ep, name in own + played
        ]

    def InferenceSession(self, source: Any, options: Any, **more: Any) -> Any:  # noqa: N802
        if getattr(options, "given", None) is None:
            return onnxruntime.InferenceSession(source, options, **more)
        self.given.append(options.given)
        return Session(self, source, options)


def put(
    patch: pytest.MonkeyPatch, runtime: Runtime, name: str = "played", **functions: Any
) -> Runtime:
    """Puts a plug-in's package, and a runtime that knows it, in place."""
    module = ModuleType(f"onnxruntime_ep_{name.replace('-', '_')}")
    module.get_library_path = lambda: "/lib/played.so"  # type: ignore[attr-defined]
    module.get_ep_names = lambda: [EP]  # type: ignore[attr-defined]
    for key, value in functions.items():
        setattr(module, key, value)
    patch.setitem(sys.modules, module.__name__, module)
    for user in (ort_common, ort_cpu, ort_plugin):
        patch.setattr(user, "import_onnxruntime", lambda: runtime)
    return runtime
