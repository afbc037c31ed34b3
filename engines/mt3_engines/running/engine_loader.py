"""Loads TensorRT engines from the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mt3_engines.building.builder import prepared_graph
from mt3_engines.optional import make_logger
from mt3_engines.running.contexts import Contexts
from mt3_engines.storage.kernels import kernels_path
from mt3_engines.storage.shapes import ShapePlan
from mt3_engines.storage.store import EngineInfo, EngineStore
from mt3_engines.versions import updates_in_place
from mt3_runtime.errors import BundleError

if TYPE_CHECKING:
    from mt3_engines.running.cuda import Cuda
    from mt3_engines.storage.keys import EngineTarget
    from mt3_engines.storage.requests import EngineSet
    from mt3_runtime.bundles.bundle import Bundle, Manifest


@dataclass(frozen=True)
class Engines:
    """Loaded engines, shared by all rows.

    Attributes:
        cuda: The GPU.
        manifest: The model's.
        chosen: What was loaded.
        encoder: Contexts of the engine.
        decoders: The same by capacity.
    """

    cuda: Cuda
    manifest: Manifest
    chosen: EngineSet
    encoder: Contexts
    decoders: dict[int, Contexts]

    @property
    def plan(self) -> ShapePlan:
        """Rows and capacities there are."""
        return self.chosen.plan

    @property
    def element(self) -> int:
        """Bytes per element of caches and cross keys and values."""
        return 2 if self.chosen.precision == "fp16" else 4

    @property
    def buffers(self) -> int:
        """How many buffers a cache takes."""
        key = self.chosen.encoder.key
        return 1 if updates_in_place(key.made_by.graph_version(key.tensorrt)) else 2


class Loader:
    """Deserialises engines; keeps what must live as long as they do."""

    def __init__(
        self, tensorrt: Any, bundle: Bundle, store: EngineStore, place: EngineTarget
    ) -> None:
        self._tensorrt, self._bundle, self._store = tensorrt, bundle, store
        self._place = place
        self._logger = make_logger(tensorrt)
        self._runtime = tensorrt.Runtime(self._logger)

    def load(self, info: EngineInfo, names: set[str]) -> Contexts:
        """Loads an engine, with the bundle's weights if it has none of its own.

        Args:
            info: Which.
            names: The inputs and outputs it must have.

        Raises:
            BundleError: The file was changed, TensorRT refuses it, or it is another graph's.
        """
        data = self._store.load(info)
        # Engines for several versions carry code of their own; ours were checked just now.
        self._runtime.engine_host_code_allowed = info.key.version_compatible
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(
                f"{self._place.program} refuses {info.path.name}; the log of `mt3_engines` says "
                "why. Remove it with `mt3 engines prune --all` and build it again."
            )
        if info.key.stripped:
            self._refit(engine, info)
        found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        if found != names:
            raise BundleError(
                f"{info.path.name} has other inputs and outputs than the bundle's graph: "
                f"{', '.join(sorted(found ^ names))}. Build it again."
            )
        kernels = kernels_path(info.path, self._place) if info.key.targets else None
        return Contexts(self._tensorrt, engine, kernels)

    def _refit(self, engine: Any, info: EngineInfo) -> None:
        """Gives a stripped engine the weights of the bundle."""
        graph = prepared_graph(self._bundle, info.key).SerializeToString()
        refitter = self._tensorrt.Refitter(engine, self._logger)
        parser = self._tensorrt.OnnxParserRefitter(refitter, self._logger)
        if not (parser.refit_from_bytes(graph) and refitter.refit_cuda_engine()):
            raise BundleError(
                f"{info.path.name} holds no weights, and those of {self._bundle.path} do not fit. "
                "Build it again, or without --strip."
            )
