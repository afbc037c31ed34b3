"""Prints the public names and their signatures.

    python scripts/public_api.py > docs/api.txt

`tests/test_public_api.py` compares, so that no change of the interface goes unnoticed.  The names
are those of the specification.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from enum import Enum

#: Module -> public names in it; None: what its `__all__` says.
PUBLIC: dict[str, tuple[str, ...] | None] = {
    "mt3_runtime": None,
    "mt3_runtime.audio.sources": ("AudioStream", "load_audio", "open_audio", "open_blocks"),
    "mt3_runtime.bundles.bundle": ("Bundle",),
    "mt3_runtime.engine": ("Engine", "Health", "LiveInput"),
    "mt3_runtime.extensions.service_routes": ("RouteRequest",),
    "mt3_runtime.files.formats": ("load_notes", "render"),
    "mt3_runtime.files.midi": ("from_midi", "to_midi"),
    "mt3_runtime.models.catalogue": ("ModelFile", "ModelInfo"),
    "mt3_runtime.notes.note_events": ("NoteOff", "NoteOn"),
    "mt3_runtime.reading": ("ReaderLimits",),
    "mt3_runtime.transcription": ("Handle",),
}
ERRORS = "mt3_runtime.errors"


def signature(item: object) -> str:
    """Arguments and result of a callable, with annotations as they are written."""
    found = inspect.signature(item)  # type: ignore[arg-type]
    arguments = ", ".join(
        map(str, found.replace(return_annotation=found.empty).parameters.values())
    )
    names = list(found.parameters.values())
    text, starred = [], False
    for one in names:
        if one.kind is one.KEYWORD_ONLY and not starred:
            starred = True
            if not any(other.kind is other.VAR_POSITIONAL for other in names):
                text.append("*")
        text.append(str(one))
    arguments = ", ".join(text).replace("'", "")
    result = found.return_annotation
    return f"({arguments})" + ("" if result is found.empty else f" -> {str(result).strip(chr(39))}")


def lines_of(path: str, item: object) -> Iterator[str]:
    """One line for a function; for a class one for itself, its fields, properties and methods."""
    if not inspect.isclass(item):
        yield f"{path}{signature(item)}"
        return
    bases = ", ".join(base.__name__ for base in item.__bases__ if base is not object)
    yield f"class {path}({bases})"
    if issubclass(item, BaseException | Enum):
        return
    fields = (
        {one.name for one in dataclasses.fields(item)} if dataclasses.is_dataclass(item) else ()
    )
    for name in fields and [one.name for one in dataclasses.fields(item)]:
        yield f"{path}.{name}: {item.__annotations__.get(name, '(inherited)')}"
    if not fields and "__init__" in vars(item):
        yield f"{path}.__init__{signature(item.__init__)}"
    for name, value in sorted(vars(item).items()):
        if name.startswith("_") or name in fields:
            continue
        if isinstance(value, property):
            kind = str(value.fget.__annotations__.get("return", ""))
            yield f"{path}.{name}: {kind.strip(chr(39))}"
        elif inspect.isfunction(value) or isinstance(value, classmethod | staticmethod):
            yield f"{path}.{name}{signature(getattr(item, name))}"


def public() -> dict[str, object]:
    """All public objects by dotted name."""
    found: dict[str, object] = {}
    for module, names in PUBLIC.items():
        held = importlib.import_module(module)
        for name in sorted(names or held.__all__):
            found[f"{module}.{name}"] = getattr(held, name)
    held = importlib.import_module(ERRORS)
    for name, item in vars(held).items():
        if inspect.isclass(item) and item.__module__ == ERRORS and not name.startswith("_"):
            found[f"{ERRORS}.{name}"] = item
    return found


def text() -> str:
    """The whole file."""
    return "".join(f"{line}\n" for path, item in public().items() for line in lines_of(path, item))


if __name__ == "__main__":
    sys.stdout.write(text())
