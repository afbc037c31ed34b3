"""The one place where sessions of ONNX Runtime are made, and where its errors become ours.

Left to itself, ONNX Runtime takes a model's bytes for another format if ``ORTM`` stands in them,
tries another provider when one fails, tells so on stdout, and raises types that share no base.  A
session from here reads ONNX and nothing else, runs where it was asked to or not at all, prints
nothing, and fails in one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mt3_runtime.errors import BundleError, MT3Error

CPU = "CPUExecutionProvider"

#: A file named ``x.ort``, or bytes that say so, would be read as another format, unscanned.
_FORMAT = ("session.load_model_format", "ONNX")

#: Fatal errors only: reasons reach us as exceptions.
_SEVERITY = 4


def open_session(
    runtime: Any,
    source: str | bytes,
    *,
    providers: Sequence[Any] = (CPU,),
    threads: int = 1,
    entries: Mapping[str, str] | None = None,
    memory_plan: bool = True,
    plugin: tuple[Sequence[Any], Mapping[str, str]] | None = None,
) -> Any:
    """Makes a session; raises whatever ONNX Runtime raises.

    Args:
        runtime: The module ``onnxruntime``.
        source: Path or bytes of a model.
        providers: Names, or pairs of name and options.
        threads: Threads of the host for one operator.
        entries: More of ONNX Runtime's session entries.
        memory_plan: Whether memory is planned for each new shape of the inputs, and kept as one
            block; without, tensors are allocated as they come.
        plugin: Devices of a plug-in provider, and its options, in place of ``providers``.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SEVERITY
    if not memory_plan:
        options.enable_mem_pattern = False
    for key, value in (_FORMAT, *(entries or {}).items()):
        options.add_session_config_entry(key, value)
    if plugin is not None:
        options.add_provider_for_devices(list(plugin[0]), dict(plugin[1]))
        return runtime.InferenceSession(source, options, enable_fallback=0)
    return runtime.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


@contextmanager
def reporting(what: str, advice: str) -> Iterator[None]:
    """Raises what ONNX Runtime raises as a `BundleError`.

    Args:
        what: What failed, as the beginning of a sentence.
        advice: What to do, as a sentence.
    """
    try:
        yield
    except MT3Error:
        raise
    except Exception as error:  # the binding raises a dozen types that share no base class
        raise BundleError(f"{what}: {one_line(error)}. {advice}") from error


def one_line(error: BaseException) -> str:
    """An error's text without line breaks and without the full stop at its end."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
