"""Identifies checkpoints of MT3's PyTorch family where their tensors alone do not.

The authors of MR-MT3 publish their models under the same names of tensors, and Magenta's beside
them.  Two facts decide how they are to be run, and neither is stored:

* M, the rows of memory, is an argument of their program.  A model of M = 0 holds the weights that
  make a memory as well; they have no effect.  The files are named after it, as in
  ``exp_segmemV2_prev_context=32.ckpt``.
* Whatever they trained, with memory or without, reads log-mel scaled to 0..1.  kunato's ``mt3.pth``
  does not, and has the same tensors as a model of theirs without the memory's.  It is published a
  second time as the ``mt3.pth`` of MR-MT3, which many take for the model with memory; but it is
  Magenta's, byte by byte.  Its SHA-256 tells it under any name.

`candidates` says what a file may be, and what its name or its digest makes of that.  Nobody here
guesses further: the caller asks its user.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from mt3_export.checkpoints.torch_names import PORT
from mt3_runtime.models.catalogue import get_model_info

#: Variants with the tensors of a memory, by M.
CONTEXTS = {memory: f"mr_mt3_context{memory}" for memory in (0, 32, 64)}

_CONTEXT = re.compile(r"context(?:=|%3D)(\d+)(?!\d)")


@dataclass(frozen=True)
class Candidates:
    """What a file may be.

    Attributes:
        variant: What it is unless its user says otherwise; None if only the user can know.
        others: The other variants it may be read as.
        reason: For messages: a clause on what made the difference.
    """

    variant: str | None
    others: tuple[str, ...]
    reason: str


def candidates(file: Path, *, memory: bool) -> Candidates:
    """Tell what a file with the tensors of a PyTorch port may be.

    Args:
        file: The file.
        memory: Whether it holds the weights that make a memory.
    """
    choices: tuple[str, ...]
    fallback = None
    if memory:
        choices, reason = tuple(CONTEXTS.values()), "the length of its memory is not stored in it"
    elif _is_magentas(file):
        choices, fallback = (PORT,), PORT
        reason = (
            "its SHA-256 is that of Magenta's weights as kunato converted them, published a second "
            "time as MR-MT3's mt3.pth; they have no memory"
        )
    else:
        choices, fallback = (PORT, CONTEXTS[0]), PORT if file.suffix == ".pth" else None
        reason = "it has no memory, and whether its input is to be scaled is not stored in it"
    named = context_of(file)
    variant = named if named in choices else fallback
    return Candidates(variant, tuple(name for name in choices if name != variant), reason)


def context_of(file: Path) -> str | None:
    """The variant that a file's name speaks of."""
    found = _CONTEXT.search(file.name)
    return CONTEXTS.get(int(found[1])) if found else None


def _is_magentas(file: Path) -> bool:
    """Whether a file is the published ``mt3.pth``; only one of its size is read for that."""
    published = get_model_info(PORT).files[0]
    if file.stat().st_size != published.size:
        return False
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == published.sha256
