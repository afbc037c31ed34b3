"""Hostile and damaged torch files.  Each builder takes the path to write and that of a marker.

As in `hostile_t5x`: executing, leaving, allocating, hanging and lying must all be refused.
"""

from __future__ import annotations

import copy as copy_module
import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.export.writers import (
    FALSE,
    NONE,
    dict_,
    global_,
    integer,
    inverse_frequencies,
    ordered,
    reduce_,
    storage,
    stream,
    tensor,
    text,
    torch_tensors,
    tuple_,
    write_archive,
    write_torch,
)
from tests.seeded import seeded_weights

Builder = Callable[[Path, Path], object]

TENSORS = torch_tensors(seeded_weights(), inverse_frequencies(32))
VICTIM = "lm_head.weight"
SHAPE = TENSORS[VICTIM].shape
COUNT = TENSORS[VICTIM].size


def running(marker: Path) -> bytes:
    """Instructions that create the marker in Python's own unpickler."""
    return reduce_(global_("posix", "system"), text(f"touch '{marker}'"))


def healthy(path: Path) -> None:
    write_torch(path, TENSORS)


def program(pickle_: bytes) -> Builder:
    """The whole pickle of the archive."""
    return lambda path, _: write_archive(path, pickle_)


def content(body: bytes) -> Builder:
    return program(stream(body))


def entry(value: bytes, storages: dict[str, bytes] | None = None) -> Builder:
    """A state dict in which one tensor is replaced by other instructions."""

    def build(path: Path, _marker: Path) -> None:
        good = {name: array for name, array in TENSORS.items() if name != VICTIM}
        write_torch(path, good, wrap=lambda body: body + b"(" + text(VICTIM) + value + b"u")
        with zipfile.ZipFile(path, "a") as archive:
            for key, raw in (storages or {}).items():
                archive.writestr(f"archive/data/{key}", raw)

    return build


def view(
    shape: tuple[int, ...] = SHAPE,
    stride: tuple[int, ...] = (32, 1),
    offset: int = 0,
    declared: int = COUNT,
    stored: int = COUNT,
    kind: str = "FloatStorage",
    key: str = "777",
) -> Builder:
    """The victim as this view of a storage `777` of `stored` float32 values."""
    value = tensor(storage(key, declared, kind), shape, stride, offset=offset)
    return entry(value, {"777": bytes(4 * stored)})


def patched(change: Callable[[bytearray], None]) -> Builder:
    """A good file with bytes changed."""

    def build(path: Path, _marker: Path) -> None:
        healthy(path)
        raw = bytearray(path.read_bytes())
        change(raw)
        path.write_bytes(raw)

    return build


def plain_file(raw: bytes) -> Builder:
    return lambda path, _: path.write_bytes(raw)


def flip_value(raw: bytearray) -> None:
    """One bit of one weight."""
    raw[raw.index(TENSORS[VICTIM].tobytes()) + 1000] ^= 1


def flip_pickle(raw: bytearray) -> None:
    raw[raw.index(b"lm_head.weight")] ^= 1


def cut(raw: bytearray) -> None:
    del raw[len(raw) // 2 :]


def cut_front(raw: bytearray) -> None:
    """The directory stays whole, the data in front of it does not."""
    del raw[: len(raw) // 2]


def directory_field(offset: int, value: bytes) -> Callable[[bytearray], None]:
    """Overwrite bytes in the directory's record of the victim's storage (its largest entry)."""

    def change(raw: bytearray) -> None:
        archive = zipfile.ZipFile(io.BytesIO(bytes(raw)))
        name = max(archive.infolist(), key=lambda info: info.file_size).filename.encode()
        start = raw.rindex(name) - 46 + offset
        raw[start : start + len(value)] = value

    return change


def directory_size(raw: bytearray) -> None:
    """The end record declares a directory that reaches far back into a padded file."""
    end = bytes(raw[-22:])
    raw[:] = bytes(6 * 2**20) + end[:12] + struct.pack("<II", 5 * 2**20, 0) + end[20:]


def everything_compressed(path: Path, _marker: Path) -> None:
    write_archive(path, stream(dict_({})), compression=zipfile.ZIP_DEFLATED)


def deflated_storage(inflated: Callable[[bytes], bytes]) -> Builder:
    """The largest storage is a compressed entry."""

    def build(path: Path, _marker: Path) -> None:
        healthy(path)
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        largest = max(entries, key=lambda name: len(entries[name]))
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in entries.items():
                if name != largest:
                    archive.writestr(name, raw)
            archive.writestr(largest, inflated(entries[largest]), zipfile.ZIP_DEFLATED)

    return build


def duplicates(path: Path, _marker: Path) -> None:
    healthy(path)
    raw = path.read_bytes().replace(b"archive/version", b"archive/data/10")
    path.write_bytes(raw)


def without(name: str) -> Builder:
    def build(path: Path, _marker: Path) -> None:
        healthy(path)
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for each, raw in entries.items():
                if each != name:
                    archive.writestr(each, raw)

    return build


def other_zip(**entries: bytes) -> Builder:
    def build(path: Path, _marker: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in entries.items():
                archive.writestr(name.replace("__", "/"), raw)

    return build


def amplified(path: Path, _marker: Path) -> None:
    """Hundreds of layers, all of them one storage: small file, large network."""
    small = tensor(storage("0", 2**20), (1024, 1024), (1024, 1))
    good = {name: array for name, array in TENSORS.items() if ".block." not in name}
    names = [
        f"{stack}.block.{i}.layer.{j}.DenseReluDense.{part}.weight"
        for stack, j in (("encoder", 1), ("decoder", 2))
        for i in range(300)
        for part in ("wi_0", "wi_1", "wo")
    ]
    attention = [f"encoder.block.0.layer.0.SelfAttention.{part}.weight" for part in "qkvo"]
    items = b"".join(text(name) + small for name in [*names, *attention])
    write_torch(path, good, wrap=lambda body: body + b"(" + items + b"u")
    with zipfile.ZipFile(path) as archive:
        stream_ = archive.read("archive/data.pkl")
    write_archive(path, stream_, {"0": bytes(4 * 2**20)})


def reduce_running(path: Path, marker: Path) -> None:
    write_archive(path, stream(running(marker)))


def newobj_running(path: Path, marker: Path) -> None:
    call = global_("posix", "system") + tuple_(text(f"touch '{marker}'")) + b"\x81"
    write_archive(path, stream(call))


def stack_global_running(path: Path, marker: Path) -> None:
    call = text("posix") + text("system") + b"\x93" + tuple_(text(f"touch '{marker}'")) + b"R"
    write_archive(path, b"\x80\x04" + call + b".")


def instance_running(path: Path, marker: Path) -> None:
    """Protocol 0's INST."""
    call = b"(" + text(f"touch '{marker}'") + b"iposix\nsystem\n"
    write_archive(path, stream(call))


def state_running(path: Path, marker: Path) -> None:
    """A dict whose state is set through a global."""
    write_archive(path, stream(dict_({"a": running(marker)}) + running(marker) + b"b"))


def legacy_running(path: Path, marker: Path) -> None:
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + stream(running(marker)))


def bare_pickle_running(path: Path, marker: Path) -> None:
    path.write_bytes(stream(running(marker)))


def overlapping(path: Path, _marker: Path) -> None:
    """Hundreds of directory records for one entry: a small file of many storages."""
    healthy(path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        for number in range(300):
            copy = copy_module.copy(largest)
            copy.filename = copy.orig_filename = f"archive/data/{9000 + number}"
            archive.filelist.append(copy)
        archive._didModify = True


def huge_entry(path: Path, _marker: Path) -> None:
    """A zip64 record of 2^60 bytes for the victim's storage."""
    healthy(path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        largest.file_size = largest.compress_size = 2**60
        archive._didModify = True


def sparse(size: int) -> Builder:
    """A good archive behind a hole: takes no room on the disk, and for ever to read."""

    def build(path: Path, _marker: Path) -> None:
        healthy(path)
        raw = path.read_bytes()
        with path.open("wb") as file:
            file.seek(size)
            file.write(raw)

    return build


def linked_entry(path: Path, _marker: Path) -> None:
    """A storage that unpackers would make a symbolic link, to a file outside."""
    healthy(path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    largest = max(entries, key=lambda name: len(entries[name]))
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in entries.items():
            info = zipfile.ZipInfo(name)
            if name == largest:
                info.create_system, info.external_attr = 3, 0o120777 << 16
            archive.writestr(info, b"/etc/passwd" if name == largest else raw)


def linked_file(path: Path, _marker: Path) -> None:
    path.symlink_to("/etc/passwd")


def linked_device(path: Path, _marker: Path) -> None:
    path.symlink_to("/dev/zero")


def link_loop(path: Path, _marker: Path) -> None:
    path.symlink_to(path)


def doubled(body: bytes, times: int) -> bytes:
    """A pair of a pair of a pair ..., each twice the same object: 2^times leaves."""
    steps = (b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(times))
    return body + b"".join(steps)


def pipe(path: Path, _marker: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _marker: Path) -> None:
    path.mkdir()


DEPTH = 20_000
LONG_MIN = b"\x8a\x08" + struct.pack("<q", -(2**63))

#: name -> (builder, what the refusal says)
ATTACKS: dict[str, tuple[Builder, str]] = {
    # running code
    "reduce": (reduce_running, "holds a posix.system"),
    "newobj": (newobj_running, "holds a posix.system"),
    "stack global": (stack_global_running, "holds a posix.system"),
    "instance": (instance_running, "instruction INST"),
    "state": (state_running, "no state dict: entry 'a' is a posix.system"),
    "legacy file": (legacy_running, "before PyTorch 1.6"),
    "bare pickle": (bare_pickle_running, "bare pickle"),
    "extension registry": (content(b"\x82\x01"), "instruction EXT1"),
    "persistent text": (content(b"Pfile:///etc/passwd\n"), "instruction PERSID"),
    "duplicate": (content(b"}2"), "instruction DUP"),
    "text integer": (content(b"I" + b"9" * 100_000 + b"\n"), "damaged|INT"),
    # memory and time
    "memo slot": (content(b"}r\xff\xff\xff\x7f"), "map of nothing"),
    "declared text": (content(b"\x8d" + struct.pack("<Q", 2**62)), "damaged"),
    "declared bytes": (content(b"\x8e" + struct.pack("<Q", 2**40)), "damaged"),
    "declared array": (content(b"\x96" + struct.pack("<Q", 2**40)), "damaged"),
    "declared integer": (content(b"\x8b\xff\xff\xff\x7f"), "damaged"),
    "negative length": (content(b"\x8b\xff\xff\xff\xff"), "damaged"),
    "declared frame": (program(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}."), "map of"),
    "out-of-band buffer": (content(b"\x97"), "instruction NEXT_BUFFER"),
    "deep tuples": (content(b"N" + b"\x85" * DEPTH), "holds a tuple"),
    "deep lists": (content(b"]" * DEPTH + b"a" * (DEPTH - 1)), "holds a list"),
    "deep dicts": (content((b"}" + text("a")) * DEPTH + b"N" + b"s" * DEPTH), "entry 'a' is a map"),
    "deep key": (content(b"}N" + b"\x85" * DEPTH + b"Ns"), "map of nothing"),
    "cyclic list": (content(b"]q\x00h\x00a"), "holds a list"),
    "cyclic dict": (
        content(b"}q\x00" + text("state_dict") + b"h\x00s"),
        "is a map of 'state_dict'",
    ),
    "colliding keys": (
        content(b"}(" + b"".join(integer(i * (2**61 - 1)) + NONE for i in range(40_000)) + b"u"),
        "map of nothing",
    ),
    "instruction flood": (content(b"N0" * 130_000 + b"}"), "over 250,000 instructions"),
    "fat pickle": (content(b"N" * (5 * 2**20)), "over 4,194,304 bytes"),
    "inflating storage": (deflated_storage(lambda _: bytes(2**26)), "its entry has 67,108,864"),
    "deflated storage": (deflated_storage(lambda raw: raw), "compressed or encrypted"),
    "compressed": (everything_compressed, "compressed or encrypted"),
    "amplified": (amplified, "is not complete"),
    "directory size": (patched(directory_size), "zip directory declares"),
    "laughing tuples": (content(doubled(NONE, 60)), "holds a tuple"),
    "laughing key": (content(b"}" + doubled(NONE, 60) + b"Ns"), "map of nothing"),
    "laughing entry": (entry(doubled(NONE, 60)), "entry 'lm_head.weight' is a tuple"),
    "laughing storage": (
        content(
            tuple_(
                *(text("storage"), global_("torch", "FloatStorage"), doubled(NONE, 60)),
                *(text("cpu"), integer(1)),
            )
            + b"Q"
        ),
        "refers to a storage",
    ),
    "overlapping entries": (overlapping, "overlap"),
    "huge entry": (huge_entry, "overlap"),
    "terabyte": (sparse(2**40), "1,099,51"),
    # lies about tensors
    "declared storage": (view(declared=2**40), "does not fit|declares"),
    "huge storage and view": (view((2**14, 2**13), (2**13, 1), declared=2**40), "expected"),
    "short storage": (view(stored=COUNT - 1), "its entry has"),
    "long storage": (view(stored=COUNT + 1), "its entry has"),
    "past the end": (view(offset=1), "does not fit"),
    "wide stride": (view(stride=(33, 1)), "does not fit"),
    "expanded": (view(stride=(0, 0), declared=1, stored=1), "does not fit"),
    "negative stride": (view(stride=(-32, 1), offset=COUNT - 32), "does not fit"),
    "negative offset": (view(offset=-1), "does not fit"),
    "negative size": (view((-1, -1)), "does not fit"),
    "huge size": (view((2**62, 4)), "does not fit"),
    "huge stride": (view(stride=(2**70, 1)), "does not fit"),
    "ranks": (view((1,) * 9, (1,) * 9), "unknown way"),
    "stride rank": (view(stride=(1,)), "unknown way"),
    "integer weights": (view(kind="IntStorage"), "cannot hold weights"),
    "quantised weights": (view(kind="QInt8Storage"), "is a torch.QInt8Storage"),
    "missing storage": (view(key="778"), "is missing"),
    "storage path": (view(key="../../etc/passwd"), "refers to a storage"),
    "storage of huge count": (view(declared=2**2000), "does not fit|its entry has"),
    "negative count": (view(declared=-1), "refers to a storage"),
    "list of sizes": (
        entry(
            reduce_(
                global_("torch._utils", "_rebuild_tensor_v2"),
                *(storage("0", 1), integer(0), b"]", b"]", FALSE, NONE),
            )
        ),
        "unknown way",
    ),
    "tensor of text": (
        entry(
            reduce_(
                global_("torch._utils", "_rebuild_tensor_v2"),
                *(text("x"), integer(0), tuple_(), tuple_(), FALSE, NONE),
            )
        ),
        "unknown way",
    ),
    "tensor of too little": (
        entry(reduce_(global_("torch._utils", "_rebuild_tensor_v2"), NONE)),
        "damaged",
    ),
    "boolean size": (
        entry(
            reduce_(
                global_("torch._utils", "_rebuild_tensor_v2"),
                *(storage("0", 1), integer(0), tuple_(b"\x88"), tuple_(b"\x88"), FALSE, NONE),
            )
        ),
        "does not fit",
    ),
    "no tensor": (entry(text("weights")), "entry 'lm_head.weight' is a str"),
    "unnamed tensor": (content(dict_({"a": tensor(storage("0", 1), (), ())})), "no known model"),
    # damaged pickles
    "storage reference": (content(tuple_(text("module"), NONE) + b"Q"), "not a storage"),
    "storage without type": (
        content(tuple_(text("storage"), NONE, text("0"), NONE, integer(1)) + b"Q"),
        "without a type",
    ),
    "empty stack": (content(b"0"), "damaged"),
    "unknown memo": (content(b"h\x07"), "damaged"),
    "no stop": (program(b"\x80\x02}"), "damaged"),
    "empty pickle": (program(b""), "damaged"),
    "no opcode": (content(b"\xff"), "damaged"),
    "bare mark": (content(b"("), "damaged"),
    "call of a number": (content(b"K\x01)R"), "damaged"),
    "call without tuple": (content(global_("a", "b") + b"K\x01R"), "damaged"),
    "append to a number": (content(b"K\x01K\x02a"), "damaged"),
    "entry of a number": (content(b"K\x01K\x02K\x03s"), "damaged"),
    "odd entries": (content(b"}(" + text("a") + b"u"), "damaged"),
    "unnamed global": (content(b"K\x01K\x02\x93"), "damaged"),
    "ordered dict of items": (
        content(reduce_(global_("collections", "OrderedDict"), b"]")),
        "ordered dict with arguments",
    ),
    "nothing": (content(NONE), "holds a NoneType"),
    "empty state dict": (content(ordered({})), "map of nothing"),
    "one tensor": (content(tensor(storage("0", 1), (1,), (1,))), "holds a tensor"),
    "smallest integer": (content(LONG_MIN), "holds a int"),
    # damaged archives
    "flipped weight": (patched(flip_value), "does not match its checksum"),
    "flipped name": (patched(flip_pickle), "does not match its checksum"),
    "cut": (patched(cut), "not readable as a zip"),
    "cut front": (patched(cut_front), "cut off|not readable as a zip"),
    "encrypted": (patched(directory_field(8, b"\1\0")), "compressed or encrypted"),
    "offset": (patched(directory_field(42, b"\xff\xff\xff\x7f")), "lies outside"),
    "shifted offset": (patched(directory_field(42, b"\1\0\0\0")), "lies outside"),
    "entry size": (patched(directory_field(20, b"\xff\xff\xff\x7f" * 2)), "overlap"),
    "future zip": (patched(directory_field(6, b"\xff\0")), "not readable as a zip"),
    "duplicates": (duplicates, "share a name"),
    "lost storage": (without("archive/data/0"), "is missing"),
    "lost pickle": (without("archive/data.pkl"), "zip file of something else"),
    "two archives": (other_zip(a__data_pkl=b""), "zip file of something else"),
    "big-endian": (
        other_zip(**{"a__data.pkl": stream(b"}"), "a__byteorder": b"big"}),
        "big-endian",
    ),
    "torchscript": (
        other_zip(**{"a__data.pkl": b"", "a__constants.pkl": b""}),
        "TorchScript",
    ),
    "two roots": (other_zip(**{"a__data.pkl": b"", "b__data.pkl": b""}), "something else"),
    "deep root": (other_zip(**{"a__b__data.pkl": b""}), "something else"),
    "no zip": (plain_file(np.arange(100).tobytes()), "not readable as a zip"),
    "empty": (plain_file(b""), "not readable as a zip"),
    "lfs pointer": (plain_file(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "web page": (plain_file(b"<!DOCTYPE html><html>"), "failed download"),
    "linked entry": (linked_entry, "its entry has 11"),
    "linked system file": (linked_file, "not readable as a zip"),
    "linked device": (linked_device, "neither a file nor a folder"),
    "link loop": (link_loop, "does not exist|Too many levels|neither"),
    "pipe": (pipe, "neither a file nor a folder"),
    "folder": (folder, "holds no checkpoint"),
}
