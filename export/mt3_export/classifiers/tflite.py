"""Reads TensorFlow Lite files: operators, tensors, quantisation, attached files.

A flatbuffer is a tree of offsets; each is checked against the file before it is followed, counts
are bounded, and nothing is executed.  Only what a network of one graph needs is read.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mt3_runtime.errors import CheckpointError

#: Bytes of a file: the largest network here has five million.
MAX_BYTES = 1 << 26
_MAX_COUNT = 1 << 20
_MAX_ATTACHED = 1 << 22
_TYPES = {0: "<f4", 2: "<i4", 4: "<i8", 9: "i1"}
#: Numbers of operators, from the format's schema.
OPERATORS = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 9: "FULLY_CONNECTED", 14: "LOGISTIC"}
OPERATORS |= {6: "DEQUANTIZE", 40: "MEAN", 114: "QUANTIZE", 18: "MUL", 73: "LOG"}


@dataclass(frozen=True, eq=False)
class TfliteTensor:
    """A tensor of the graph.

    Attributes:
        name: As it was called in training.
        shape: Length of each axis.
        data: The constant; None for what is computed.
        scales: Of quantised numbers, one or one a channel; empty where there are none.
        zero_points: The numbers that stand for 0.
    """

    name: str
    shape: tuple[int, ...]
    data: npt.NDArray[Any] | None
    scales: npt.NDArray[np.float32]
    zero_points: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TfliteOperator:
    """A node.

    Attributes:
        kind: Of `OPERATORS`, or its number in the schema.
        inputs: Indices of tensors; -1 for one that is left out.
        outputs: Indices of tensors.
        options: Of convolutions: padding (0 same, 1 valid), stride over time and frequency,
            activation (0 none, 3 ReLU6).
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, int]


@dataclass(frozen=True)
class TfliteModel:
    """Tensors and operators of the only graph, in order, and attached texts by name."""

    tensors: tuple[TfliteTensor, ...]
    operators: tuple[TfliteOperator, ...]
    attached: dict[str, str]


def read_tflite(path: Path) -> TfliteModel:
    """Reads a file.

    Raises:
        CheckpointError: It is no TensorFlow Lite file, is damaged, or has several graphs.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; expected at most {MAX_BYTES:,}")
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise CheckpointError(f"{path} is no TensorFlow Lite file: its bytes 4 to 8 are not TFL3")
    try:
        return _model(_Table(data, _u32(data, 0)), _attached(data))
    except (struct.error, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!s:.120}") from error


def _u32(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<I", data, at)[0])


class _Table:
    """A table of a flatbuffer: fields by their number in the schema."""

    def __init__(self, data: bytes, at: int) -> None:
        if not 0 < at <= len(data) - 4:
            raise ValueError("an offset leads out of the file")
        self.data, self.at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        if not 0 <= self._fields <= len(data) - 4:
            raise ValueError("an offset leads out of the file")
        self._size = struct.unpack_from("<H", data, self._fields)[0]

    def place(self, number: int) -> int:
        """Where a field lies; 0 if it is left out."""
        slot = 4 + 2 * number
        if slot + 2 > self._size:
            return 0
        offset = struct.unpack_from("<H", self.data, self._fields + slot)[0]
        return self.at + offset if offset else 0

    def number(self, field: int, form: str = "<i", usual: int = 0) -> int:
        place = self.place(field)
        return struct.unpack_from(form, self.data, place)[0] if place else usual

    def table(self, field: int) -> _Table | None:
        place = self.place(field)
        return _Table(self.data, place + _u32(self.data, place)) if place else None

    def _vector(self, field: int) -> tuple[int, int]:
        """First byte and count."""
        place = self.place(field)
        if not place:
            return 0, 0
        begin = place + _u32(self.data, place)
        return begin + 4, _u32(self.data, begin)

    def array(self, field: int, dtype: str) -> npt.NDArray[Any]:
        begin, count = self._vector(field)
        if begin + count * np.dtype(dtype).itemsize > len(self.data):
            raise ValueError("a vector leads out of the file")
        return np.frombuffer(self.data, dtype, count, begin) if count else np.zeros(0, dtype)

    def tables(self, field: int) -> list[_Table]:
        begin, count = self._vector(field)
        if count > _MAX_COUNT or begin + 4 * count > len(self.data):
            raise ValueError("a vector leads out of the file")
        places = [begin + 4 * i for i in range(count)]
        return [_Table(self.data, place + _u32(self.data, place)) for place in places]

    def text(self, field: int) -> str:
        return self.array(field, "u1").tobytes().decode()


def _model(root: _Table, attached: dict[str, str]) -> TfliteModel:
    graphs, buffers = root.tables(2), root.tables(4)
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs instead of one")
    kinds = []
    for code in root.tables(1):
        number = max(code.number(0, "<b"), code.number(3))
        kinds.append(OPERATORS.get(number, str(number)))
    tensors = tuple(_tensor(table, buffers) for table in graphs[0].tables(0))
    operators = tuple(_operator(table, kinds, len(tensors)) for table in graphs[0].tables(3))
    return TfliteModel(tensors, operators, attached)


def _tensor(table: _Table, buffers: list[_Table]) -> TfliteTensor:
    shape = tuple(int(n) for n in table.array(0, "<i4"))
    kind, buffer = table.number(1, "<b"), table.number(2, "<I")
    if buffer >= len(buffers) or any(n < 0 for n in shape):
        raise ValueError("a tensor refers to what is not there")
    raw, data = buffers[buffer].array(0, "u1"), None
    if len(raw) and kind in _TYPES:
        dtype = np.dtype(_TYPES[kind])
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"a tensor of shape {list(shape)} has {len(raw)} bytes")
        data = raw.view(dtype).reshape(shape)
    quantised = table.table(4)
    scales, zeros = np.zeros(0, np.float32), np.zeros(0, np.int64)
    if quantised is not None:
        scales, zeros = quantised.array(2, "<f4"), quantised.array(3, "<i8")
    return TfliteTensor(table.text(3), shape, data, scales, zeros)


def _operator(table: _Table, kinds: list[str], tensors: int) -> TfliteOperator:
    number = table.number(0, "<I")
    inputs, outputs = (tuple(int(i) for i in table.array(n, "<i4")) for n in (1, 2))
    if number >= len(kinds) or any(not -1 <= i < tensors for i in (*inputs, *outputs)):
        raise ValueError("an operator refers to what is not there")
    options = table.table(4)
    fields: dict[str, int] = {}
    if options is not None and kinds[number] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        depthwise = kinds[number] == "DEPTHWISE_CONV_2D"
        fields = {
            "padding": options.number(0, "<b"),
            "stride_width": options.number(1),
            "stride_height": options.number(2),
            "activation": options.number(4 if depthwise else 3, "<b"),
        }
    return TfliteOperator(kinds[number], inputs, outputs, fields)


def _attached(data: bytes) -> dict[str, str]:
    """Short texts in the zip archive behind the network, if there is one."""
    if b"PK\x05\x06" not in data[-(1 << 16) :]:
        return {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            small = [m for m in archive.infolist() if m.file_size <= _MAX_ATTACHED]
            return {member.filename: archive.read(member).decode() for member in small[:8]}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"the attached archive cannot be read ({error})") from error
