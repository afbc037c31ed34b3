"""Fuzz targets: what strangers may hand over, as functions of bytes, with files to begin with.

A target reads its bytes as the product would.  It may succeed or raise `MT3Error`; anything else, a
process that dies or memory without bounds, is a fault.  Every file in ``corpus/TARGET`` is a seed,
too: put what once failed there, and the ordinary tests read it from then on.
"""

from __future__ import annotations

import contextlib
import io
import socket
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgpack
import numpy as np
from hypothesis import strategies as st

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.t5x import open_t5x
from mt3_export.checkpoints.torch_zip import TorchArchive
from mt3_export.variants import variant_named
from mt3_runtime.audio.sources import open_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.onnx_scan import scan
from mt3_runtime.errors import MT3Error
from mt3_runtime.files.formats import load_notes, render
from mt3_runtime.loading import load_model
from mt3_runtime.notes.note import Note
from tests.export.writers import write_t5x, write_torch
from tests.pace import HANGS
from tests.seeded import seeded_weights
from tests.server.running import running
from tests.sounds import FORMATS, sound

CORPUS = Path(__file__).parent / "corpus"

#: Decoded frames after which a file counts as read: headers may promise hours.
FRAMES = 2_000_000

#: What the manifest of a seeded bundle says of its weights.
SOURCE = {"digest": "0" * 64}

Reader = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        opened: Makes the function that reads bytes, and clears up behind it.
        made: Files to begin with, which are not worth keeping as files.
    """

    opened: Callable[[], contextlib.AbstractContextManager[Reader]]
    made: Callable[[], list[bytes]]


def seeds(name: str) -> list[bytes]:
    """Files that inputs of a target are made of: those of its corpus, then those that are made."""
    kept = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    return [*kept, *TARGETS[name].made()]


def inputs(name: str) -> st.SearchStrategy[bytes]:
    """Seeds with pieces changed, put in, taken out, repeated, and taken from other seeds."""
    known = seeds(name)

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(known)))
        for _ in range(draw(st.integers(0, 6))):
            at = int(draw(st.floats(0, 1)) * len(data))
            # Most of what readers go by stands in front.
            at = min(at, draw(st.sampled_from([len(data), 200, 4000])))
            size = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1000]))
            match draw(st.sampled_from(["byte", "put", "cut", "repeat", "other", "end"])):
                case "byte":
                    data[at : at + 1] = bytes([draw(st.sampled_from([0, 1, 127, 128, 255]) | BYTE)])
                case "put":
                    data[at:at] = draw(st.binary(max_size=16))
                case "cut":
                    del data[at : at + size]
                case "repeat":
                    data[at:at] = data[at : at + size]
                case "other":
                    other = draw(st.sampled_from(known))
                    data[at : at + size] = other[at : at + size]
                case "end":
                    del data[at:]
        return bytes(data)

    return changed()


BYTE = st.integers(0, 255)


@contextlib.contextmanager
def _file(name: str, read: Callable[[Path], object]) -> Iterator[Reader]:
    """Reads bytes as a file of that name, which may lie in a folder."""
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
        path = Path(folder) / name

        def reader(data: bytes) -> None:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            with contextlib.suppress(MT3Error), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)

        yield reader


def _audio(path: Path) -> None:
    with open_audio(path, target_rate=16000, containers=False) as stream:
        frames = 0
        for block in stream:
            frames += len(block)
            if frames > FRAMES:
                return


def _bundle(path: Path) -> None:
    """The archive and all its tables; then each graph alone, whose digest no change survives."""
    data = path.read_bytes()
    if data.startswith(b"PK"):
        bundle = Bundle(path)
        for graph in bundle.manifest.graphs:
            bundle.verified(graph)
            bundle.in_place(graph)
    else:
        scan(data)


def _checkpoint(path: Path) -> None:
    """Every tensor, whatever the network."""
    if path.read_bytes()[:2] == b"PK":
        with TorchArchive(path) as archive:
            for tensor in archive.state_dict().values():
                tensor.read()
    else:
        for stored in open_t5x(path.parent).tensors.values():
            stored.read()


@contextlib.contextmanager
def _notes() -> Iterator[Reader]:
    """Each kind of file by what it begins with: the suffix tells users' files apart."""
    with contextlib.ExitStack() as stack:
        kinds = {
            kind: stack.enter_context(_file(f"notes.{kind}", load_notes))
            for kind in ("mid", "json", "jsonl", "csv")
        }

        def reader(data: bytes) -> None:
            if data[:4] in (b"MThd", b"RIFF"):
                kinds["mid"](data)
            elif data[:1] == b"{":
                kinds["json"](data)
                kinds["jsonl"](data)
            else:
                kinds["csv"](data)

        yield reader


@contextlib.contextmanager
def _http() -> Iterator[Reader]:
    """Sends bytes to the service as they are; no answer of it may be a fault of its own."""
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
        path = Path(folder) / "tiny"
        export_bundle(seeded_weights(), variant_named("magenta_mt3"), path, source=SOURCE)
        options = {"rate": 1e9, "burst": 10**9, "body_bytes": 1_000_000, "patience": 5.0}
        with (
            load_model(path, threads=1) as model,
            running(model, Path(folder) / "spool", **options) as found,
        ):

            def reader(data: bytes) -> None:
                with found.connect() as connection, contextlib.suppress(ConnectionError):
                    connection.settimeout(HANGS)
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    answer = b"".join(iter(lambda: connection.recv(65536), b""))
                    status = answer[9:12]
                    assert not status.startswith(b"5") or status in (b"503", b"507"), answer[:500]
                    assert b"Traceback" not in answer

            yield reader
            with found.client() as client:
                assert client.get("/health/live").status_code == 200


@cache
def _bundles() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
        path = Path(folder) / "tiny.mt3"
        export_bundle(seeded_weights(), variant_named("magenta_mt3"), path, source=SOURCE)
        with zipfile.ZipFile(path) as archive:
            graphs = [name for name in archive.namelist() if name.endswith(".onnx")]
            return (path.read_bytes(), *(archive.read(graph) for graph in graphs))


@cache
def _checkpoints() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory(prefix="mt3-fuzz-") as folder:
        small = {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}
        write_torch(Path(folder) / "a.pth", small)
        write_t5x(Path(folder) / "t5x", {"encoder.a": small["a"]})
        index = (Path(folder) / "t5x" / "checkpoint").read_bytes()
        return ((Path(folder) / "a.pth").read_bytes(), index, msgpack.packb({"version": 3}))


def _note_files() -> list[bytes]:
    notes = [Note(n / 4, n / 4 + 0.5, 60 + n % 12, 90, n % 20) for n in range(40)]
    drums = [Note(n / 2, n / 2 + 0.01, 36, 90, 0, is_drum=True) for n in range(20)]
    return [render([*notes, *drums], kind) for kind in ("midi", "json", "jsonl", "csv")]


def _requests() -> list[bytes]:
    held = io.BytesIO(sound("flac", 0.3)).getvalue()
    post = "POST /v1/transcriptions{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
    get = "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    asked = [
        get.format(path).encode() for path in ("/health", "/v1/models", "/metrics", "/version")
    ]
    return [*asked, post.format("?format=json", len(held)).encode() + held]


TARGETS = {
    "audio": Target(lambda: _file("audio", _audio), lambda: [sound(kind, 0.3) for kind in FORMATS]),
    "bundle": Target(lambda: _file("bundle.mt3", _bundle), lambda: [*_bundles()]),
    "checkpoint": Target(
        lambda: _file("folder/checkpoint", _checkpoint), lambda: [*_checkpoints()]
    ),
    "notes": Target(_notes, _note_files),
    "http": Target(_http, _requests),
}
