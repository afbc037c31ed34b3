"""Writes a model repository for NVIDIA Triton: two models of the Python backend, with the bundle.

Contract: the folder is made whole or not at all, and nothing that exists is replaced.  Each model
has its own copy of the bundle, as Triton fetches a model's folder alone from an object store.

``mt3``         one response a request, over HTTP and gRPC; Triton hands over as many as wait
``mt3_stream``  decoupled, over gRPC streams: requests whenever they come, notes as they begin and
end
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mt3_runtime.bundles.bundle import MANIFEST, Bundle
from mt3_runtime.errors import OptionError, OutputError
from mt3_runtime.filesystem.atomic import exists
from mt3_runtime.filesystem.folders import folder_beside

MODELS = ("mt3", "mt3_stream")
"""Names of the models: answering once, and decoupled."""

BUNDLE = "bundle"
"""Folder of the bundle, beside ``model.py``."""

BATCH = 64
"""Requests that Triton hands over together: as many recordings as a batch has under way."""

_MODEL = '''"""A model of mt3-runtime for Triton's Python backend, written by `mt3 triton`."""

import sys

try:
    from mt3_server.triton_models.triton_instance import TritonPythonModel  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"{error}. This model needs mt3-runtime in {sys.executable} ({sys.version.split()[0]}), "
        'the python3 that Triton finds first on PATH: pip install "mt3-runtime[cpu]", or [gpu].'
    ) from error
'''

_CONFIG = """name: {name}
backend: "python"
max_batch_size: {batch}
model_transaction_policy {{ decoupled: {decoupled} }}
input [
  {{ name: "AUDIO" data_type: TYPE_UINT8 dims: [ -1 ] allow_ragged_batch: true }},
  {{ name: "OPTIONS" data_type: TYPE_UINT8 dims: [ -1 ] allow_ragged_batch: true optional: true }}
]
output [
  {{ name: "NOTES" data_type: TYPE_UINT8 dims: [ -1 ] }},
  {{ name: "SUMMARY" data_type: TYPE_UINT8 dims: [ -1 ] }}
]
dynamic_batching {{
  max_queue_delay_microseconds: 0
  default_queue_policy {{ max_queue_size: {queue} timeout_action: REJECT }}
}}
instance_group [ {{ count: {count} kind: {kind} }} ]
{parameters}
"""


@dataclass(frozen=True)
class Settings:
    """How the models run.

    Attributes:
        device: ``cpu``, or ``cuda``, ``tensorrt``, ``rtx``; Triton says which GPU. threads: Of the
        CPU, of each instance; None for all cores. instances: Processes of each model; on GPUs, of
        each GPU. readers: Processes of each instance that read uploads, under limits; with 0 the
        instance reads
            them itself, without.
        queue: Requests that may wait in Triton.
    """

    device: str = "cpu"
    threads: int | None = None
    instances: int = 1
    readers: int = 1
    queue: int = 256

    def __post_init__(self) -> None:
        """Refuses what no configuration can say.

        Raises:
            OptionError: A number is out of range, or there is no such device.
        """
        if self.device not in ("cpu", "cuda", "tensorrt", "rtx"):
            raise OptionError(
                f"device is {self.device!r}; expected cpu, cuda, tensorrt or rtx: which GPU it is, "
                "Triton says."
            )
        for name, least in (("threads", 1), ("instances", 1), ("readers", 0), ("queue", 1)):
            value = getattr(self, name)
            optional = name == "threads" and value is None
            if not optional and (type(value) is not int or not least <= value <= 1024):
                raise OptionError(f"{name} is {value!r}; expected a number from {least} to 1024.")


def write_repository(model: Path, target: Path, settings: Settings) -> list[Path]:
    """Writes a model repository; returns the folders of its models.

    Args:
        model: A bundle, folder or file.
        target: A folder that is not there yet.
        settings: How the models run.

    Raises:
        BundleError: ``model`` is no bundle, or damaged.
        OutputError: ``target`` exists, or cannot be written.
    """
    if exists(target):
        raise OutputError(f"{target} exists; name a folder that does not, or remove it.")
    bundle = Bundle(model)
    with folder_beside(target) as folder:
        for name in MODELS:
            version = folder / name / "1"
            version.mkdir(parents=True)
            (version / "model.py").write_text(_MODEL, encoding="utf-8")
            _write_bundle(bundle, version / BUNDLE)
            text = config(name, bundle.manifest.export_id, settings)
            (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
        folder.rename(target)
    return [target / name for name in MODELS]


def config(name: str, export_id: str, settings: Settings) -> str:
    """The text of a model's ``config.pbtxt``."""
    parameters = {
        "bundle": BUNDLE,
        "export_id": export_id,
        "device": settings.device,
        "threads": str(settings.threads or 0),
        "readers": str(settings.readers),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "yes",
    }
    lines = [
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in parameters.items()
    ]
    return _CONFIG.format(
        name=json.dumps(name),
        batch=BATCH,
        decoupled=str(name == MODELS[1]).lower(),
        queue=settings.queue,
        count=settings.instances,
        kind="KIND_CPU" if settings.device == "cpu" else "KIND_GPU",
        parameters="\n".join(lines),
    )


def _write_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes the files of a bundle, as they were verified, and nothing else that lies there."""
    folder.mkdir()
    (folder / MANIFEST).write_bytes(bundle.read_manifest())
    for graph in bundle.manifest.graphs:
        (folder / graph.file).write_bytes(bundle.data(graph))
