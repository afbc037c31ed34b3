"""A small, explicit ONNX graph writer.

The graphs of this project are written node by node from canonical weights instead of being traced
from a framework: the result has a fifth of the nodes, keeps parameter names, and can use exactly
the operators a profile allows.  This module holds what any such graph needs (names, constants,
parameters in their storage precision, inputs, outputs, metadata); it knows nothing about MT3.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Storage = Literal["fp32", "fp16"]
Dim = int | str

MICROSOFT = "com.microsoft"

LARGEST_HALF = 65504.0
"""The largest finite fp16 number."""

#: The IR version that goes with each opset in use, passed explicitly because the onnx package would
#: otherwise write its own newest one, which older parsers (TensorRT 10.3, onnxruntime-web) refuse.
IR_VERSIONS = {17: 8, 18: 8, 24: 11}


class Graph:
    """Collects nodes, constants and the signature of one ONNX graph.

    Args:
        name: Graph name, kept in the file.
        opset: Version of the standard operator set; a key of `IR_VERSIONS`.
        storage: Precision in which `parameter` stores matrices.  ``fp16`` halves the file; the
            graph casts them back, so all arithmetic stays fp32.
    """

    def __init__(self, name: str, *, opset: int, storage: Storage = "fp32") -> None:
        self.name = name
        self.opset = opset
        self.storage = storage
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._parameters: dict[str, str] = {}
        self._counter = 0

    def fresh(self, stem: str) -> str:
        """Returns a tensor name that is not in use yet."""
        self._counter += 1
        return f"{stem}_{self._counter}"

    def input(self, name: str, dtype: int, shape: list[Dim]) -> str:
        """Declares a graph input and returns its name."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: int, shape: list[Dim]) -> str:
        """Declares a graph output; a node must produce a tensor of this name."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value: object, dtype: npt.DTypeLike) -> str:
        """Returns the name of a small constant; equal constants are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self.fresh("const")
            self._initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    def parameter(self, name: str, value: npt.NDArray[np.float32], *, exact: bool = False) -> str:
        """Stores a weight under its own name and returns the name of its fp32 value.

        Only matrices follow `storage`; vectors (norm scales) are 0.05 % of the bytes and stay fp32,
        as does what is marked ``exact``, and what holds numbers beyond fp16.
        """
        if name not in self._parameters:
            half = self.storage == "fp16" and value.ndim >= 2 and not exact
            half = half and bool(np.abs(value).max(initial=0.0) <= LARGEST_HALF)
            stored = np.ascontiguousarray(value, np.float16 if half else np.float32)
            self._initializers.append(numpy_helper.from_array(stored, name))
            self._parameters[name] = self.op("Cast", name, to=TensorProto.FLOAT) if half else name
        return self._parameters[name]

    def op(
        self, kind: str, *inputs: str, domain: str = "", out: str = "", **attributes: Any
    ) -> str:
        """Adds a node with one output and returns that output's name."""
        return self.ops(kind, *inputs, domain=domain, outs=[out or self.fresh(kind)], **attributes)[
            0
        ]

    def ops(
        self, kind: str, *inputs: str, outs: list[str], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Adds a node with the given output names (an empty name: output not wanted)."""
        node = helper.make_node(
            kind, list(inputs), outs, name=self.fresh(f"node_{kind}"), domain=domain, **attributes
        )
        self._nodes.append(node)
        return outs

    def build(self, metadata: dict[str, str]) -> onnx.ModelProto:
        """Returns the checked model with ``metadata`` in its ``metadata_props``."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers
        )
        domains = {node.domain for node in self._nodes} - {""}
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(d, 1) for d in domains),
        ]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="mt3_export",
        )
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
