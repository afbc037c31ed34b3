"""Keys, the folder of engines, and the command that shows them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_engines.engines_command import EnginesCommand
from mt3_engines.storage import store as module
from mt3_engines.storage.keys import RECIPE, EngineKey, EngineTarget, capability_of
from mt3_engines.storage.store import EngineStore, default_folder, graph_digests, read_info
from mt3_engines.versions import Version, parse_version, updates_in_place
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode
from mt3_runtime.errors import BundleError, DeviceError, MT3Error, OptionError, OutputError
from tests.trees import snapshot

HERE = EngineTarget("10.16.1.11", "9.0", "NVIDIA H200")
KEY = EngineKey(
    export_id="e" * 32,
    role="decoder",
    graph="a" * 64,
    recipe=RECIPE,
    precision="fp16",
    slots=(1, 8, 32),
    capacity=128,
    tensorrt=HERE.tensorrt,
    capability=HERE.capability,
    gpu=HERE.gpu,
)


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def run(store, *arguments) -> int:
    parser, command = argparse.ArgumentParser(), EnginesCommand()
    command.add_arguments(parser)
    return command.run(parser.parse_args([*arguments, "--engines", str(store.folder)]))


# Versions and keys -------------------------------------------------------------------------------


def test_versions():
    assert parse_version("10.16.1.11") == Version(10, 16) > parse_version("10.3.0")
    assert str(parse_version("11.4.0.106")) == "11.4"
    assert updates_in_place(parse_version("10.15.1"))
    assert not updates_in_place(parse_version("10.14.1"))
    for text in ("10.2.0", "8.6.1", "12.0", "nonsense", ""):
        with pytest.raises(DeviceError, match="not supported"):
            parse_version(text)


def test_every_field_changes_the_digest():
    other = {
        "export_id": "f" * 32,
        "role": "encoder",
        "graph": "b" * 64,
        "recipe": RECIPE + 1,
        "precision": "fp32",
        "slots": (1, 8),
        "capacity": 256,
        "tensorrt": "11.4.0",
        "capability": "8.9",
        "gpu": "NVIDIA L4",
        "version_compatible": True,
        "hardware": "same",
        "stripped": True,
        "quantised": "int8",
        "maker": "rtx",
        "targets": ("8.6", "8.9"),
    }
    assert set(other) == {field.name for field in fields(EngineKey)}
    keys = [KEY, *(replace(KEY, **{name: value}) for name, value in other.items())]
    assert len({key.digest for key in keys}) == len({key.stem for key in keys}) == len(keys)


def test_what_is_done_and_where_are_told_apart():
    elsewhere = replace(KEY, tensorrt="11.4.0", capability="8.9", gpu="L4", stripped=True)
    assert KEY.same_work(elsewhere)
    assert not KEY.same_work(replace(KEY, capacity=256))


@pytest.mark.parametrize(
    ("changes", "place", "runs"),
    [
        ({}, HERE, True),
        ({}, replace(HERE, tensorrt="10.16.2"), False),
        ({"version_compatible": True}, replace(HERE, tensorrt="10.17.0"), True),
        ({"version_compatible": True}, replace(HERE, tensorrt="10.15.0"), False),
        ({"version_compatible": True}, replace(HERE, tensorrt="11.4.0"), False),
        ({}, replace(HERE, gpu="NVIDIA H100"), False),
        ({"hardware": "same"}, replace(HERE, gpu="NVIDIA H100"), True),
        ({"hardware": "same"}, replace(HERE, capability="8.9"), False),
        ({"hardware": "ampere_plus"}, replace(HERE, capability="12.0", gpu="RTX"), True),
        ({"hardware": "ampere_plus"}, replace(HERE, capability="7.5"), False),
    ],
)
def test_where_an_engine_runs(changes, place, runs):
    assert (not replace(KEY, **changes).obstacles(place)) is runs


def test_capabilities_are_read_strictly():
    assert capability_of("12.0") == (12, 0) > capability_of("9.0")
    with pytest.raises(DeviceError):
        capability_of("nine")


# The folder --------------------------------------------------------------------------------------


def test_what_was_put_is_found_and_whole(store):
    info = store.put(KEY, b"engine", model="tiny", seconds=12.34)
    assert store.find(KEY, HERE, command="mt3 build tiny") == info
    assert store.load(info) == b"engine"
    assert read_info(info.path.with_suffix(".json")) == info
    assert {path.suffix for path in store.folder.iterdir()} == {".engine", ".json"}
    assert not store.strays()


def test_an_engine_built_here_is_preferred(store):
    store.put(replace(KEY, gpu="A GPU", hardware="same"), b"x", model="tiny", seconds=1)
    here = store.put(KEY, b"y", model="tiny", seconds=1)
    assert store.find(KEY, HERE, command="") == here


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (None, "There is no decoder engine .fp16, 128 columns."),
        (replace(KEY, tensorrt="10.3.0"), "it was built with TensorRT 10.3.0, here is 10.16.1.11"),
        (replace(KEY, gpu="NVIDIA L4", capability="8.9"), "built for NVIDIA L4"),
        (replace(KEY, graph="b" * 64), "the bundle's graph has changed since"),
        (replace(KEY, recipe=0), "built by another version of mt3-runtime"),
        (replace(KEY, capacity=256), "There is no decoder engine"),
        (replace(KEY, export_id="0" * 32, graph="b" * 64), "There is no decoder engine"),
    ],
)
def test_a_stale_engine_is_refused_by_name_with_the_command(store, there, message):
    if there is not None:
        store.put(there, b"engine", model="tiny", seconds=1)
    with pytest.raises(DeviceError, match=message) as refusal:
        store.find(KEY, HERE, command="mt3 build tiny --precision fp16")
    assert str(refusal.value).endswith("Build it with: mt3 build tiny --precision fp16")
    if there is not None and "There is no" not in message:
        assert there.stem in str(refusal.value)


def test_a_changed_engine_is_not_loaded(store):
    info = store.put(KEY, b"engine", model="tiny", seconds=1)
    info.path.write_bytes(b"Engine")
    with pytest.raises(BundleError, match="digest differs"):
        store.load(info)
    info.path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        store.load(info)
    assert store.strays() == [info.path.with_suffix(".json")]
    with pytest.raises(DeviceError):
        store.find(KEY, HERE, command="")


def test_a_failed_write_leaves_no_description(store, monkeypatch):
    store.put(KEY, b"old", model="tiny", seconds=1)

    def full(path, data):
        raise OutputError("the disk is full")

    monkeypatch.setattr("mt3_engines.storage.store.write_atomic", full)
    with pytest.raises(OutputError):
        store.put(KEY, b"new", model="tiny", seconds=1)
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document.update(version=1),
        lambda document: document.update(format="other"),
        lambda document: document.update(size="6"),
        lambda document: document.pop("sha256"),
        lambda document: document["key"].update(role="encoders"),
        lambda document: document["key"].update(slots=[8, 1]),
        lambda document: document["key"].update(slots=["1"]),
        lambda document: document["key"].update(tensorrt="8.0"),
        lambda document: document["key"].update(capability="x"),
        lambda document: document["key"].update(unknown=1),
        lambda document: document["key"].update(maker="cuda"),
        lambda document: document["key"].update(maker="rtx"),
        lambda document: document["key"].update(targets=["8.9"]),
        lambda document: document["key"].update(tensorrt="1.7.1.116"),
        *(
            lambda document, targets=targets: document["key"].update(
                maker="rtx", tensorrt="1.7.1.116", targets=targets
            )
            for targets in ([], ["9.0"], ["8.9", "8.6"], ["8.9", "8.9"], "8.9")
        ),
    ],
)
def test_damaged_descriptions_are_refused(store, damage):
    path = store.put(KEY, b"engine", model="tiny", seconds=1).path.with_suffix(".json")
    document = json.loads(path.read_bytes())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError):
        read_info(path)
    assert not list(store.infos())


@pytest.mark.parametrize("data", [b"{", b"[]", b" " * (1 << 17), b"\xff"])
def test_what_is_no_description_is_refused(store, data):
    store.folder.mkdir()
    path = store.folder / "x.json"
    path.write_bytes(data)
    with pytest.raises(BundleError):
        read_info(path)


def test_where_engines_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path))
    monkeypatch.setenv("MT3_ENGINES", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("MT3_ENGINES")
    assert default_folder().name == "engines"
    assert EngineStore().folder == default_folder()


def test_a_file_in_the_folders_place_is_no_engine(tmp_path):
    (tmp_path / "file").write_text("x")
    assert not list(EngineStore(tmp_path / "file").infos())


# The command -------------------------------------------------------------------------------------


def test_listing(store, capsys):
    assert run(store, "list") == ExitCode.OK
    assert "mt3 build" in capsys.readouterr().err
    store.put(KEY, b"engine", model="tiny", seconds=1)
    assert run(store, "list") == ExitCode.OK
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[0] == "NAME"
    assert row.split()[0] == KEY.stem
    assert "1,8,32" in row


def test_inspecting(store, capsys):
    info = store.put(KEY, b"engine", model="tiny", seconds=1)
    for name in (KEY.stem, str(info.path)):
        assert run(store, "inspect", name) == ExitCode.OK
        found = json.loads(capsys.readouterr().out)
        assert found["key"]["slots"] == [1, 8, 32]
        assert found["path"] == str(info.path)
    with pytest.raises(MT3Error):
        run(store, "inspect", "nonsense")


def test_verifying(store, capsys):
    info = store.put(KEY, b"engine", model="tiny", seconds=1)
    assert run(store, "verify") == ExitCode.OK
    assert info.sha256 in capsys.readouterr().out
    info.path.write_bytes(b"changed")
    (store.folder / "left.engine").write_bytes(b"")
    assert run(store, "verify") == ExitCode.FAILED
    error = capsys.readouterr().err
    assert "digest differs" in error
    assert "left.engine: no engine of mt3-runtime" in error


def test_pruning_keeps_what_is_of_use(store, tiny_bundle, capsys):
    bundle = Bundle(tiny_bundle)
    digests = graph_digests(bundle, "portable")
    current = replace(
        KEY, export_id=bundle.manifest.export_id, graph=digests["decoder"], capacity=64
    )
    name = bundle.manifest.name
    kept = store.put(current, b"1", model=name, seconds=1)
    other = store.put(KEY, b"2", model="another", seconds=1)
    old = store.put(replace(KEY, capacity=256), b"3", model=name, seconds=1)
    damaged = store.put(replace(KEY, capacity=512), b"4", model="another", seconds=1)
    damaged.path.write_bytes(b"5")
    foreign = store.put(replace(KEY, recipe=99), b"6", model="another", seconds=1)
    removable = {info.path.name for info in (old, damaged, foreign)}
    before = sorted(store.folder.iterdir())
    run(store, "prune", str(tiny_bundle), "--dry-run")
    assert sorted(store.folder.iterdir()) == before
    assert removable == {line.split()[0] for line in capsys.readouterr().out.splitlines()[::2]}
    run(store, "prune", str(tiny_bundle))
    assert {info.path for info in store.infos()} == {kept.path, other.path}
    with pytest.raises(OptionError):
        run(store, "prune", str(tiny_bundle), "--all")
    run(store, "prune", "--all")
    assert not list(store.folder.iterdir())


# What is not ours --------------------------------------------------------------------------------

PROJECT = {
    "package.json": b'{"name": "webapp"}',
    "settings.json": b"{ // no JSON, but mine",
    "download.part": b"half a film",
    "diesel.engine": b"train",
    ".mt3-notes.part": b"notes about mt3",
    f".mt3-{1 << 30}-0123456789abcdef.part": b"somebody's, for all we know",
    f"{KEY.stem}.json": b'{"name": "of an engine"}',
    f"{KEY.stem}.engine": b"thesis",
    f"{replace(KEY, role='encoder').stem}.engine": b"no description",
    f"{replace(KEY, capacity=7).stem}.json": b'{"format": "mt3-runtime.engine"',
    f"{replace(KEY, capacity=8).stem}.json": b"[" * 100_000,
}


@pytest.mark.parametrize("arguments", [(), ("--all",), ("--dry-run",)])
@pytest.mark.parametrize("variable", [False, True])
def test_pruning_leaves_a_foreign_folder_as_it_is(store, arguments, variable, capsys, monkeypatch):
    (store.folder / "folder.engine").mkdir(parents=True)
    (store.folder / f"{replace(KEY, capacity=9).stem}.json").mkdir()
    for name, content in PROJECT.items():
        (store.folder / name).write_bytes(content)
    before = snapshot(store.folder)
    if variable:
        monkeypatch.setenv("MT3_ENGINES", str(store.folder))
        args = argparse.Namespace(engines=None, bundle=None, all=False, dry_run=False)
        for name in arguments:
            setattr(args, name.removeprefix("--").replace("-", "_"), True)
        parser, command = argparse.ArgumentParser(), EnginesCommand()
        command.add_arguments(parser)
        assert command.run(parser.parse_args(["prune", *arguments])) == ExitCode.OK
    else:
        assert run(store, "prune", *arguments) == ExitCode.OK
    assert snapshot(store.folder) == before
    out, err = capsys.readouterr()
    assert out == ""
    assert "left alone, as mt3 did not make it: .mt3-1073741824-" in err
    assert f"and {len(before) - 3} more" in err


def test_own_engines_go_and_foreign_files_beside_them_stay(store):
    store.put(KEY, b"1", model="tiny", seconds=1)
    (store.folder / "notes.txt").write_text("mine")
    run(store, "prune", "--all")
    assert snapshot(store.folder) == {"notes.txt": b"mine"}


def test_timing_caches_and_their_locks_are_not_foreign(store):
    store.folder.mkdir()
    timing = store.timing_cache(HERE)
    for name in (timing.name, f"{timing.name}.lock", "other.timing.locked", "mine.lock"):
        (store.folder / name).touch()
    assert store.foreign() == ["mine.lock", "other.timing.locked"]


def test_links_and_copies_of_engines_are_not_pruned(store, tmp_path):
    linked = store.put(KEY, b"1", model="tiny", seconds=1)
    elsewhere = tmp_path / "big.engine"
    linked.path.rename(elsewhere)
    linked.path.symlink_to(elsewhere)
    other = store.put(replace(KEY, capacity=256), b"2", model="tiny", seconds=1)
    description = other.path.with_suffix(".json")
    description.rename(tmp_path / "description.json")
    description.symlink_to(tmp_path / "description.json")
    copied = store.put(replace(KEY, capacity=512), b"3", model="tiny", seconds=1)
    for suffix in (".json", ".engine"):  # under a name that is another engine's, and under any
        content = copied.path.with_suffix(suffix).read_bytes()
        (store.folder / (replace(KEY, capacity=1024).stem + suffix)).write_bytes(content)
        (store.folder / f"backup{suffix}").write_bytes(content)
    store.remove(copied)
    before = snapshot(tmp_path)
    run(store, "prune", "--all")
    assert snapshot(tmp_path) == before


def test_a_description_that_is_ours_and_of_no_use_is_pruned(store):
    path = store.put(KEY, b"1", model="tiny", seconds=1).path.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"version": 99}))
    run(store, "prune")
    assert not list(store.folder.iterdir())


def test_an_interrupted_build_is_pruned_unless_it_goes_on(store):
    info = store.put(KEY, b"engine", model="tiny", seconds=1)
    info.path.unlink()
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    part = store.folder / f".mt3-{os.getpid()}-0123456789abcdef.part"
    part.write_bytes(b"eng")
    before = snapshot(store.folder)
    run(store, "prune")
    assert snapshot(store.folder) == before
    part.rename(store.folder / f".mt3-{done.pid}-0123456789abcdef.part")
    run(store, "prune")
    assert not list(store.folder.iterdir())


def test_a_part_of_a_description_is_pruned(store):
    info = store.put(KEY, b"engine", model="tiny", seconds=1)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    part = store.folder / f".mt3-{done.pid}-0123456789abcdef.part"
    part.write_bytes(info.to_json()[:50])
    run(store, "prune")
    assert {path.suffix for path in store.folder.iterdir()} == {".engine", ".json"}


@pytest.mark.parametrize("suffix", [".engine", ".json"])
def test_no_foreign_file_is_replaced_by_an_engine(store, suffix):
    store.folder.mkdir()
    path = store.folder / (KEY.stem + suffix)
    path.write_bytes(b"{}")
    with pytest.raises(OutputError, match=r"is no engine of mt3-runtime.*--engines"):
        store.put(KEY, b"engine", model="tiny", seconds=1)
    assert snapshot(store.folder) == {path.name: b"{}"}


@pytest.mark.parametrize("when", [0, 1, 2, 3])
def test_two_builds_of_one_engine_leave_one_whole(store, monkeypatch, when):
    """Another process keeps its own before the n-th of our two writes, or behind both."""
    write, writes = module.write_atomic, []

    def interleaved(path, data):
        if len(writes) == when:
            writes.append("other")
            store.put(KEY, b"theirs", model="tiny", seconds=2)
        writes.append(path.suffix)
        write(path, data)

    monkeypatch.setattr(module, "write_atomic", interleaved)
    info = store.put(KEY, b"ours", model="tiny", seconds=1)
    assert store.load(info) in (b"ours", b"theirs")
    assert len(list(store.folder.iterdir())) == 2
    assert [found.sha256 for found in store.infos()] == [info.sha256]


def test_many_builds_of_one_engine_at_once(store):
    contents = [bytes([n]) * 1000 * (n + 1) for n in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda data: store.put(KEY, data, model="tiny", seconds=1), contents * 3))
    (info,) = store.infos()
    assert store.load(info) in contents
    assert len(list(store.folder.iterdir())) == 2


def test_a_place_that_others_keep_writing_is_left_to_them(store, monkeypatch):
    write = module.write_atomic

    def always(path, data):
        write(path, data if path.suffix == ".json" else data + b"other")

    monkeypatch.setattr(module, "write_atomic", always)
    monkeypatch.setattr(module, "_PAUSE", 0.0)
    with pytest.raises(OutputError, match="other processes keep writing .*; build it again"):
        store.put(KEY, b"ours", model="tiny", seconds=1)


NAMES = st.one_of(
    st.sampled_from([KEY.stem, replace(KEY, role="encoder").stem, "a", ".mt3-1-0123456789abcdef"]),
    st.text("abc-.", min_size=1, max_size=8).filter(lambda name: name.strip(".")),
)
ENDINGS = st.sampled_from([".json", ".engine", ".part", ".timing", ""])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(st.sampled_from(["format", "key", "name"]), st.text(max_size=5)).map(
        lambda document: json.dumps(document).encode()
    ),
)


@settings(max_examples=100, deadline=None)
@given(files=st.dictionaries(st.tuples(NAMES, ENDINGS), CONTENTS, max_size=8))
def test_whatever_is_in_a_folder_stays(tmp_path_factory, files):
    store = EngineStore(tmp_path_factory.mktemp("any"))
    for (name, ending), content in files.items():
        (store.folder / f"{name}{ending}").write_bytes(content)
    before = snapshot(store.folder)
    run(store, "prune", "--all")
    assert snapshot(store.folder) == before
