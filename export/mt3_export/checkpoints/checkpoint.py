r"""Reads checkpoints of every known layout into canonical weights.

`identify` looks at a path and names the layout and the variant without reading weights;
`read_checkpoint` returns canonical weights with a digest of the files they came from.  Layouts:

* ``t5x``: Magenta's folder with a MessagePack index (`t5x`).  512-wide sinusoids over 255.
* ``torch``: a ``torch.save`` file in the naming of the PyTorch ports (`torch_zip`), alone or as
  ``mt3.pth`` beside a ``config.json``.  Kernels are stored ``[out, in]``, the two input embeddings
  twice under alias names, and the position frequencies as buffers, which are taken as they are.
  MR-MT3's files add a memory, and do not say everything that must be known (`mr_mt3`).
  YourMT3's files have names of their own and store the position table (`yourmt3_names`).

The digest is the SHA-256 of a listing with one line ``<sha256 of the file>  <name>\n`` for each
file the weights were read from, sorted by name in code-point order; names are relative to the
checkpoint folder, with ``/``.  ``sha256sum`` on the files, sorted and piped into ``sha256sum``,
gives the same.  A ``config.json`` is compared, not read from, and does not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mt3_export.checkpoints.lookalikes import names_lookalike
from mt3_export.checkpoints.mr_mt3 import CONTEXTS, candidates
from mt3_export.checkpoints.recognition import describe_unknown
from mt3_export.checkpoints.stored_arrays import brief
from mt3_export.checkpoints.t5x import INDEX_NAME, find_t5x, open_t5x
from mt3_export.checkpoints.torch_names import (
    MR_MT3,
    PITCH_SHIFTED,
    PORT,
    canonical_tensors,
    family_of,
    position_table,
)
from mt3_export.checkpoints.torch_zip import TorchArchive
from mt3_export.checkpoints.yourmt3_names import stored_table, yourmt3_tensors
from mt3_export.weights import (
    PositionTable,
    StoredTensor,
    T5Shape,
    Weights,
    check_inventory,
    infer_shape,
)
from mt3_export.yourmt3 import infer_yourmt3
from mt3_runtime.errors import CheckpointError

Layout = Literal["t5x", "torch"]

YOURMT3 = (
    *("ymt3_plus", "yptf_single", "yptf_multi", "yptf_moe_multi"),
    *(f"{name}_ps" for name in PITCH_SHIFTED),
)

#: Variants whose weights can be read.
SUPPORTED = (
    *("magenta_mt3", "magenta_ismir2021", "mt3_pytorch"),
    *CONTEXTS.values(),
    *YOURMT3,
)

#: Vocabulary size tells Magenta's two models apart; their trees have the same names.
_MAGENTA = {1536: "magenta_mt3", 1664: "magenta_ismir2021"}

#: Of several torch files in a folder, the ports' own comes first.
_TORCH_NAME = "mt3.pth"
_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")
_CONFIG_NAME = "config.json"
_MAX_CONFIG_BYTES = 2**20
#: A training checkpoint of `MAX_PARAMETERS` in fp32, with two moments each, has 3 GiB.
_MAX_TORCH_BYTES = 2**32


@dataclass(frozen=True)
class CheckpointKind:
    """What a path holds.

    Attributes:
        layout: How it is stored.
        variant: Name of the model, supported or not; None if its tensors may be several and nothing
            tells which.
        path: The T5X folder or the torch file.
        others: Variants it is read as if asked to.
        reason: Why there are others, or none, where that may surprise.
    """

    layout: Layout
    variant: str | None
    path: Path
    others: tuple[str, ...] = ()
    reason: str = ""

    @property
    def names(self) -> str:
        """All it may be, for messages."""
        return " or ".join([*filter(None, [self.variant]), *self.others])


@dataclass(frozen=True)
class SourceFile:
    """A file the weights were read from: name in the checkpoint, bytes, SHA-256 in hex."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CheckpointContents:
    """Weights and where they came from.

    Attributes:
        weights: The complete network.
        variant: Name of the model.
        layout: How the checkpoint was stored.
        source_files: The files read, sorted by name.
        digest: SHA-256 in hex over `source_files`, as the module docstring defines it.
    """

    weights: Weights
    variant: str
    layout: Layout
    source_files: tuple[SourceFile, ...]
    digest: str


def identify(path: str | Path) -> CheckpointKind:
    """Tell the layout and the variant of a checkpoint, reading its index only.

    Args:
        path: A T5X folder (or one with a single ``checkpoint_<step>`` in it, or its index file), a
            torch file, or a folder with one of them or with an ``mt3.pth``.

    Raises:
        CheckpointError: Nothing is there, it cannot be read, or it is of no known family; the
            message says what it looks like.
    """
    path = Path(path)
    with _reading(path):
        kind, folder = _locate(path)
        if kind == "torch":
            with TorchArchive(folder) as archive:
                names = list(archive.state_dict())
            family = family_of(names)
            if family is None:
                raise CheckpointError(f"{folder} is a state dict of {describe_unknown(names)}")
            if family not in (PORT, MR_MT3):
                return CheckpointKind("torch", family, folder)
            found = candidates(folder, memory=family == MR_MT3)
            return CheckpointKind("torch", found.variant, folder, found.others, found.reason)
        tensors = open_t5x(folder).tensors
        magentas = " and ".join(_MAGENTA.values())
        shape = _complete(tensors, f"{folder} is a T5X checkpoint, but none of {magentas}")
        if shape.vocab_size not in _MAGENTA:
            raise CheckpointError(
                f"{folder} is a T5X checkpoint in MT3's form with {shape.vocab_size} tokens; known "
                f"are {', '.join(f'{name} ({size})' for size, name in _MAGENTA.items())}"
            )
        return CheckpointKind("t5x", _MAGENTA[shape.vocab_size], folder)


def read_checkpoint(path: str | Path, variant: str | None = None) -> CheckpointContents:
    """Read the weights of a checkpoint.

    Args:
        path: As for `identify`.
        variant: Refuse everything but this variant; None takes what is there.

    Raises:
        CheckpointError: As `identify`; or the variant is another one, is not certain and was not
            given, or cannot be read yet; or a tensor is missing, damaged, misshapen or not finite.
    """
    kind = identify(path)
    chosen = _choose(kind, variant)
    if chosen not in SUPPORTED:
        raise CheckpointError(
            f"{kind.path} is {chosen}, whose weights cannot be read yet; supported are "
            f"{', '.join(SUPPORTED)}"
        )
    with _reading(kind.path):
        if kind.layout == "t5x":
            weights, files = _read_t5x(kind.path)
        else:
            weights, files = _read_torch(kind.path, chosen)
        sources = tuple(_source(name, files[name]) for name in sorted(files))
    listing = "".join(f"{source.sha256}  {source.name}\n" for source in sources)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    return CheckpointContents(weights, chosen, kind.layout, sources, digest)


def _choose(kind: CheckpointKind, asked: str | None) -> str:
    """The variant to read a checkpoint as; refuses to guess."""
    if asked is None and kind.variant is None:
        raise CheckpointError(
            f"{kind.path} may be {kind.names}: {kind.reason}. Say which one it is with --variant"
        )
    if asked is not None and asked not in (kind.variant, *kind.others):
        reason = f" ({kind.reason})" if kind.reason else ""
        raise CheckpointError(
            f"{kind.path} is {kind.variant or kind.names} ({kind.layout} layout), not "
            f"{asked}{reason}; leave the variant out, or name another checkpoint"
        )
    return asked or str(kind.variant)


def _locate(path: Path) -> tuple[Layout, Path]:
    """Decide by file names what to open."""
    if path.is_file():
        if path.name == INDEX_NAME:
            return "t5x", path.parent
        return "torch", _sane(path)
    if not path.is_dir():
        what = "is neither a file nor a folder" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {what}; expected a T5X folder or a .pth file")
    folder = find_t5x(path)
    if folder is not None:
        return "t5x", folder
    names = sorted(entry.name for entry in path.iterdir())
    found = [name for name in names if name.endswith(_TORCH_SUFFIXES) and (path / name).is_file()]
    if _TORCH_NAME in found or len(found) == 1:
        return "torch", _sane(path / (_TORCH_NAME if _TORCH_NAME in found else found[0]))
    if found:
        several = ", ".join(map(brief, found[:8]))
        raise CheckpointError(f"{path} holds several checkpoints ({several}); name one of them")
    if lookalike := names_lookalike(names):
        raise CheckpointError(f"{path} is {lookalike}")
    raise CheckpointError(
        f"{path} holds no checkpoint: expected a file {INDEX_NAME!r} (T5X) or one that ends in "
        f"{', '.join(_TORCH_SUFFIXES)} (PyTorch), found "
        f"{', '.join(map(brief, names[:4])) or 'nothing'}"
        + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    )


def _sane(file: Path) -> Path:
    """Refuse a file whose size alone shows that it is no checkpoint; it may be sparse."""
    size = file.stat().st_size
    if size > _MAX_TORCH_BYTES:
        raise CheckpointError(
            f"{file} has {size:,} bytes; the largest checkpoint of the family has 758,957,292"
        )
    return file


def _read_t5x(folder: Path) -> tuple[Weights, dict[str, Path]]:
    checkpoint = open_t5x(folder)
    shape = _complete(checkpoint.tensors, f"{folder} changed while it was read")
    base = folder.resolve()
    files = {file.relative_to(base).as_posix(): file for file in checkpoint.files}
    return _assemble(checkpoint.tensors, shape, PositionTable(255)), files


def _read_torch(file: Path, variant: str) -> tuple[Weights, dict[str, Path]]:
    with TorchArchive(file) as archive:
        stored = archive.state_dict()
        if variant in YOURMT3:
            tensors = yourmt3_tensors(stored)
            otherwise = f"{file} is named like {variant}, but is not complete"
            shape: T5Shape = _complete(tensors, otherwise, infer_yourmt3)
            positions = stored_table(stored, shape.d_model)
        else:
            tensors = canonical_tensors(stored)
            if variant == CONTEXTS[0]:  # the file has the weights of a memory of no rows
                tensors = {n: t for n, t in tensors.items() if not n.startswith("memory_encoder.")}
            shape = _complete(tensors, f"{file} is named like MT3, but is not complete")
            positions = position_table(stored, shape.d_model)
            _check_config(file.parent / _CONFIG_NAME, shape)
        weights = _assemble(tensors, shape, positions)
    return weights, {file.name: file}


def _assemble(
    tensors: Mapping[str, StoredTensor], shape: T5Shape, positions: PositionTable
) -> Weights:
    return Weights(shape, {name: tensor.read() for name, tensor in tensors.items()}, positions)


def _complete(
    tensors: Mapping[str, StoredTensor],
    otherwise: str,
    infer: Callable[[Mapping[str, StoredTensor]], T5Shape] = infer_shape,
) -> T5Shape:
    """The sizes of a network whose names and shapes are complete."""
    try:
        shape = infer(tensors)
        check_inventory(tensors, shape)
    except CheckpointError as error:
        raise CheckpointError(f"{otherwise}: {error}") from error
    return shape


def _check_config(path: Path, shape: T5Shape) -> None:
    """Compare the port's ``config.json``, where there is one, with the tensors beside it."""
    if not path.is_file():
        return
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path} has over {_MAX_CONFIG_BYTES:,} bytes; not a model config")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error!s:.120})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no model config: expected a JSON object")
    expected = {
        "d_model": shape.d_model,
        "d_kv": shape.head_dim,
        "d_ff": shape.d_ff,
        "num_layers": shape.encoder_layers,
        "num_decoder_layers": shape.decoder_layers,
        "num_heads": shape.heads,
        "vocab_size": shape.vocab_size,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }
    for key, value in expected.items():
        if key in config and config[key] != value:
            raise CheckpointError(
                f"{path} says {key} is {brief(config[key])}, the tensors beside it make it "
                f"{value!r}; the two files do not belong together"
            )


def _source(name: str, path: Path) -> SourceFile:
    with path.open("rb") as file:
        return SourceFile(
            name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report what the operating system refuses as an error of the checkpoint."""
    try:
        yield
    except MemoryError as error:
        raise CheckpointError(
            f"{path} needs more memory than there is; the largest supported model needs 1 GiB"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
