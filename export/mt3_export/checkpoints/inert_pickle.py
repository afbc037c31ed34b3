"""A pickle reader that cannot execute anything.

PyTorch files describe their tensors in a pickle, a small program that Python's own unpickler runs
with all of Python at its disposal.  This reader interprets the same instructions over plain data:
dicts, lists, tuples, numbers, strings, plus the few constructors the caller registers.  Every other
class or function in the stream becomes an `Inert` placeholder that remembers its name and ignores
its arguments and state.  Nothing is imported and nothing is called by name.

Python's unpickler is not merely unsafe by design, it also allocates what the stream declares (memo
slots, byte arrays).  Here opcodes are parsed by `pickletools.genops`, the memo is a dict, work is
proportional to the stream, and the length and the number of instructions are limited.  Nothing
recurses, so depth and cycles are harmless.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mt3_runtime.errors import CheckpointError

#: The largest pickles of the family (training checkpoints with optimiser state) stay under 1 MB
#: and 100,000 instructions.
MAX_PICKLE_BYTES = 4 * 2**20
MAX_INSTRUCTIONS = 250_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass(frozen=True, slots=True)
class Inert:
    """Stands for a class, function or object of the stream that is not plain data.

    Attributes:
        name: Dotted name as the stream gives it; never imported.
    """

    name: str


#: Makes a value from the argument tuple of a registered constructor.
Constructor = Callable[[tuple[Any, ...]], object]


def read_pickle(
    stream: bytes,
    constructors: Mapping[str, Constructor],
    *,
    persistent: Callable[[object], object],
) -> Any:
    """Interpret a pickle stream (protocol 2 to 5) as plain data.

    Args:
        stream: The pickle.
        constructors: What to do where the stream calls ``module.name``.
        persistent: Resolves a persistent id (PyTorch's reference to a storage).

    Returns:
        The object the stream builds.  Dict entries whose key is not a string are dropped: keys
        chosen to collide, or tuples nested too deep to hash, could stall or crash the reader.

    Raises:
        CheckpointError: The stream is damaged, too long, or uses an instruction that neither
            PyTorch nor Python's pickler (protocol 2 and later) writes.
    """
    if len(stream) > MAX_PICKLE_BYTES:
        raise CheckpointError(
            f"the pickle has {len(stream):,} bytes; expected at most {MAX_PICKLE_BYTES:,}"
        )
    machine = _Machine(constructors, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.pop()
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(
            f"the pickle is damaged ({type(error).__name__}: {error!s:.120})"
        ) from error


class _Machine:
    """The stack, the memo and one method per kind of instruction."""

    def __init__(
        self, constructors: Mapping[str, Constructor], persistent: Callable[[object], object]
    ) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.instructions = 0
        self.constructors = constructors
        self.persistent = persistent

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value was expected")
        return value

    def pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def step(self, name: str, argument: Any) -> None:
        self.instructions += 1
        if self.instructions > MAX_INSTRUCTIONS:
            raise CheckpointError(f"the pickle has over {MAX_INSTRUCTIONS:,} instructions")
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name in _TUPLES:
            values = [self.pop() for _ in range(_TUPLES[name])]
            self.stack.append(tuple(reversed(values)))
        elif name not in ("PROTO", "FRAME", "STOP"):
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise CheckpointError(
                    f"the pickle uses instruction {name}, which PyTorch does not write; refused"
                )
            if name == "GLOBAL":
                self.do_global(argument)
            else:
                method()

    def do_mark(self) -> None:
        self.stack.append(_MARK)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.pop_to_mark()

    def do_memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    def do_empty_dict(self) -> None:
        self.stack.append({})

    def do_empty_list(self) -> None:
        self.stack.append([])

    def do_empty_set(self) -> None:
        self.stack.append(Inert("builtins.set"))

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_frozenset(self) -> None:
        self.pop_to_mark()
        self.stack.append(Inert("builtins.frozenset"))

    def do_append(self) -> None:
        value = self.pop()
        self._extend([value])

    def do_appends(self) -> None:
        self._extend(self.pop_to_mark())

    def do_additems(self) -> None:
        self.pop_to_mark()  # the set itself is inert

    def do_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self._update([key, value])

    def do_setitems(self) -> None:
        self._update(self.pop_to_mark())

    def do_global(self, argument: str) -> None:
        self.stack.append(Inert(argument.replace(" ", ".", 1)))

    def do_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a global that is not named by strings")
        self.stack.append(Inert(f"{module}.{name}"))

    def do_reduce(self) -> None:
        arguments = self.pop()
        self._construct(self.pop(), arguments)

    def do_newobj(self) -> None:
        arguments = self.pop()
        self._construct(self.pop(), arguments)

    def do_newobj_ex(self) -> None:
        self.pop()  # keyword arguments
        self.do_newobj()

    def do_build(self) -> None:
        self.pop()  # the state; objects that carry one are inert, dicts keep their items only

    def do_binpersid(self) -> None:
        self.stack.append(self.persistent(self.pop()))

    def _construct(self, function: object, arguments: object) -> None:
        if not isinstance(function, Inert) or not isinstance(arguments, tuple):
            raise TypeError("a call of something that is not a global")
        constructor = self.constructors.get(function.name)
        self.stack.append(constructor(arguments) if constructor else function)

    def _extend(self, values: list[Any]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Inert):
            raise TypeError(f"items appended to a {type(target).__name__}")

    def _update(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if isinstance(key, str):
                    target[key] = value
        elif not isinstance(target, Inert):
            raise TypeError(f"entries set in a {type(target).__name__}")
