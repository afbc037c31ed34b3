"""Hostile and damaged T5X folders.  Each builder takes an empty folder and the path of a marker.

A folder is hostile if reading it may write the marker, read a file outside, allocate without
bound, hang, or hand out values the file does not hold.  Every one must be refused.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from tests.export.writers import ext_array, nest, spec, write_index, write_t5x, write_zarr
from tests.seeded import seeded_weights

Builder = Callable[[Path, Path], object]

VICTIM = "decoder.token_embedder.embedding"
TENSORS = dict(seeded_weights().tensors)
ARRAY = TENSORS[VICTIM]


class Marking:
    """Pickles to a program that creates the marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def healthy(folder: Path) -> Path:
    """A good checkpoint to damage: the victim in a folder, everything else inline."""
    write_t5x(folder, TENSORS, inline=lambda name: name != VICTIM)
    return folder / f"target.{VICTIM}"


def leaves(victim: Any) -> dict[str, Any]:
    """Inline leaves of all tensors, the victim replaced."""
    return {name: ext_array(array) for name, array in TENSORS.items()} | {VICTIM: victim}


def index(leaf: Callable[[Path], Any]) -> Builder:
    """A checkpoint whose victim is this leaf of the index."""

    def build(folder: Path, _marker: Path) -> None:
        healthy(folder)
        write_index(folder, leaves(leaf(folder)))

    return build


def pointing(path: str) -> Builder:
    """The victim's spec names this path; a good array waits outside the folder."""

    def leaf(folder: Path) -> Any:
        write_zarr(folder.parent / "outside", ARRAY)
        where = path.replace("OUTSIDE", str(folder.parent / "outside"))
        return spec(VICTIM, ARRAY) | {"kvstore": {"driver": "file", "path": where}}

    return index(leaf)


def zarray(**changes: Any) -> Builder:
    """The metadata in the victim's folder is changed; its spec says nothing about it."""

    def build(folder: Path, _marker: Path) -> None:
        path = healthy(folder) / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        leaf = spec(VICTIM, ARRAY)
        del leaf["metadata"]
        write_index(folder, leaves(leaf))

    return build


def file(name: str, content: bytes) -> Builder:
    """One file of the victim's folder has this content."""

    def build(folder: Path, _marker: Path) -> None:
        (healthy(folder) / name).write_bytes(content)

    return build


def raw_index(content: bytes) -> Builder:
    def build(folder: Path, _marker: Path) -> None:
        healthy(folder)
        (folder / "checkpoint").write_bytes(content)

    return build


def linked(name: str) -> Builder:
    """A good file, or the whole good array folder, reached through a link out of the folder."""

    def build(folder: Path, _marker: Path) -> None:
        victim = healthy(folder)
        origin = victim / name if name else victim
        away = folder.parent / "away"
        origin.rename(away)
        origin.symlink_to(away)

    return build


def link_loop(folder: Path, _marker: Path) -> None:
    victim = healthy(folder)
    victim.rename(folder.parent / "away")
    victim.symlink_to(folder / "other")
    (folder / "other").symlink_to(victim)


def pipe(name: str) -> Builder:
    """A pipe would block a reader for ever."""

    def build(folder: Path, _marker: Path) -> None:
        path = healthy(folder) / name
        path.unlink()
        os.mkfifo(path)

    return build


def sparse_index(header: bytes, size: int) -> Builder:
    """A huge index that takes no room on the disk."""

    def build(folder: Path, _marker: Path) -> None:
        healthy(folder)
        with (folder / "checkpoint").open("wb") as file:
            file.write(header)
            file.truncate(size)

    return build


def one_folder_for_all(folder: Path, _marker: Path) -> None:
    """Countless parameters that are one array."""
    healthy(folder)
    leaf = spec(VICTIM, ARRAY)
    write_index(folder, {f"m{number}.kernel": leaf for number in range(6_000)})


def folder_as(name: str) -> Builder:
    def build(folder: Path, _marker: Path) -> None:
        path = healthy(folder) / name
        path.unlink()
        path.mkdir()

    return build


def linked_index(folder: Path, _marker: Path) -> None:
    healthy(folder)
    away = folder.parent / "away"
    (folder / "checkpoint").rename(away)
    (folder / "checkpoint").symlink_to(away)


def pickled_index(folder: Path, marker: Path) -> None:
    healthy(folder)
    (folder / "checkpoint").write_bytes(pickle.dumps(Marking(marker)))


def pickled_chunk(folder: Path, marker: Path) -> None:
    """An object array: numcodecs would unpickle it."""
    zarray(dtype="|O", filters=[{"id": "pickle"}])(folder, marker)
    chunk = folder / f"target.{VICTIM}" / "0.0"
    chunk.write_bytes(gzip.compress(pickle.dumps(Marking(marker))))


def deep_tree(depth: int) -> Builder:
    def build(folder: Path, _marker: Path) -> None:
        write_index(folder, {".".join(["a"] * depth): ext_array(np.ones(1, np.float32))})

    return build


def named(key: Any) -> Builder:
    def build(folder: Path, _marker: Path) -> None:
        tree = nest(leaves(ext_array(ARRAY)))
        tree["decoder"][key] = tree["decoder"].pop("token_embedder")
        content = {"version": 3, "optimizer": {"target": tree}}
        folder.mkdir(exist_ok=True)
        (folder / "checkpoint").write_bytes(msgpack.packb(content, use_bin_type=True))

    return build


def packed(code: int, content: Any) -> Builder:
    return index(lambda _: msgpack.ExtType(code, msgpack.packb(content, use_bin_type=True)))


def chunked(**changes: Any) -> Builder:
    good = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": ARRAY.shape[0], "1": ARRAY.shape[1]},
        "chunks": {"0": ext_array(ARRAY.reshape(-1))},
    }
    return index(lambda _: good | changes)


RAW = ARRAY.tobytes()
BOMB = gzip.compress(bytes(64 * 2**20), 9)
PAIR = ext_array(ARRAY.reshape(-1)[: ARRAY.size // 2])

#: name -> (builder, what the refusal says)
ATTACKS: dict[str, tuple[Builder, str]] = {
    # leaving the folder
    "absolute path": (pointing("OUTSIDE"), "leads out"),
    "system file": (pointing("/etc/passwd"), "leads out"),
    "parent": (pointing("../outside/"), "leads out"),
    "hidden parent": (pointing("a/../../outside"), "leads out"),
    "backslashes": (pointing("..\\outside"), "leads out"),
    "null byte": (pointing("target.x\0/"), "leads out"),
    "control characters": (pointing("\x1b[2Jx"), "leads out"),
    "endless name": (pointing("x" * 5000), "leads out"),
    "no name": (pointing(""), "leads out"),
    "linked folder": (linked(""), "leads out"),
    "linked chunk": (linked("0.0"), "leads out"),
    "linked metadata": (linked(".zarray"), "leads out"),
    "link loop": (link_loop, "leads out|is missing"),
    "linked index": (linked_index, "leads out"),
    # running code
    "pickled index": (pickled_index, "not a T5X index"),
    "pickled chunk": (pickled_chunk, "filters is"),
    "object dtype": (zarray(dtype="|O"), "cannot hold weights"),
    "inline object dtype": (packed(1, ([2], "object", bytes(16))), "cannot hold weights"),
    "filter": (zarray(filters=[{"id": "pickle"}]), "filters"),
    "unknown codec": (zarray(compressor={"id": "blosc"}), "compressor 'blosc'"),
    "nameless codec": (zarray(compressor={"id": ["gzip"]}), "compressor"),
    # memory
    "inflating chunk": (file("0.0", BOMB), r"more than 196,608 bytes"),
    "fat chunk": (file("0.0", bytes(2**20)), "stored for a 196,608 byte chunk"),
    "huge metadata": (file(".zarray", b" " * 2**17), "over 65,536 bytes"),
    "deep metadata": (file(".zarray", b"[" * 60_000), "not readable as JSON"),
    "huge number": (file(".zarray", b"9" * 60_000), "not readable as JSON"),
    "absurd shape": (zarray(shape=[2**40, 2**40], chunks=[1, 1]), "not the shape of a weight"),
    "overflowing shape": (zarray(shape=[2**32, 2**32]), "not the shape of a weight"),
    "large product": (zarray(shape=[2**28, 2**28]), "not the shape of a weight"),
    "huge integers": (zarray(shape=[10**4000]), "not the shape of a weight"),
    "negative shape": (zarray(shape=[-1, 32]), "not the shape of a weight"),
    "empty shape": (zarray(shape=[0, 32]), "not the shape of a weight"),
    "boolean shape": (zarray(shape=[True, True]), "not the shape of a weight"),
    "float shape": (zarray(shape=[2.0, 3.0]), "not the shape of a weight"),
    "nested shape": (zarray(shape=[[2], [3]]), "not the shape of a weight"),
    "many axes": (zarray(shape=[1] * 1000), "not the shape of a weight"),
    "shape of text": (zarray(shape="1536"), "not the shape of a weight"),
    "huge chunk": (zarray(chunks=[2**20, 32]), "do not tile"),
    "other rank": (zarray(chunks=[1536]), "do not tile"),
    "countless chunks": (zarray(shape=[2**20, 32], chunks=[1, 1]), "over 65536 files"),
    "bad declared length": (raw_index(b"\xdd\xff\xff\xff\xff"), "not a T5X index"),
    "nested declared lengths": (raw_index(b"\xdd\x00\x00\x0f\xff" * 900), "not a T5X index"),
    "declared map": (raw_index(b"\xdf\xff\xff\xff\xff"), "not a T5X index"),
    "declared text": (raw_index(b"\xdb\xff\xff\xff\xff"), "not a T5X index"),
    "declared bytes": (raw_index(b"\xc6\xff\xff\xff\xff"), "not a T5X index"),
    "declared extension": (raw_index(b"\xc9\xff\xff\xff\xff\x01"), "not a T5X index"),
    "deep lists": (raw_index(b"\x91" * 500_000), "not a T5X index"),
    "deep maps": (raw_index(b"\x81\xa1a" * 500_000), "not a T5X index"),
    "container flood": (
        raw_index(msgpack.packb({str(i): [{}] * 1000 for i in range(300)})),
        "over 200,000 entries",
    ),
    "deep tree": (deep_tree(40), "over 16 levels deep"),
    "one folder for all": (one_folder_for_all, "over 1,024 parameters"),
    "terabyte index": (sparse_index(b"\x80", 2**40), "not the size of a checkpoint index"),
    "bytes in a hole": (
        sparse_index(b"\x81\xa9optimizer\xc6\x0f\x00\x00\x00", 2**28),
        "not a T5X index",
    ),
    # nonsense
    "empty index": (raw_index(b""), "0 bytes"),
    "cut index": (raw_index(b"\x82\xa7version\x03"), "not a T5X index"),
    "text index": (raw_index(b'model_checkpoint_path: "model.ckpt"\n'), "not a T5X index"),
    "number index": (raw_index(b"\x03"), "found int"),
    "no target": (raw_index(msgpack.packb({"version": 3, "weights": {}})), "'version', 'weights'"),
    "optimizer of text": (raw_index(msgpack.packb({"optimizer": "x"})), "no parameters under"),
    "wrong utf-8": (raw_index(b"\x81\xa1\xff\x00"), "not a T5X index"),
    "integer keys": (raw_index(b"\x81\x01\x02"), "not a T5X index"),
    "byte keys": (named(b"token_embedder"), "has an entry a bytes"),
    "path as a name": (named("../token_embedder"), "has an entry"),
    "escape codes as a name": (named("\x1b[2J"), "has an entry"),
    "leaf of text": (index(lambda _: "kernel"), "is a str in the index"),
    "leaf of a date": (index(lambda _: msgpack.Timestamp(1)), "is a Timestamp"),
    "complex leaf": (packed(2, (1.0, 2.0)), "complex number"),
    "unknown extension": (packed(9, (1, 2)), "MessagePack type 9"),
    "damaged leaf": (index(lambda _: msgpack.ExtType(1, b"\xc1")), "damaged inline array"),
    "leaf of two": (packed(1, (1, 2)), "damaged inline array"),
    "leaf of a number": (packed(1, 3), "damaged inline array"),
    "short leaf": (packed(1, ([1536, 32], "float32", RAW[:-4])), "do not fill float32"),
    "long leaf": (packed(1, ([1536, 32], "float32", RAW + b"1234")), "do not fill float32"),
    "leaf of text bytes": (packed(1, ([1], "float32", "abcd")), "do not fill float32"),
    "integer leaf": (packed(1, ([1], "int32", bytes(4))), "cannot hold weights"),
    "absurd leaf": (packed(1, ([2**40], "float32", bytes(4))), "not the shape of a weight"),
    "chunk gap": (chunked(chunks={"1": ext_array(ARRAY)}), "not numbered"),
    "chunk list": (chunked(chunks=[1]), "not numbered"),
    "missing chunk map": (chunked(chunks={"0": PAIR}), "do not fill shape"),
    "foreign chunk": (chunked(chunks={"0": PAIR, "1": "x"}), "do not fill shape"),
    "mixed chunks": (
        chunked(chunks={"0": PAIR, "1": ext_array(ARRAY.reshape(-1)[ARRAY.size // 2 :], "<f8")}),
        "different dtypes",
    ),
    "chunk shape": (chunked(shape={"0": "x"}), "not the shape of a weight"),
    "remote store": (index(lambda _: spec(VICTIM, ARRAY, driver="http")), "'http'"),
    "other driver": (index(lambda _: spec(VICTIM, ARRAY) | {"driver": "n5"}), "'n5'"),
    "no store": (index(lambda _: {"driver": "zarr"}), "expected zarr on file"),
    "unnamed store": (
        index(lambda _: {"driver": "zarr", "kvstore": {"driver": "file"}}),
        "names no folder",
    ),
    "disagreement": (
        index(lambda _: spec(VICTIM, ARRAY) | {"metadata": {"shape": [3, 4]}}),
        r"the index says shape \[3, 4\]",
    ),
    "part of an array": (
        index(lambda _: spec(VICTIM, ARRAY, transform={"input_exclusive_max": [[9], [32]]})),
        "selects a part",
    ),
    "shifted array": (
        index(
            lambda _: spec(
                VICTIM,
                ARRAY,
                transform={"input_exclusive_max": [1536, 32], "input_inclusive_min": [1, 0]},
            )
        ),
        "selects a part",
    ),
    "rewired array": (index(lambda _: spec(VICTIM, ARRAY, transform={"output": []})), "a part"),
    "strange transform": (index(lambda _: spec(VICTIM, ARRAY, transform=[1])), "a part"),
    "unbounded transform": (index(lambda _: spec(VICTIM, ARRAY, transform={})), "a part"),
    "column order": (zarray(order="F"), "order is 'F'"),
    "zarr 3": (zarray(zarr_format=3), "zarr_format is 3"),
    "other separator": (zarray(dimension_separator="/"), "dimension_separator"),
    "integers": (zarray(dtype="<i4"), "cannot hold weights"),
    "big-endian": (zarray(dtype=">f4"), "cannot hold weights"),
    "no json": (file(".zarray", b"\xff\xfe"), "not readable as JSON"),
    "json list": (file(".zarray", b"[]"), "expected a JSON object"),
    "folder as metadata": (folder_as(".zarray"), r"\.zarray is missing"),
    "folder as chunk": (folder_as("0.0"), "chunk 0.0 is missing"),
    "pipe as metadata": (pipe(".zarray"), r"\.zarray is missing"),
    "pipe as chunk": (pipe("0.0"), "chunk 0.0 is missing"),
    "not gzip": (file("0.0", b"garbage"), "not a readable gzip stream"),
    "cut gzip": (file("0.0", gzip.compress(RAW)[:-9]), "cut off"),
    "short gzip": (file("0.0", gzip.compress(RAW[:-4])), "196,604 bytes, expected exactly"),
    "trailing data": (file("0.0", gzip.compress(RAW) + b"more"), "data follows it"),
}
