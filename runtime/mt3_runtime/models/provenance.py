"""Provenance of every variant: whose code and weights, and what proves parity.

The file is YAML because people maintain it.  A YAML parser is not worth a dependency of the runtime
for one packaged file, so this module reads the few forms that file uses and refuses all others; a
test compares the result with PyYAML's.
"""

from __future__ import annotations

import functools
import json
import re
from collections import deque
from dataclasses import dataclass, fields
from importlib import resources

Value = str | tuple[str, ...]

_ENTRY = re.compile(r"([a-z0-9_]+):")
_FIELD = re.compile(r"  ([a-z0-9_]+):(?: (\S.*))?")
_BLOCK_INDENT = "    "
#: Plain text that no YAML parser takes for syntax.
_PLAIN = re.compile(r"[A-Za-z0-9](?:(?!: |:$| #).)*")


@dataclass(frozen=True)
class Provenance:
    """One variant's origin.

    Attributes:
        repository: Where the original's code is published.
        commit: The state of it that was read.
        licence: Licence of that code, as stated there.
        implemented: Modules here that hold what is special to it; empty if it cannot be exported.
        framework: What the original runs on.
        verified_on: What was compared with the original, on which material.
        notes: What else one must know.
    """

    repository: str
    commit: str
    licence: str
    implemented: tuple[str, ...]
    framework: str
    verified_on: str
    notes: str


@functools.cache
def provenances() -> dict[str, Provenance]:
    """The origin of every variant, by the name `mt3 export --variant` takes."""
    text = resources.files("mt3_runtime").joinpath("provenance.yaml").read_text(encoding="utf-8")
    return {name: _provenance(name, entry) for name, entry in parse(text).items()}


def _provenance(name: str, entry: dict[str, Value]) -> Provenance:
    kinds = {
        field.name: tuple if field.name == "implemented" else str for field in fields(Provenance)
    }
    if entry.keys() != kinds.keys():
        raise ValueError(f"{name} has the keys {', '.join(entry)}; expected {', '.join(kinds)}")
    for key, kind in kinds.items():
        if type(entry[key]) is not kind:
            raise ValueError(f"{name}: {key} is {entry[key]!r}, expected a {kind.__name__}")
    return Provenance(**entry)  # type: ignore[arg-type]  # checked above


def parse(text: str) -> dict[str, dict[str, Value]]:
    """Reads two levels of mappings; the head of the file names the forms of values.

    Raises:
        ValueError: A line has no known form, or a key occurs twice; the message gives the line.
    """
    found: dict[str, dict[str, Value]] = {}
    entry: dict[str, Value] | None = None
    lines = deque(
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    )
    for number, line in lines:
        if line.endswith((" ", "\t")):
            raise ValueError(f"line {number} ends in a blank")
    while lines:
        number, line = lines.popleft()
        name, field = _ENTRY.fullmatch(line), _FIELD.fullmatch(line)
        if name and name[1] not in found:
            entry = found[name[1]] = {}
        elif field and entry is not None and field[1] not in entry:
            block = []
            while lines and lines[0][1].startswith(_BLOCK_INDENT):
                block.append(lines.popleft()[1].removeprefix(_BLOCK_INDENT))
            entry[field[1]] = _value(field[2], block, number)
        else:
            raise ValueError(
                f"line {number}, {line!r}, is neither a new entry nor a new key of one"
            )
    return found


def _value(inline: str | None, block: list[str], line: int) -> Value:
    """The value of a key: what follows it on its line, and the lines indented below it."""
    if inline == ">-" and block and not any(text.startswith(" ") for text in block):
        return " ".join(block)
    if inline is None and block and all(text.startswith("- ") for text in block):
        return tuple(_scalar(text.removeprefix("- "), line) for text in block)
    if inline == "[]" and not block:
        return ()
    if inline is None or block:
        raise ValueError(f"line {line}: expected text, a folded block or a list")
    return _scalar(inline, line)


def _scalar(text: str, line: int) -> str:
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise ValueError(f"line {line}: {text} is not a string on one line") from error
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"line {line}: {text!r} needs double quotes")
    return text
