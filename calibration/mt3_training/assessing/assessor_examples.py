"""Examples of assessing networks: a folder of frames, notes and labels, its splits and batches.

::

    examples.json    names of the dimensions; of each recording piece, condition and labels
    NAME.npz         frames float32 [t, A] of a clip, notes float64 [n, 4], nuisances float64 [6]

Contract: what is in a folder is made by `write_examples`, and read whole.  A piece is in one part:
its name alone decides which, so that equal names can never stand on both sides.  Batches follow
from the seed and their number.  This module does not import torch.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.artefact_probe import NUISANCES
from mt3_analysis.assessment_networks.octuple_tokens import (
    check_notes,
    in_order,
    note_spans,
    octuple_tokens,
)
from mt3_runtime.bundles.assessor_networks import AssessorNetwork
from mt3_runtime.errors import BundleError, OptionError
from mt3_runtime.filesystem.atomic import make_folder, write_atomic
from mt3_runtime.schema import Between, document_bytes, read_document, read_fields

FORMAT, VERSION = "mt3-training.assessment-examples", 1
INDEX = "examples.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_MOST_BYTES = 1 << 28
#: One piece in five is judged, none of it is taught.
JUDGED_SHARE = 5

Floats = npt.NDArray[np.float32]
Label = Annotated[float, Between(0.0, 100.0)]


@dataclass(frozen=True)
class Entry:
    """What the index says of a recording.

    Attributes:
        name: Of its file, without the ending.
        piece: Composer, work and movement: all versions of one are in one part.
        condition: What it was made under, such as the kind and level of a degradation.
        labels: From 0 to 100, one a dimension.
    """

    name: str
    piece: str
    condition: str
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Index:
    """The content of ``examples.json``.

    Attributes:
        dimensions: Names of the labels.
        frame_seconds: From one frame to the next.
        recordings: In order.
    """

    dimensions: tuple[str, ...]
    frame_seconds: Annotated[float, Between(1e-4, 10.0)]
    recordings: tuple[Entry, ...]


@dataclass(frozen=True, eq=False)
class Example:
    """A recording with what networks read of it.

    Attributes:
        entry: Piece, condition, labels.
        frames: float32 [t, A].
        notes: float64 [n, 4].
        nuisances: float64 [6], as `mt3_analysis.assessment_networks.artefact_probe.NUISANCES`.
    """

    entry: Entry
    frames: Floats
    notes: npt.NDArray[np.float64]
    nuisances: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Examples:
    """A folder that was read.

    Attributes:
        dimensions: Names of the labels.
        frame_seconds: From one frame to the next.
        items: The recordings.
    """

    dimensions: tuple[str, ...]
    frame_seconds: float
    items: tuple[Example, ...]

    def part(self, *, judged: bool) -> Examples:
        """The recordings that are judged, or those that are taught."""
        kept = tuple(item for item in self.items if is_judged(item.entry.piece) == judged)
        return Examples(self.dimensions, self.frame_seconds, kept)

    @property
    def labels(self) -> npt.NDArray[np.float64]:
        """[n, k]."""
        return np.array([item.entry.labels for item in self.items], np.float64)


@dataclass(frozen=True, eq=False)
class AssessmentBatch:
    """Recordings of one step, filled up to the longest.

    Attributes:
        frames: float32 [rows, t, A].
        frame_mask: bool [rows, t].
        tokens: int64 [rows, n, 8].
        spans: int64 [rows, n, 2].
        note_mask: bool [rows, n].
        labels: float32 [rows, k].
    """

    frames: Floats
    frame_mask: npt.NDArray[np.bool_]
    tokens: npt.NDArray[np.int64]
    spans: npt.NDArray[np.int64]
    note_mask: npt.NDArray[np.bool_]
    labels: Floats


def is_judged(piece: str) -> bool:
    """Whether a piece is in the part that is judged, by its name alone."""
    return hashlib.sha256(piece.encode()).digest()[0] % JUDGED_SHARE == 0


def write_examples(
    folder: Path,
    dimensions: Sequence[str],
    items: Iterable[Example],
    *,
    frame_seconds: float,
) -> int:
    """Writes a folder of examples; gives how many there are.

    Raises:
        OptionError: A name is no plain one or is there twice, labels are not from 0 to 100 or of
            another number, there are no frames or notes, or the folder holds something else.
        OutputError: It cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / INDEX).is_file():
        raise OptionError(f"{folder} holds something else; name a new folder for the examples.")
    make_folder(folder)
    entries: list[Entry] = []
    for item in items:
        entry = item.entry
        labels = entry.labels
        if not _NAME.fullmatch(entry.name) or any(known.name == entry.name for known in entries):
            raise OptionError(f"{entry.name!r:.80} is no name of its own for a recording.")
        if len(labels) != len(dimensions) or not all(0.0 <= label <= 100.0 for label in labels):
            raise OptionError(
                f"{entry.name}: labels are {labels}; expected {len(dimensions)} from 0 to 100."
            )
        if not len(item.frames) or not len(check_notes(item.notes)):
            raise OptionError(f"{entry.name} has no frames, or no notes.")
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            frames=np.asarray(item.frames, np.float32),
            notes=check_notes(item.notes),
            nuisances=np.asarray(item.nuisances, np.float64),
        )
        write_atomic(folder / f"{entry.name}.npz", buffer.getvalue())
        entries.append(entry)
    index = Index(tuple(dimensions), frame_seconds, tuple(entries))
    write_atomic(folder / INDEX, document_bytes(index, FORMAT, VERSION))
    return len(entries)


def read_examples(folder: Path) -> Examples:
    """Reads a folder.

    Raises:
        OptionError: It holds no examples, or they are damaged.
    """
    path = folder / INDEX
    try:
        body = read_document(
            path,
            FORMAT,
            VERSION,
            most=_MOST_BYTES,
            otherwise="is no index of assessment examples",
            remedy="Make the examples again.",
        )
        index = read_fields(Index, body, str(path))
    except BundleError as error:
        raise OptionError(str(error)) from error
    items = []
    for entry in index.recordings:
        if not _NAME.fullmatch(entry.name) or len(entry.labels) != len(index.dimensions):
            raise OptionError(f"{path}: {entry.name!r:.80} does not fit the index.")
        items.append(_read(folder, entry))
    if not items or len({item.frames.shape[1] for item in items}) != 1:
        raise OptionError(f"{folder} holds no examples, or frames of different widths.")
    return Examples(index.dimensions, index.frame_seconds, tuple(items))


def _read(folder: Path, entry: Entry) -> Example:
    path = folder / f"{entry.name}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            frames, notes, about = (arrays[name] for name in ("frames", "notes", "nuisances"))
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        raise OptionError(f"{path} cannot be read ({error!s:.120}); make it again.") from error
    if frames.ndim != 2 or not len(frames) or not np.isfinite(frames).all():
        raise OptionError(f"{path} holds no frames; make it again.")
    if about.shape != (len(NUISANCES),):
        raise OptionError(f"{path} has {about.size} numbers about the recording; make it again.")
    return Example(entry, frames.astype(np.float32), check_notes(notes), about)


def batches(
    examples: Examples, network: AssessorNetwork, *, rows: int, seed: int, first: int = 0
) -> Iterator[AssessmentBatch]:
    """Batches for ever, from number ``first`` on: each epoch in another order.

    A last batch of fewer rows is left out, unless there are fewer recordings than rows.
    """
    count = len(examples.items)
    size = min(rows, count)
    each = count // size
    number = first
    while True:
        epoch, place = divmod(number, each)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        chosen = order[place * size : (place + 1) * size]
        yield collate([examples.items[i] for i in chosen], network, examples.frame_seconds)
        number += 1


def collate(
    items: Sequence[Example], network: AssessorNetwork, frame_seconds: float
) -> AssessmentBatch:
    """Fills recordings up to the longest."""
    most = max(network.max_notes, 1)
    tokens = [octuple_tokens(item.notes, most=most) for item in items]
    t, n = max(len(item.frames) for item in items), max(map(len, tokens))
    width = items[0].frames.shape[1]
    found = AssessmentBatch(
        np.zeros((len(items), t, width), np.float32),
        np.zeros((len(items), t), np.bool_),
        np.zeros((len(items), n, tokens[0].shape[1]), np.int64),
        np.tile(np.array([0, 1], np.int64), (len(items), n, 1)),
        np.zeros((len(items), n), np.bool_),
        np.array([item.entry.labels for item in items], np.float32),
    )
    for row, (item, token) in enumerate(zip(items, tokens, strict=True)):
        length, notes = len(item.frames), len(token)
        found.frames[row, :length] = item.frames
        found.frame_mask[row, :length] = True
        found.tokens[row, :notes] = token
        onsets = in_order(item.notes)[:notes, 0]
        found.spans[row, :notes] = note_spans(onsets, length, frame_seconds=frame_seconds)
        found.note_mask[row, :notes] = True
    return found
