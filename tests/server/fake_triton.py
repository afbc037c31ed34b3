"""A stand-in for Triton's module ``triton_python_backend_utils``, and for its requests."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Tensor:
    """A tensor that crosses by DLPack alone, like Triton's with NumPy 2."""

    def __init__(self, name: str, array: Any) -> None:
        self.tensor_name, self._array = name, array

    @classmethod
    def from_dlpack(cls, name: str, array: Any) -> Tensor:
        assert array.size, "DLPack tensor is not contiguous"
        return cls(name, np.from_dlpack(array).copy())

    def name(self) -> str:
        return self.tensor_name

    def as_numpy(self) -> Any:
        raise AssertionError("as_numpy gives zeros with NumPy 2")

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def bytes(self) -> bytes:
        return bytes(self._array.tobytes())


class TritonError(Exception):
    INVALID_ARG, CANCELLED, UNAVAILABLE, INTERNAL = 3, 5, 4, 1

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name(): tensor.bytes() for tensor in output_tensors}
        self.error = error


class Sender:
    """Takes no two calls at once, as Triton's hang then."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.final = threading.Event()
        self.gone = False
        self._busy = threading.Lock()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        assert self._busy.acquire(blocking=False), "two calls at once"
        try:
            assert not self.final.is_set(), "sent behind the last response"
            if response is not None:
                self.sent.append(response)
        finally:
            self._busy.release()
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self.final.set()

    def is_cancelled(self) -> bool:
        assert self._busy.acquire(blocking=False), "two calls at once"
        assert not self.final.is_set(), "asked behind the last response"
        self._busy.release()
        return self.gone


class Request:
    def __init__(self, audio: bytes | None = None, options: bytes = b"", rows: int = 1) -> None:
        told = {"AUDIO": audio, "OPTIONS": options or None}
        self.tensors = {
            name: Tensor(name, np.frombuffer(data, np.uint8).copy().reshape(rows, -1))
            for name, data in told.items()
            if data is not None
        }
        self.sender, self.gone = Sender(), False

    def get_response_sender(self) -> Sender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.gone


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return request.tensors.get(name)
