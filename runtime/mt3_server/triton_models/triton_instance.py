"""An instance of a Triton model: the class that ``model.py`` hands to the Python backend.

Contract: the environment is tested before anything of it is used; then the bundle beside
``model.py`` is loaded, once for all requests of the instance, and
`mt3_server.triton_models.triton_service` answers them.  Only this module is imported before the
test: it must work where NumPy does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mt3_server.triton_models.tensors import check_environment


class TritonPythonModel:
    """What Triton makes of ``model.py``; the names of the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Tests the environment, loads the model, opens the engine.

        Raises:
            TritonEnvironmentError: The environment changes what tensors hold, or lacks something.
            MT3Error: The model or the device cannot be used.
        """
        import triton_python_backend_utils as pb  # noqa: PLC0415  only inside Triton

        check_environment(pb)
        from mt3_server.triton_models import triton_service  # noqa: PLC0415  needs NumPy 2

        config = json.loads(args["model_config"])
        said = {key: value["string_value"] for key, value in config["parameters"].items()}
        path = Path(args["model_repository"]) / args["model_version"] / said["bundle"]
        device = device_of(said["device"], args)
        self._model = triton_service.open_model(path, said, device)
        self._engine = triton_service.KeptEngine(self._model, int(said["readers"]))
        decoupled = config["model_transaction_policy"]["decoupled"]
        service = triton_service.Decoupled if decoupled else triton_service.Single
        self._service = service(pb, self._engine)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Takes requests; a decoupled model answers later."""
        return self._service.execute(requests)

    def finalize(self) -> None:
        """Lets what is under way fail, and frees the device."""
        self._service.close()
        self._engine.close()
        self._model.close()


def device_of(name: str, args: dict[str, str]) -> str:
    """The device of an instance: Triton says which GPU it is to use."""
    gpu = args.get("model_instance_kind", "") in ("GPU", "KIND_GPU")
    return f"{name}:{args['model_instance_device_id']}" if gpu and ":" not in name else name
