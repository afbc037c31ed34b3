"""The backend of ONNX Runtime's plug-in execution providers: devices ``plugin:NAME[:n]``.

A plug-in is a package beside the one CPU wheel, ``onnxruntime-ep-NAME``, with a library that ONNX
Runtime is told to register.  What a provider does not take, ONNX Runtime gives to the CPU without a
word, and what it takes it may compute in fewer bits: OpenVINO multiplies in bf16 on a CPU with AMX
unless it is told not to.  So what was granted is compared with what was asked for: a graph runs on
the plug-in's device as a whole, in the arithmetic of the bundle, or the device is refused, with the
names of the nodes or the error of a product.

The plug-in runs the encoder, one call of a fixed shape per segment.  Decoder steps stay on the CPU
provider, as those of device ``cpu``: their caches are updated in place, and grow.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mt3_runtime.backends.ort_common import check_ports, import_onnxruntime
from mt3_runtime.backends.ort_cpu import ENTRIES, OrtCpuBackend, load_graph
from mt3_runtime.backends.ort_session import one_line, open_session
from mt3_runtime.bundles.tiny_graphs import float_product_model
from mt3_runtime.diagnostics import wheels
from mt3_runtime.errors import DeviceError
from mt3_runtime.imports.extras import pip

if TYPE_CHECKING:
    from mt3_runtime.bundles.bundle import Bundle, GraphFile

#: Graph profiles a plug-in's encoder may have, best first: standard operators, the oldest before
#: the new ones.  OpenVINO 2026.4 lacks RMSNormalization and Attention of ``portable``.
PROFILES = ("compat", "portable")

#: Version of ONNX Runtime from which on it has plug-ins and says which node runs where.
NEEDED = "1.24"

#: Nodes that a message names before it counts the others.
NAMED = 3

#: What a product of floats is judged by: 1 + 2**-12 times 1.  fp32 has 23 bits behind the point;
#: fp16 and TF32 have 10 and bf16 has 7, and all three say 1.
FINE = np.float32(1 + 2**-12)

_registering = threading.Lock()


class Plugin(NamedTuple):
    """A registered plug-in.

    Attributes:
        name: As in ``plugin:NAME``.
        package: Its distribution, and which version.
        devices: What it offers here, `OrtEpDevice` each.
    """

    name: str
    package: str
    devices: tuple[Any, ...]

    def described(self) -> str:
        """Its devices for people, with the numbers they are asked for by."""
        return ", ".join(
            f"plugin:{self.name}:{index} {device_name(device)}"
            for index, device in enumerate(self.devices)
        )


class OrtPluginBackend(OrtCpuBackend):
    """Implements `mt3_runtime.backends.base.Backend` with a plug-in's device for the encoder."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        *,
        index: int = 0,
        threads: int | None = None,
        profile: str | None = None,
        arithmetic: str = "fp32",
    ) -> None:
        """Registers the plug-in, tries its arithmetic, and loads the graphs.

        Args:
            bundle: The model.
            name: Of the plug-in, such as ``openvino``.
            index: Which of its devices.
            threads: Worker threads; all usable cores by default.
            profile: Graph profile of the encoder; the first of `PROFILES` that the bundle has.
            arithmetic: What products are asked for in; all but fp32 changes tokens.

        Raises:
            BundleError: A graph is missing or damaged.
            DeviceError: The plug-in is not here, has no such device, or grants less than is asked.
            MissingDependencyError: ONNX Runtime is not installed.
            OptionError: ``threads`` is no number from 1 to 1024.
        """
        self._plugin = registered(name)
        if index >= len(self._plugin.devices):
            raise DeviceError(
                f"device plugin:{name}:{index} was asked for; {self._plugin.package} offers "
                f"{self._plugin.described()}."
            )
        self._device, self._arithmetic = self._plugin.devices[index], arithmetic
        self._label = f"plugin:{name}:{index}"
        self._asked = profile
        super().__init__(bundle, threads=threads)

    def _choose(self, bundle: Bundle, profile: str) -> tuple[GraphFile, GraphFile]:
        usable = [known for known in PROFILES if known in bundle.profiles]
        chosen = self._asked or next(iter(usable), PROFILES[0])
        return bundle.graph("encoder", chosen), bundle.graph("decoder", profile)

    def _describe(self, version: str) -> str:
        return (
            f"{self._label} ({device_name(self._device)}, {self._plugin.package}, ONNX Runtime "
            f"{version}, encoder of profile {self.encoder_file.profile} in {self._arithmetic}, "
            f"decoder on the CPU, threads: {self.workers})"
        )

    def _load(self, graph: GraphFile, threads: int) -> Any:
        if graph.role == "decoder":
            return load_graph(self._bundle, graph, threads)
        options = options_of(self._plugin.name, self._device, self._arithmetic)(
            self.workers, threads
        )
        self._check_arithmetic(options)
        source = self._bundle.verified(graph)
        session = self._open(source, options, f"cannot run {graph.file} of {self._bundle.path}")
        self._refuse_strays(graph.file, session)
        check_ports(self._bundle, graph, session)
        self._bundle.check_unchanged(graph)
        return session

    def _open(self, source: str | bytes, options: Mapping[str, str], failure: str) -> Any:
        entries = {**ENTRIES, "session.record_ep_graph_assignment_info": "1"}
        try:
            return open_session(
                import_onnxruntime(),
                source,
                entries=entries,
                plugin=([self._device], options),
            )
        # ONNX Runtime's exceptions share no base below Exception.
        except Exception as error:
            raise DeviceError(
                f"device {self._label} {failure}: {one_line(error)}. Device cpu works without."
            ) from error

    def _refuse_strays(self, graph: str, session: Any) -> None:
        """Raises if a node was given to another provider than was asked for."""
        wanted = self._device.ep_name
        strays = [
            f"{node.name} ({node.op_type}) on {part.ep_name}"
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != wanted
            for node in part.get_nodes()
        ]
        if strays:
            more = f" and {len(strays) - NAMED} more" if len(strays) > NAMED else ""
            raise DeviceError(
                f"{graph} would not run on device {self._label} as a whole: "
                f"{', '.join(strays[:NAMED])}{more}. {self._plugin.package} does not take such "
                f"nodes; use a bundle with graphs of profile {PROFILES[0]}, or device cpu."
            )

    def _check_arithmetic(self, options: Mapping[str, str]) -> None:
        """Multiplies floats of many bits, and refuses what comes out in other bits than asked.

        Small and large products have kernels of their own.
        """
        session = self._open(float_product_model(), options, "cannot multiply floats")
        for rows, inner in ((1, 64), (64, 512)):
            columns = np.zeros((inner, inner), np.float32)
            columns[0] = 1
            fine = np.full((rows, inner), FINE, np.float32)
            (found,) = session.run(None, {"rows": fine, "columns": columns})
            exact = bool((found == FINE).all())
            if exact != (self._arithmetic == "fp32"):
                raise DeviceError(
                    f"device {self._label} was asked for products in {self._arithmetic}, and "
                    f"{self._plugin.package} computes them in {'all' if exact else 'fewer'} bits "
                    f"of fp32 (1 + 2**-12 times 1 is {found.flat[0]!r}). Use device cpu."
                )


def registered(name: str) -> Plugin:
    """Registers a plug-in's library with ONNX Runtime, once per process.

    Raises:
        DeviceError: The package is not installed, its library does not load or finds no device, or
            this ONNX Runtime has no plug-ins.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runtime, label = import_onnxruntime(), f"device plugin:{name}"
    if not hasattr(runtime, "register_execution_provider_library"):
        raise DeviceError(
            f"{label} needs ONNX Runtime {NEEDED} or newer, and {runtime.__version__} is "
            f"installed; run: {pip({'onnxruntime': 'onnxruntime'}, '--upgrade')}."
        )
    package, module = f"onnxruntime-ep-{name}", _module(name)
    version = wheels.version(package) or "of unknown version"
    try:
        names = module.get_ep_names() if hasattr(module, "get_ep_names") else []
        names = names or [module.get_ep_name()]
        with _registering:
            if not _devices(runtime, names):
                runtime.register_execution_provider_library(names[0], module.get_library_path())
            found = _devices(runtime, names)
    # Others' code, and ONNX Runtime's exceptions, which share no base below Exception.
    except Exception as error:
        raise DeviceError(
            f"{label} was asked for, and {package} {version} does not work with ONNX Runtime "
            f"{runtime.__version__}: {one_line(error)}. Update both, or use device cpu."
        ) from error
    if not found:
        raise DeviceError(
            f"{label} was asked for, and {package} {version} finds no device of its own on this "
            "machine. Use device cpu."
        )
    return Plugin(name, f"{package} {version}", found)


def _module(name: str) -> Any:
    package = f"onnxruntime-ep-{name}"
    module = package.replace("-", "_")
    try:
        return import_module(module)
    except ImportError as error:
        raise DeviceError(
            f"device plugin:{name} was asked for, and its package cannot be imported "
            f"({one_line(error)}); run: {pip({module: package})}. Otherwise use device cpu."
        ) from error


def _devices(runtime: Any, names: list[str]) -> tuple[Any, ...]:
    return tuple(device for device in runtime.get_ep_devices() if device.ep_name in names)


def device_name(device: Any) -> str:
    """What a device is, for people."""
    kind = getattr(device.device.type, "name", str(device.device.type))
    return str(device.ep_metadata.get("FULL_DEVICE_NAME") or f"{device.device.vendor} {kind}")


def options_of(name: str, device: Any, arithmetic: str) -> Callable[[int, int], dict[str, str]]:
    """The options a provider is given, from the numbers of workers and of threads of a call."""
    if name != "openvino":
        return lambda _workers, _threads: {}
    kind = str(device.ep_metadata.get("ov_device") or "CPU")
    asked: dict[str, str] = {"INFERENCE_PRECISION_HINT": OPENVINO_TYPES[arithmetic]}

    def options(workers: int, threads: int) -> dict[str, str]:
        """A stream for each worker that calls at once, of so many threads each."""
        more = {
            "NUM_STREAMS": str(max(workers // threads, 1)),
            "INFERENCE_NUM_THREADS": str(workers),
            # Decoder steps of other workers run on the same cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        chosen = {**asked, **(more if kind == "CPU" else {})}
        return {"load_config": json.dumps({kind: chosen})}

    return options


#: OpenVINO's names of types.
OPENVINO_TYPES = {"fp32": "f32", "bf16": "bf16"}
