"""Files and folders that are no checkpoint, but are taken for one: name -> (builder, refusal).

Builders take the path to make; those whose name ends in a slash make a folder.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.export.writers import write_zarr


def raw(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def holding(*names: str) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        path.mkdir()
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"content")

    return build


def numpy_objects(path: Path) -> None:
    """A NumPy file of Python objects is a pickle in disguise."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"weights": 1}], dtype=object), allow_pickle=True)
    path.write_bytes(buffer.getvalue())


def numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.ones(3))


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("mt3.pth"))


def bundle(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", "{}")


def safetensors(size: int) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return size.to_bytes(8, "little") + header + bytes(4)


LOOKALIKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (raw(pickle.dumps({"a": 1})), "bare pickle.*torch.save"),
    "array of objects": (numpy_objects, "a NumPy array"),
    "array archive": (numpy_archive, "NumPy arrays"),
    "safetensors": (raw(safetensors(70)), "safetensors"),
    "safetensors of any length": (raw(safetensors(2**63)), "safetensors"),
    "hdf5": (raw(b"\x89HDF\r\n\x1a\n" + bytes(600)), "HDF5"),
    "gguf": (raw(b"GGUF\x03" + bytes(600)), "GGUF"),
    "onnx": (raw(b"\x08\x08\x12\x0bmt3_export" + bytes(600)), "ONNX graph"),
    "gzip": (raw(gzip.compress(b"x")), "gzip archive: unpack"),
    "tar": (tar, "tar archive: unpack"),
    "bundle": (bundle, "a bundle, the result of an export"),
    "recording": (raw(b"RIFF\x24\x00\x00\x00WAVEfmt "), "mt3 transcribe"),
    "midi": (raw(b"MThd\x00\x00\x00\x06"), "a MIDI file"),
    "config": (raw(b'{"d_model": 512}'), "JSON file"),
    "lfs pointer": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "web page": (raw(b"<!DOCTYPE html>"), "failed download"),
    "text": (raw(b"weights"), "not readable as a zip archive"),
    "bundle/": (holding("bundle.json", "encoder.cpu.onnx"), "a bundle, the result of an export"),
    "saved model/": (holding("saved_model.pb", "variables/variables.index"), "SavedModel"),
    "tensorflow/": (holding("checkpoint.bak", "model.index"), "TensorFlow checkpoint"),
    "orbax/": (holding("manifest.ocdbt", "_METADATA"), "Orbax"),
    "hugging face/": (holding("model.safetensors", "config.json"), "safetensors"),
    "hugging face, old/": (holding("pytorch_model.bin", "config.json"), "Hugging Face"),
    "array of a checkpoint/": (lambda path: write_zarr(path, np.ones((2, 2), np.float32)),
                               "one array of a T5X checkpoint"),
    "nothing/": (holding(), "found nothing"),
}  # fmt: skip
