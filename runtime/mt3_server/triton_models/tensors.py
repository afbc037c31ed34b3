"""Tensors of Triton's Python backend, in and out by DLPack alone, and the test that they arrive.

Contract: no array crosses the boundary in another way.  The backend is built for one NumPy: with
another ``Tensor.as_numpy()`` gives zeros and ``Tensor(name, array)`` gives nothing, without an
error (2.51 with NumPy 2).  DLPack has no such trap, but no strings either, so that text travels as
UTF-8 in tensors of uint8.

Nothing of ours is imported here: this must work, and say so, where nothing else does.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: The first release of NumPy whose FFT computes float32 as float32, which the features need.
_NUMPY = 2

#: Bytes of the test: all values, and more than a memory page.
_SIZE = 5_000


class TritonEnvironmentError(RuntimeError):
    """The Python in which Triton runs a model cannot be used: what it lacks, and where it is."""


def read_bytes(pb: Any, request: Any, name: str) -> bytes:
    """The bytes of an input; none if the request has no such input.

    Args:
        pb: Triton's module ``triton_python_backend_utils``.
        request: Of Triton.
        name: Of an input of uint8 [1, bytes], or [bytes].

    Raises:
        ValueError: It has another shape or type: one recording a request.
    """
    import numpy as np  # noqa: PLC0415  see `check_environment`

    tensor = pb.get_input_tensor_by_name(request, name)
    if tensor is None:
        return b""
    array = np.from_dlpack(tensor)
    if array.dtype != np.uint8 or array.size != array.shape[-1]:
        raise ValueError(
            f"{name} is {array.dtype} {list(array.shape)}; expected uint8 [1, bytes]: one "
            "recording a request."
        )
    return array.tobytes()


def as_tensor(pb: Any, name: str, data: bytes) -> Any:
    """An output of uint8 [1, bytes]."""
    return pb.Tensor.from_dlpack(name, _row(data))


def check_environment(pb: Any) -> None:
    """Sends known bytes through a tensor and back.

    Raises:
        TritonEnvironmentError: NumPy is too old, or they did not come back as they were.
    """
    try:
        import numpy as np  # noqa: PLC0415  its absence is what this is about
    except ImportError as error:
        raise _broken(f"NumPy cannot be imported ({error})") from error
    if int(np.__version__.partition(".")[0]) < _NUMPY:  # its DLPack ends the process
        raise _broken(f"NumPy is {np.__version__}, and mt3-runtime needs {_NUMPY} or later")
    sent = bytes(index % 251 for index in range(_SIZE))
    try:
        tensor = as_tensor(pb, "SELF_TEST", sent)
        received = np.from_dlpack(tensor).tobytes()
    except Exception as error:
        raise _broken(
            f"tensors do not cross by DLPack ({type(error).__name__}: {error})"
        ) from error
    if received != sent:
        wrong = sum(a != b for a, b in zip(received, sent, strict=False))
        raise _broken(
            f"DLPack changes tensors: of {_SIZE} bytes {len(received)} came back, {wrong} of them "
            f"wrong, with NumPy {np.__version__}"
        )


def _row(data: bytes) -> npt.NDArray[np.uint8]:
    import numpy as np  # noqa: PLC0415  see `check_environment`

    # A copy: DLPack does not hand out what cannot be written to.
    return np.frombuffer(data, np.uint8).copy()[np.newaxis]


def _broken(what: str) -> TritonEnvironmentError:
    return TritonEnvironmentError(
        f"The Python of this model is broken: {what}. It is {sys.executable} "
        f"({sys.version.partition(' ')[0]}), the python3 that Triton's PATH finds first; install "
        'mt3-runtime there: pip install "mt3-runtime[cpu]", or [gpu].'
    )
