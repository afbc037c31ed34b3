"""Spells one protobuf message in many ways, as hostile and as careless writers do.

A parser reads most of them as the same message: it cuts keys and numbers to their width, merges a
message that occurs twice, takes lists packed or not, and skips what it does not know.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field

VARINTS = {Field.TYPE_INT32, Field.TYPE_INT64, Field.TYPE_UINT64, Field.TYPE_ENUM, Field.TYPE_BOOL}
FLOATS = {Field.TYPE_FLOAT: (5, "<f"), Field.TYPE_DOUBLE: (1, "<d")}

#: Ways to spell a field that its writer would not choose.
ODD = (
    *("key with bit 32", "key with bit 34", "long key", "long length", "long number"),
    *("number with bit 32", "in two parts", "twice", "other encoding", "packed", "unknown before"),
    *("group before", "field 0 before", "large field before"),
)


def varint(value: int, *, longer: int = 0) -> bytes:
    """A number; with ``longer`` so many bytes more than it needs."""
    out = bytearray()
    value %= 1 << 70
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(longer):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def delimited(key: int, content: bytes, **longer: int) -> bytes:
    """A field with a length, under a whole key."""
    return varint(key) + varint(len(content), **longer) + content


def spelled(message: Any, chance: random.Random, oddity: str | None, share: float = 0.3) -> bytes:
    """A message's bytes, with one kind of oddity in some of its fields at every level."""
    parts = [
        _field(field, item, chance, oddity if chance.random() < share else None, (oddity, share))
        for field, value in message.ListFields()
        for item in (value if field.is_repeated else [value])
    ]
    if oddity == "packed":
        parts = [part for part in parts if part]
    return b"".join(parts)


def _field(
    field: Any, value: Any, chance: random.Random, odd: str | None, deeper: tuple[str | None, float]
) -> bytes:
    wire, content = _content(field, value, chance, deeper, odd)
    number = field.number
    if odd == "other encoding":
        return varint(number << 3 | 5) + b"\x01\x00\x00\x00"
    if odd == "packed" and field.is_repeated and wire != 2:
        return delimited(number << 3 | 2, content)
    if odd == "in two parts" and field.type == Field.TYPE_MESSAGE:
        two = [b"", content]
        chance.shuffle(two)
        return b"".join(delimited(number << 3 | 2, part) for part in two)
    if odd == "twice" and not field.is_repeated:
        return 2 * (_key(number, wire, None) + _sized(wire, content, None))
    before = {
        "unknown before": delimited(chance.choice([18, 99, 1000]) << 3 | 2, content[:20]),
        "group before": varint(50 << 3 | 3) + varint(50 << 3 | 4),
        "field 0 before": varint(2) + varint(1) + b"x",
        "large field before": delimited((1 << 29) - 1 << 3 | 2, b"x"),
    }
    return before.get(odd or "", b"") + _key(number, wire, odd) + _sized(wire, content, odd)


def _key(number: int, wire: int, odd: str | None) -> bytes:
    high = {"key with bit 32": 1 << 32, "key with bit 34": 1 << 34}.get(odd or "", 0)
    return varint(number << 3 | wire | high, longer=odd == "long key")


def _sized(wire: int, content: bytes, odd: str | None) -> bytes:
    return varint(len(content), longer=odd == "long length") + content if wire == 2 else content


def _content(
    field: Any, value: Any, chance: random.Random, deeper: tuple[str | None, float], odd: str | None
) -> tuple[int, bytes]:
    if field.type == Field.TYPE_MESSAGE:
        return 2, spelled(value, chance, *deeper)
    if field.type in VARINTS:
        high = 1 << 32 if odd == "number with bit 32" else 0
        return 0, varint(value % (1 << 64) | high, longer=odd == "long number")
    if field.type in FLOATS:
        wire, form = FLOATS[field.type]
        return wire, struct.pack(form, value)
    return 2, value.encode() if isinstance(value, str) else bytes(value)
