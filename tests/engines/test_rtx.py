"""Device rtx on the fake GPU: targets, keys, kernels that are kept, the command, refusals."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mt3_engines import build_command, checks, optional
from mt3_engines.build_command import BuildCommand
from mt3_engines.building.builder import prepared_graph
from mt3_engines.optional import import_polygraphy
from mt3_engines.running import backend as module
from mt3_engines.storage.kernels import KERNELS, keep_kernels, read_kernels
from mt3_engines.storage.keys import EngineKey, EngineTarget
from mt3_engines.storage.requests import BuildOptions, choose, make_keys
from mt3_engines.storage.shapes import make_plan
from mt3_engines.storage.store import EngineStore
from mt3_engines.targets import parse_targets
from mt3_engines.versions import RTX, TENSORRT
from mt3_runtime import cli
from mt3_runtime.backends.devices import Device
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.errors import BundleError, DeviceError, OptionError, OutputError
from mt3_runtime.loading import load_model
from tests import needs
from tests.engines.test_backend import SLOTS, Machine, tokens
from tests.engines.test_build import Loaders, tensorrt
from tests.trees import snapshot

VERSION = "1.7.1.116"


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def machine(path, store, *, capability="8.9", targets=RTX.targets[1:], wish=None, **options):
    wish = wish or BuildOptions("fp32")
    return Machine(
        path, store, VERSION, wish, maker=RTX, targets=targets, capability=capability, **options
    )


# Running ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", RTX.targets[1:])
def test_one_engine_says_what_the_cpu_says_on_all_its_targets(
    tiny_bundle, store, audio, capability
):
    audio = audio[:50000]
    built = machine(tiny_bundle, store, capability=capability)
    assert f"rtx (FAKE GPU, TensorRT for RTX {VERSION}" in built.backend().description
    expected = tokens(load_model(tiny_bundle, profile="portable"), audio)
    assert tokens(built.model(), audio) == expected


def test_the_second_start_finishes_nothing(tiny_bundle, store, audio):
    first = machine(tiny_bundle, store)
    with first.model(workers=1) as model:
        model.warmup()
        tokens(model, audio)
    assert first.tensorrt.finished
    kept = [path for path in store.folder.iterdir() if path.suffix == KERNELS]
    assert len(kept) == len(first.infos)
    second = machine_again(first)
    with second.model(workers=1) as model:
        model.warmup()
        tokens(model, audio)
    assert second.tensorrt.finished == []


def machine_again(first: Machine) -> Machine:
    """The same engines in another process."""
    second = object.__new__(Machine)
    vars(second).update(vars(first))
    second.tensorrt = SimpleNamespace(**vars(first.tensorrt))
    first.tensorrt.finished.clear()
    return second


def test_another_gpu_has_kernels_of_its_own(tiny_bundle, store):
    first = machine(tiny_bundle, store)
    first.backend().close()
    count = len(store.kernels())
    names = {path.name for path in store.folder.iterdir() if path.suffix == KERNELS}
    first.cuda.name = "ANOTHER GPU"
    machine_again(first).backend().close()
    both = {path.name for path in store.folder.iterdir() if path.suffix == KERNELS}
    assert names < both
    assert len(both) == 2 * len(names)
    assert count == 0  # none without its engine


DAMAGES = {
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "empty": lambda data: b"",
    "head alone": lambda data: data[:30],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_kernels_are_made_again(tiny_bundle, store, audio, damage, caplog):
    first = machine(tiny_bundle, store)
    first.backend().close()
    for path in (p for p in store.folder.iterdir() if p.suffix == KERNELS):
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again = machine_again(first)
    expected = tokens(load_model(tiny_bundle, profile="portable"), audio[:40000])
    with again.model() as model:
        assert tokens(model, audio[:40000]) == expected
    assert again.tensorrt.finished


def test_kernels_of_another_driver_are_made_again(tiny_bundle, store):
    first = machine(tiny_bundle, store)
    first.backend().close()
    kept = [path for path in store.folder.iterdir() if path.suffix == KERNELS]
    for path in kept:
        keep_kernels(path, b"kernels of another driver")
    again = machine_again(first)
    again.backend().close()
    assert again.tensorrt.finished
    assert all(read_kernels(path) != b"kernels of another driver" for path in kept)


def test_kernels_that_cannot_be_kept_are_done_without(
    tiny_bundle, store, audio, monkeypatch, caplog
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    first = machine(tiny_bundle, store)
    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING), first.model() as model:
        assert tokens(model, audio[:40000])
    assert "kernels are not kept" in caplog.text
    assert not [path for path in store.folder.iterdir() if path.suffix in (KERNELS, ".part")]


@pytest.mark.parametrize("writable", [True, False])
def test_kernels_go_where_one_may_write(tiny_bundle, store, monkeypatch, tmp_path, writable):
    """Engines of an image lie where only root may write."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("MT3_CACHE", str(cache))
    monkeypatch.setattr(os, "access", lambda path, mode: writable or cache in path.parents)
    first = machine(tiny_bundle, store)
    first.backend().close()
    beside = {path.suffix for path in store.folder.iterdir()} == {".engine", ".json"}
    assert beside is not writable
    assert (cache / "engines").exists() is not writable
    again = machine_again(first)
    again.backend().close()
    assert again.tensorrt.finished == []


def test_kernels_do_not_replace_anything_else(tiny_bundle, store):
    first = machine(tiny_bundle, store)
    first.backend().close()
    kept = [path for path in store.folder.iterdir() if path.suffix == KERNELS]
    for path in kept:
        path.write_bytes(b"mine")
    machine_again(first).backend().close()
    assert all(path.read_bytes() == b"mine" for path in kept)
    assert {path.name for path in kept} <= set(store.foreign())


def test_prune_takes_kernels_with_their_engines(tiny_bundle, store, capsys):
    first = machine(tiny_bundle, store)
    first.backend().close()
    assert store.foreign() == []
    words = ["engines", "prune", "--engines", str(store.folder)]
    first.infos[0].path.with_suffix(".json").unlink()
    first.infos[0].path.unlink()
    assert store.kernels()
    assert cli.main(words) == ExitCode.OK
    assert not store.kernels()
    assert cli.main([*words, "--all"]) == ExitCode.OK
    assert list(store.folder.iterdir()) == []


def test_zeros_in_the_place_of_products_are_noticed(tiny_bundle, store):
    """An exact decoder on Turing, as if somebody had built one."""
    built = machine(tiny_bundle, store, capability="7.5", targets=("7.5", "8.9"))
    for info in built.infos:  # with matrix products: those are what Turing lacks
        key = EngineKey(**{**vars(info.key), "targets": ("8.9",)})
        data = prepared_graph(built.bundle, key).SerializeToString()
        store.put(info.key, data, model="t", seconds=1)
    with pytest.raises(DeviceError, match="computes nonsense"):
        built.backend()
    assert built.cuda.nothing_left()


def test_turing_gets_sums_of_products(tiny_bundle, store, audio):
    audio = audio[:40000]
    built = machine(
        tiny_bundle, store, capability="7.5", targets=RTX.targets, wish=BuildOptions("fp16")
    )
    assert all(tokens(built.model(), audio))


# What is refused ----------------------------------------------------------------------------------


def test_engines_for_other_targets_are_refused(tiny_bundle, store):
    built = machine(tiny_bundle, store, targets=("8.0", "8.6"), capability="8.9")
    with pytest.raises(DeviceError) as refusal:
        built.backend()
    said = str(refusal.value)
    assert "was built for compute capability 8.0, 8.6, and FAKE GPU has 8.9" in said
    assert str(tiny_bundle) in said
    assert said.endswith("--for rtx --precision fp32")


@pytest.mark.parametrize(
    ("capability", "remedy"),
    [("9.0", "device tensorrt or cuda serves it"), ("10.0", "device tensorrt or cuda"),
     ("8.7", "device tensorrt or cuda"), ("7.0", "use device cuda or cpu")],
)  # fmt: skip
def test_gpus_without_a_target_are_refused_before_engines_are_looked_for(
    tiny_bundle, store, capability, remedy
):
    built = machine(tiny_bundle, store, capability=capability)
    with pytest.raises(DeviceError, match=f"does not run on FAKE GPU.*{capability}.*{remedy}"):
        built.backend()


@pytest.mark.parametrize("here", ["1.7.2.5", "1.8.0.1"])
def test_engines_of_another_version_are_refused(tiny_bundle, store, here):
    built = machine(tiny_bundle, store)
    built.tensorrt.__version__ = here
    with pytest.raises(
        DeviceError, match=rf"built with TensorRT for RTX 1\.7\.1\.116, here is {here}"
    ):
        built.backend()


@pytest.mark.parametrize("version", ["1.6.9", "2.0.1", "11.4.0", "x"])
def test_versions_that_nobody_has_looked_at(version):
    with pytest.raises(DeviceError, match="TensorRT for RTX .* is not supported"):
        RTX.version(version)


def test_engines_of_the_other_maker_are_not_taken(tiny_bundle, store):
    """Both may be installed, and both kinds of engines lie in one folder."""
    ordinary = Machine(tiny_bundle, store, capability="8.9")
    with pytest.raises(DeviceError, match="--for rtx"):
        choose(ordinary.bundle, store, EngineTarget(VERSION, "8.9", "FAKE GPU", "rtx"))
    rtx = machine(tiny_bundle, store)
    assert rtx.backend().description.startswith("rtx (")
    assert ordinary.backend().description.startswith("tensorrt (")
    assert choose(rtx.bundle, store, EngineTarget(VERSION, "8.9", "x", "rtx")).encoder.key.targets


def test_a_process_builds_with_one_of_them(monkeypatch):
    monkeypatch.setattr(needs.package("polygraphy.config"), "USE_TENSORRT_RTX", False)
    import_polygraphy(TENSORRT)
    with pytest.raises(DeviceError, match="need a process of their own"):
        import_polygraphy(RTX)


def test_the_entry_points(tiny_bundle, store, monkeypatch):
    built = machine(tiny_bundle, store)
    asked = []
    monkeypatch.setenv("MT3_ENGINES", str(store.folder))
    monkeypatch.setattr(
        module, "import_tensorrt", lambda maker: asked.append(maker) or built.tensorrt
    )
    monkeypatch.setattr(module, "open_cuda", lambda index, maker: asked.append(index) or built.cuda)
    backend = module.open_rtx(built.bundle, Device.parse("rtx:1"))
    assert backend.slots == max(SLOTS)
    assert asked == [RTX, 1]


def test_without_the_extra_the_device_names_it(tiny_bundle):
    with pytest.raises(DeviceError, match="device rtx was asked for.*needs tensorrt_rtx") as said:
        module.open_rtx(Bundle(tiny_bundle), Device.parse("rtx"))
    assert "pypi.nvidia.com" not in str(said.value)


@pytest.mark.parametrize("reason", ["no CUDA-capable device is detected", "driver insufficient"])
def test_without_a_gpu_it_is_one_sentence_and_the_documented_code(
    tiny_bundle, monkeypatch, capsys, audio, tmp_path, reason
):
    def no_gpu(index, maker):
        raise DeviceError(f"CUDA: cudaGetDeviceCount failed: {reason}. `mt3 doctor` looks at it.")

    monkeypatch.setattr(module, "import_tensorrt", lambda maker: tensorrt(VERSION))
    monkeypatch.setattr(module, "open_cuda", no_gpu)
    monkeypatch.setattr("mt3_runtime.backends.devices._registered", lambda device: module.open_rtx)
    demo = Path(__file__).parents[2] / "calibration" / "demo" / "demo.flac"
    words = ["transcribe", str(demo), "-m", str(tiny_bundle), "--device", "rtx"]
    assert cli.main([*words, "-o", str(tmp_path / "x.mid")]) == ExitCode.UNUSABLE
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert reason in said[0]
    assert not (tmp_path / "x.mid").exists()


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "needs an NVIDIA GPU, and there is no driver here: install"),
        (cuda_libraries.Driver((12, 4), ()), r"insufficient.*serves CUDA 12\.4"),
        (cuda_libraries.Driver((11, 8), ()), r"insufficient.*serves CUDA 11\.8"),
    ],
)
@pytest.mark.parametrize("maker", [RTX, TENSORRT])
def test_no_driver_and_an_old_one_are_told_apart(monkeypatch, driver, reason, maker):
    runtime = SimpleNamespace(
        cudaGetDeviceCount=lambda: (35, 0),
        cudaGetErrorString=lambda error: (0, b"CUDA driver version is insufficient"),
    )
    monkeypatch.setattr(optional, "_import", lambda name, maker: runtime)
    monkeypatch.setattr(cuda_libraries, "driver", lambda: driver)
    with pytest.raises(DeviceError, match=f"device {maker.name} needs.*{reason}|{reason}") as said:
        optional.open_cuda(0, maker)
    assert "\n" not in str(said.value)


# Targets and the command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sm89", ("8.9",)),
        ("SM120, sm75", ("7.5", "12.0")),
        ("sm86,sm86", ("8.6",)),
        ("all", RTX.targets),
        ("sm89,all", RTX.targets),
    ],
)
def test_targets(text, expected):
    assert parse_targets(text) == expected


@pytest.mark.parametrize(
    "text", ["", "sm", "sm1", "8.9", "sm89;sm86", "rtx4090", "sm²9", "sm89,", "sm50"]
)
def test_targets_that_do_not_exist(text):
    with pytest.raises(OptionError, match="has the targets sm75, sm80, .* or all") as refusal:
        parse_targets(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["sm90", "sm89,sm90", "all,sm100", "sm87"])
def test_targets_that_ordinary_tensorrt_serves(text):
    with pytest.raises(OptionError, match="ordinary TensorRT serves such GPUs.*--for tensorrt"):
        parse_targets(text)


def test_the_key_says_targets_and_version(tiny_bundle):
    bundle = Bundle(tiny_bundle)
    place = EngineTarget(VERSION, "8.6", "", "rtx", ("8.6", "12.0"))
    keys = make_keys(bundle, make_plan(bundle.manifest, (1, 4), (64,)), BuildOptions(), place)
    for key in keys:
        assert f"-rtx{VERSION}-sm86x120-" in key.stem
        assert EngineKey.from_dict(json.loads(json.dumps(key.to_dict())), "key") == key
        other = EngineKey(**{**vars(key), "targets": ("8.6",)})
        assert other.digest != key.digest
        assert other.same_work(key)


class RtxLoaders(Loaders):
    """Remembers targets as well."""

    def EngineBytesFromNetwork(self, network, config, save_timing_cache):  # noqa: N802
        assert save_timing_cache is None
        return lambda: b"engine %d" % len(self.configs)

    def PostprocessConfig(self, config, func):  # noqa: N802
        func(None, None, SimpleNamespace(set_flag=self.flags.append, clear_flag=self.flags.append))
        return "finished"


class RtxFlag:
    TF32, REQUIRE_USER_ALLOCATION, REFIT_IDENTICAL = "tf32", "user", "refit"


@pytest.fixture
def loaders(monkeypatch) -> RtxLoaders:
    """A machine with TensorRT for RTX, and no GPU."""
    loaders = RtxLoaders()
    real = tensorrt(VERSION, BuilderFlag=RtxFlag)
    monkeypatch.setattr(build_command, "import_tensorrt", lambda maker: real)
    monkeypatch.setattr(build_command, "import_polygraphy", lambda maker: loaders)
    monkeypatch.setattr(build_command, "open_cuda", None)
    config = SimpleNamespace(CreateConfigRTX=loaders.CreateConfig)
    monkeypatch.setitem(__import__("sys").modules, "polygraphy.backend.tensorrt_rtx", config)
    return loaders


def run(*arguments) -> int:
    parser, command = argparse.ArgumentParser(), BuildCommand()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


@pytest.mark.parametrize(
    ("words", "targets"),
    [
        ([], RTX.targets),
        (["--targets", "sm89,sm120"], ("8.9", "12.0")),
        (["--precision", "fp32"], RTX.targets[1:]),  # Turing has no such products
        (["--precision", "fp32", "--targets", "all"], RTX.targets[1:]),
    ],
)
def test_the_command_builds_for_targets_without_a_gpu(tiny_bundle, store, loaders, words, targets):
    assert run(tiny_bundle, "--for", "rtx", "--engines", store.folder, *words) == ExitCode.OK
    infos = list(store.infos())
    assert {info.key.targets for info in infos} == {targets}
    wanted = [(int(t.split(".")[0]), int(t.split(".")[1])) for t in targets]
    assert all(config["compute_capabilities"] == wanted for config in loaders.configs)
    assert loaders.flags == ["tf32", "user"] * len(infos)
    count = len(loaders.configs)
    assert run(tiny_bundle, "--for", "rtx", "--engines", store.folder, *words) == ExitCode.OK
    assert len(loaders.configs) == count  # they are there


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--for", "rtx", "--targets", "sm90"], "ordinary TensorRT serves"),
        (["--for", "rtx", "--gpu", "0"], "--gpu does not go with --for rtx"),
        (["--for", "rtx", "--hardware", "same"], "--hardware does not go"),
        (["--for", "rtx", "--version-compatible"], "--version-compatible does not go"),
        (["--for", "rtx", "--strip"], "only on the GPU they are for"),
        (["--targets", "sm89"], "--targets belongs to --for rtx"),
    ],
)
def test_options_that_do_not_go_together(tiny_bundle, store, words, reason):
    with pytest.raises(OptionError, match=reason):
        run(tiny_bundle, "--engines", store.folder, *words)
    assert not store.folder.exists()


@pytest.mark.parametrize("words", [["--precision", "fp32", "--targets", "sm75,sm89"]])
def test_arithmetic_that_a_named_target_lacks(tiny_bundle, store, loaders, words):
    with pytest.raises(DeviceError, match="no fp32 matrix products for compute capability 7.5"):
        run(tiny_bundle, "--for", "rtx", "--engines", store.folder, *words)
    assert not store.folder.exists()


def test_a_full_disk_leaves_nothing(tiny_bundle, store, loaders, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        run(tiny_bundle, "--for", "rtx", "--engines", store.folder)
    assert list(store.folder.iterdir()) == []


def test_a_bundle_without_the_graphs_says_how_to_make_them(
    default_bundle, store, loaders, tmp_path
):
    path = Path(shutil.copytree(default_bundle, tmp_path / "plain"))
    with pytest.raises(BundleError, match="device rtx runs portable.*mt3 export"):
        run(path, "--for", "rtx", "--engines", store.folder)
    assert not store.folder.exists()


def test_the_model_of_the_package_is_exported_first(
    default_bundle, store, loaders, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    assert run("default", "--for", "rtx", "--engines", store.folder) == ExitCode.OK
    printed = capsys.readouterr().out.split()
    assert all(path.endswith(".engine") for path in printed)
    made = Bundle(tmp_path / "cache" / "bundles" / "default")
    assert "portable" in made.profiles
    place = EngineTarget(VERSION, "8.9", "GPU", "rtx")
    assert choose(made, store, place).decoders
    before = snapshot(tmp_path / "cache")
    assert run("default", "--for", "rtx", "--engines", store.folder) == ExitCode.OK
    assert snapshot(tmp_path / "cache") == before


def test_graphs_are_written_in_its_form(tiny_bundle, tmp_path, capsys):
    assert run(tiny_bundle, "--for", "rtx", "--graphs", tmp_path / "g") == ExitCode.OK
    assert len(capsys.readouterr().out.split()) == 4
    with pytest.raises(DeviceError, match="TensorRT for RTX 10.16 is not supported"):
        run(tiny_bundle, "--for", "rtx", "--graphs", tmp_path / "g", "--tensorrt", "10.16")


def test_the_doctor_proves_one_of_two(monkeypatch):
    """Where both are installed, that which was asked for; it imports polygraphy for one alone."""
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: True)
    for maker in (RTX, TENSORRT):
        assert not list(checks.examine(asked=False, maker=maker))
        assert len(list(checks.examine(asked=True, maker=maker))) == 1


def test_the_doctor_leaves_polygraphy_to_what_is_installed(monkeypatch):
    settings = needs.package("polygraphy.config")
    monkeypatch.setattr(settings, "USE_TENSORRT_RTX", False)
    (found,) = checks.examine_rtx(asked=True)
    assert "tensorrt_rtx" in found.detail
    assert settings.USE_TENSORRT_RTX is False


def test_the_doctor_tells_building_from_running(monkeypatch):
    def no_gpu(index, maker):
        raise DeviceError("CUDA: no driver")

    monkeypatch.setattr(checks, "import_tensorrt", lambda maker: tensorrt(VERSION))
    monkeypatch.setattr(checks, "import_polygraphy", lambda maker: Loaders())
    monkeypatch.setattr(checks, "open_cuda", no_gpu)
    (found,) = checks.examine_rtx(asked=True)
    assert found.subject == "device rtx"
    assert "no driver" in found.detail
    assert "engines are built here, for other machines" in found.detail
    assert not list(checks.examine_rtx(asked=False))
