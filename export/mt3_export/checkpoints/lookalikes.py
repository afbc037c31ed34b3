"""Recognises files that are taken for checkpoints, by their first bytes or names.

A refusal should say what the thing is and what to do with it.  Nothing here parses anything: magic
numbers of files, names in folders and in zip directories, a few hundred bytes at most.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

#: Bytes that tell: tar has its magic number furthest back, at 257.
HEAD_BYTES = 512

_OTHER_FRAMEWORK = "which none of the supported models is published as"
_BUNDLE = "a bundle, the result of an export: use it with `mt3 transcribe --model`"

#: First bytes -> what it is, and what to do.
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<", "an HTML or XML page, probably a failed download: fetch the file again"),
    (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        "a torch file in the format before PyTorch 1.6: load it and save it again with a newer one",
    ),
    (b"\x80", "a bare pickle, which is not read here: save a state dict with torch.save"),
    (b"\x93NUMPY", f"a NumPy array, {_OTHER_FRAMEWORK}"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes, {_OTHER_FRAMEWORK}"),
    (b"GGUF", f"a GGUF file, {_OTHER_FRAMEWORK}"),
    (b"\x08", "probably an ONNX graph; of a bundle, use the folder: `mt3 transcribe --model`"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"\xfd7zXZ", "an xz archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"RIFF", "a recording, not a checkpoint: transcribe it with `mt3 transcribe`"),
    (b"fLaC", "a recording, not a checkpoint: transcribe it with `mt3 transcribe`"),
    (b"OggS", "a recording, not a checkpoint: transcribe it with `mt3 transcribe`"),
    (b"ID3", "a recording, not a checkpoint: transcribe it with `mt3 transcribe`"),
    (b"MThd", "a MIDI file, not a checkpoint"),
    (b"{", "a JSON file: name the checkpoint beside it, or the folder"),
)

#: A name in a folder or a zip archive, or how one ends -> what it is.
_NAMES = (
    ("bundle.json", _BUNDLE),
    ("saved_model.pb", f"a TensorFlow SavedModel, {_OTHER_FRAMEWORK}"),
    (".index", f"a TensorFlow checkpoint, {_OTHER_FRAMEWORK}"),
    ("manifest.ocdbt", f"an Orbax checkpoint, {_OTHER_FRAMEWORK}"),
    (".safetensors", f"weights as safetensors, {_OTHER_FRAMEWORK}"),
    ("pytorch_model.bin", f"a Hugging Face model, {_OTHER_FRAMEWORK}"),
    (".npy", f"NumPy arrays, {_OTHER_FRAMEWORK}"),
    (".zarray", "one array of a T5X checkpoint: name the folder that holds the file 'checkpoint'"),
)


def file_lookalike(path: Path) -> str | None:
    """Says what a file is that is not a zip archive, or None."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if head[8:10] == b'{"':  # after the length of the header, eight bytes
        return f"weights as safetensors, {_OTHER_FRAMEWORK}"
    return None


def names_lookalike(names: Collection[str]) -> str | None:
    """Says what a folder or a zip archive with these names is, or None."""
    for known, what in _NAMES:
        if any(name == known or (known[0] == "." and name.endswith(known)) for name in names):
            return what
    return None
