"""Building, with polygraphy and TensorRT replaced by what remembers how it was called."""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from mt3_engines import build_command
from mt3_engines.build_command import BuildCommand
from mt3_engines.building.builder import (
    Tools,
    build_engine,
    cancellable,
    make_monitor,
    prepared_graph,
    profiles,
)
from mt3_engines.optional import import_polygraphy, import_tensorrt, make_logger, open_cuda
from mt3_engines.storage.keys import EngineTarget
from mt3_engines.storage.requests import BuildOptions, choose, make_keys
from mt3_engines.storage.requests import build_command as command_for
from mt3_engines.storage.shapes import make_plan
from mt3_engines.storage.store import EngineStore
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode
from mt3_runtime.errors import (
    BundleError,
    DeviceError,
    MissingDependencyError,
    OptionError,
    OutputError,
)
from mt3_runtime.imports.interrupts import Held
from tests import needs
from tests.pace import HANGS
from tests.trees import snapshot

#: Arguments of every `CreateConfig`.
ALWAYS = {"profiles", "tf32", "progress_monitor"}

HERE = EngineTarget("10.16.1.11", "9.0", "NVIDIA H200")


class Flag(Enum):
    DISTRIBUTIVE_INDEPENDENCE = 1
    REFIT_IDENTICAL = 2


class Monitor:
    """Stands in for the bindings' base class."""


class Severity(Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


def tensorrt(version: str = HERE.tensorrt, **changes: Any) -> SimpleNamespace:
    level = SimpleNamespace(AMPERE_PLUS="ampere", SAME_COMPUTE_CAPABILITY="same")
    logger = type("ILogger", (), {"Severity": Severity})
    known = {
        "BuilderFlag": Flag,
        "HardwareCompatibilityLevel": level,
        "IProgressMonitor": Monitor,
        "ILogger": logger,
    }
    return SimpleNamespace(__version__=version, **(known | changes))


def do_nothing() -> None:
    """There is one GPU, and every thread has it."""


@dataclass
class Loaders:
    """polygraphy's loaders, as far as they are used."""

    fails: bool = False
    builds: Callable[[Any], object] | None = None
    networks: list[tuple[bytes, dict]] = field(default_factory=list)
    configs: list[dict] = field(default_factory=list)
    flags: list[Any] = field(default_factory=list)

    class Profile(dict):
        def add(self, name, min, opt, max):  # noqa: A002  polygraphy's names
            assert min == opt == max
            self[name] = opt

    def NetworkFromOnnxBytes(self, model, **options):  # noqa: N802
        self.networks.append((model, options))
        return "network"

    def CreateConfig(self, **options):  # noqa: N802
        self.configs.append(options)
        return "config"

    def PostprocessConfig(self, config, func):  # noqa: N802
        assert config == "config"
        func(None, None, SimpleNamespace(set_flag=self.flags.append))
        return "finished"

    def EngineBytesFromNetwork(self, network, config, save_timing_cache):  # noqa: N802
        assert (network, config) == ("network", "finished")

        def build():
            if self.fails:
                raise RuntimeError("no kernel")
            if self.builds is not None:
                return self.builds(self.configs[-1]["progress_monitor"])
            with open(save_timing_cache, "wb") as file:
                file.write(b"timings")
            monitor = self.configs[-1]["progress_monitor"]
            monitor.phase_start("tactics", None, 2)
            assert monitor.step_complete("tactics", 0)
            monitor.phase_finish("tactics")
            return bytearray(b"engine %d" % len(self.configs))

        return build


def tools_of(loaders: Loaders) -> Tools:
    return Tools(tensorrt(), loaders, HERE, do_nothing)


@pytest.fixture
def bundle(tiny_bundle) -> Bundle:
    return Bundle(tiny_bundle)


@pytest.fixture
def store(tmp_path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def keys(bundle, wish=BuildOptions(), slots=(1, 4), capacities=(64,), place=HERE):  # noqa: B008
    return make_keys(bundle, make_plan(bundle.manifest, slots, capacities), wish, place)


def test_one_encoder_and_a_decoder_per_capacity(bundle):
    longest = bundle.manifest.decoding.max_tokens
    found = keys(bundle)
    assert [(key.role, key.slots, key.capacity) for key in found] == [
        ("encoder", (1,), 0),
        ("decoder", (1, 4), 64),
        ("decoder", (1, 4), longest),
    ]
    assert len({key.digest for key in found}) == 3


def test_networks_are_strongly_typed_and_shapes_fixed(bundle, store):
    loaders, seen = Loaders(), []
    key = keys(bundle)[1]
    info = build_engine(
        bundle,
        key,
        store=store,
        tools=tools_of(loaders),
        report=lambda *step: seen.append(step),
    )
    assert store.load(info) == b"engine 1"
    ((graph, options),) = loaders.networks
    assert options == {"strongly_typed": True}
    assert graph == prepared_graph(bundle, key).SerializeToString()
    (config,) = loaders.configs
    assert config["tf32"] is False
    assert not {"fp16", "int8", "bf16", "fp8", "calibrator"} & set(config)
    assert "load_timing_cache" not in config  # there was none yet
    inputs = {value.name for value in onnx.load_from_string(graph).graph.input}
    assert [set(profile) for profile in config["profiles"]] == [inputs, inputs]
    assert [profile["past_key_0"][0] for profile in config["profiles"]] == [1, 4]
    assert {profile["past_key_0"][2] for profile in config["profiles"]} == {64}
    assert loaders.flags == []
    assert seen == [(1, 2, "tactics")]
    build_engine(bundle, key, store=store, tools=tools_of(loaders))
    assert loaders.configs[1]["load_timing_cache"] == str(store.timing_cache(HERE))


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (BuildOptions(), {}),
        (BuildOptions(version_compatible=True), {"version_compatible": True}),
        (BuildOptions(hardware="ampere_plus"), {"hardware_compatibility_level": "ampere"}),
        (BuildOptions(hardware="same"), {"hardware_compatibility_level": "same"}),
        (BuildOptions(stripped=True), {"strip_plan": True}),
    ],
)
def test_wishes_reach_the_builder(bundle, store, wish, expected):
    loaders = Loaders()
    key = keys(bundle, wish)[0]
    build_engine(bundle, key, store=store, tools=tools_of(loaders))
    (config,) = loaders.configs
    assert {name: config[name] for name in set(config) - ALWAYS} == expected


def test_flags_polygraphy_does_not_know(bundle, store):
    loaders = Loaders()
    key = keys(bundle, BuildOptions("fp32", stripped=True))[1]
    build_engine(bundle, key, store=store, tools=tools_of(loaders))
    assert loaders.flags == [Flag.REFIT_IDENTICAL, Flag.DISTRIBUTIVE_INDEPENDENCE]


def test_a_zipped_bundle_gives_the_same_graphs(bundle, tiny_bundle, tmp_path):
    path = tmp_path / "tiny.mt3"
    with zipfile.ZipFile(path, "w") as archive:
        for file in tiny_bundle.iterdir():
            archive.write(file, file.name)
    for key in keys(bundle):
        assert prepared_graph(Bundle(path), key) == prepared_graph(bundle, key)


def test_weights_that_do_not_fit_are_the_bundles_fault(bundle, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("x holds values beyond fp16")

    monkeypatch.setattr("mt3_engines.building.builder.prepare", refuse)
    with pytest.raises(BundleError, match="decoder graph of .* x holds values beyond fp16"):
        prepared_graph(bundle, keys(bundle)[1])


def test_an_old_tensorrt_lacks_some(bundle, store):
    old = tensorrt(
        "10.3.0",
        BuilderFlag=SimpleNamespace(),
        HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
    )
    place = replace(HERE, tensorrt="10.3.0")
    loaders = Loaders()
    key = keys(bundle, BuildOptions(hardware="same"), place=place)[0]
    with pytest.raises(DeviceError, match="cannot build for 'same' hardware"):
        build_engine(bundle, key, store=store, tools=Tools(old, loaders, place, do_nothing))
    key = keys(bundle, BuildOptions("fp32"), place=place)[1]
    build_engine(bundle, key, store=store, tools=Tools(old, loaders, place, do_nothing))
    assert loaders.flags == []
    graph = onnx.load_from_string(loaders.networks[-1][0])
    assert "TensorScatter" not in {node.op_type for node in graph.graph.node}


def test_a_failed_build_leaves_nothing_and_says_why(bundle, store):
    tools = tools_of(Loaders(fails=True))
    with pytest.raises(DeviceError, match="could not build the encoder engine: no kernel"):
        build_engine(bundle, keys(bundle)[0], store=store, tools=tools)
    assert not list(store.folder.iterdir())


def test_a_graph_that_would_be_misread_is_refused(bundle, monkeypatch):
    monkeypatch.setattr(
        "mt3_engines.building.builder.faults", lambda model, version: ["no such thing"]
    )
    with pytest.raises(BundleError, match="does not read the encoder .* no such thing"):
        prepared_graph(bundle, keys(bundle)[0])


def test_profiles_name_the_inputs_of_the_graph(bundle):
    manifest = bundle.manifest
    for key in keys(bundle):
        graph = bundle.graph(key.role, "portable")
        for profile in profiles(manifest, key):
            assert set(profile) == set(graph.inputs)


def test_the_monitor_follows_phases():
    seen = []
    cancelled = threading.Event()
    monitor = make_monitor(tensorrt(), lambda *step: seen.append(step), cancelled)
    monitor.phase_start("outer", None, 3)
    monitor.phase_start("inner", "outer", 2)
    assert monitor.step_complete("inner", 1)
    monitor.phase_finish("inner")
    assert monitor.step_complete("outer", 0)
    assert seen == [(2, 2, "inner"), (1, 3, "outer")]
    cancelled.set()
    assert not monitor.step_complete("outer", 1)


@pytest.fixture
def signals_raise() -> Iterator[None]:
    """Both signals raise KeyboardInterrupt, as they do under `mt3`."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_raise")
@pytest.mark.parametrize("arrives", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("before", [0, 1, 7])
def test_a_signal_cancels_a_build_and_nothing_is_kept(bundle, store, arrives, before):
    """The double acts as a library does: signals that arrive in its thread wait for its end."""
    ends = []

    def build(monitor):
        with Held():
            for step in range(round(HANGS / 0.005)):
                if step == before:
                    signal.raise_signal(arrives)
                if not monitor.step_complete("tactics", step):
                    ends.append("cancelled")
                    raise RuntimeError("cancelled by the user")
                time.sleep(0.005)
            pytest.fail("nothing cancelled the build")

    tools = tools_of(Loaders(builds=build))
    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, keys(bundle)[0], store=store, tools=tools)
    assert ends == ["cancelled"]
    assert not list(store.folder.iterdir())


@pytest.mark.usefixtures("signals_raise")
def test_a_build_that_is_done_as_the_signal_arrives_is_not_kept(bundle, store):
    def build(monitor):
        signal.raise_signal(signal.SIGINT)
        return b"engine"

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, keys(bundle)[0], store=store, tools=tools_of(Loaders(builds=build)))
    assert not list(store.folder.iterdir())


def test_the_thread_that_builds_uses_the_gpu_that_was_asked_for(bundle, store):
    used, built = [], []
    loaders = Loaders(builds=lambda monitor: built.append(threading.get_ident()) or b"engine")
    tools = Tools(tensorrt(), loaders, HERE, lambda: used.append(threading.get_ident()))
    build_engine(bundle, keys(bundle)[0], store=store, tools=tools)
    assert used == built != []


@pytest.mark.parametrize("error", [ValueError("v"), DeviceError("d"), SystemExit(3)])
def test_what_the_work_raises_and_returns_passes_unchanged(error):
    cancelled, made = threading.Event(), object()

    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        cancellable(fail, cancelled)
    assert caught.value is error
    assert cancellable(lambda: made, cancelled) is made
    assert not cancelled.is_set()


def test_what_tensorrt_says_is_logged(caplog):
    logger = make_logger(tensorrt())
    with caplog.at_level(logging.INFO, "mt3_engines"):
        logger.log(Severity.ERROR, "bad %s")
        logger.log(Severity.VERBOSE, "chatter")
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("ERROR", "bad %s")]


def test_missing_packages_name_the_extra():
    for call in (import_tensorrt, lambda: open_cuda(0)):
        with pytest.raises(MissingDependencyError, match=r"extra \[trt\]: pip install"):
            call()


# Choosing what runs ------------------------------------------------------------------------------


def put(store, bundle, wish=BuildOptions(), **options):  # noqa: B008
    made = keys(bundle, wish, **options)
    return [store.put(key, b"x", model="tiny", seconds=1) for key in made]


def test_a_whole_set_is_chosen(bundle, store):
    encoder, *decoders = put(store, bundle)
    found = choose(bundle, store, HERE)
    assert found.encoder == encoder
    assert list(found.decoders.values()) == decoders
    assert found.plan == make_plan(bundle.manifest, (1, 4), (64,))
    assert found.precision == "fp16"


def test_exact_engines_are_preferred_and_others_can_be_asked_for(bundle, store):
    put(store, bundle)
    put(store, bundle, BuildOptions("fp32"), slots=(2,))
    assert choose(bundle, store, HERE).precision == "fp32"
    assert choose(bundle, store, HERE, "fp16").plan.slots == (1, 4)


def test_more_numbers_of_rows_are_preferred(bundle, store):
    put(store, bundle)
    put(store, bundle, slots=(1, 2, 8))
    assert choose(bundle, store, HERE).plan.slots == (1, 2, 8)


def test_missing_engines_are_named_with_the_command(bundle, store):
    with pytest.raises(DeviceError) as refusal:
        choose(bundle, store, HERE, "fp32")
    assert str(refusal.value).endswith(command_for(bundle, "fp32"))
    _, small, large = put(store, bundle)
    large.path.unlink()
    with pytest.raises(DeviceError, match="no encoder|no decoder|do not go together"):
        choose(bundle, store, HERE)
    store.remove(small)
    with pytest.raises(DeviceError, match="mt3 build"):
        choose(bundle, store, HERE)


def test_engines_for_elsewhere_are_named(bundle, store):
    put(store, bundle, slots=(1, 8, 32), capacities=(128, 384))
    with pytest.raises(DeviceError, match="built with TensorRT 10.16.1.11, here is 11.4.0"):
        choose(bundle, store, replace(HERE, tensorrt="11.4.0"))


# The command -------------------------------------------------------------------------------------


def run(*arguments) -> int:
    parser, command = argparse.ArgumentParser(), BuildCommand()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


@pytest.fixture
def loaders(monkeypatch) -> Loaders:
    """A machine with everything."""
    loaders = Loaders()
    gpu = SimpleNamespace(name=HERE.gpu, capability=HERE.capability, use=do_nothing)
    monkeypatch.setattr(build_command, "import_tensorrt", tensorrt)
    monkeypatch.setattr(build_command, "import_polygraphy", lambda: loaders)
    monkeypatch.setattr(build_command, "open_cuda", lambda index: gpu)
    return loaders


def test_the_command_builds_what_is_missing(tiny_bundle, store, loaders, capsys):
    wanted = (tiny_bundle, "--engines", store.folder, "--slots", "1,4", "--capacities", "64")
    assert run(*wanted) == ExitCode.OK
    paths = capsys.readouterr().out.split()
    assert len(paths) == len(loaders.networks) == 3
    assert run(*wanted) == ExitCode.OK
    captured = capsys.readouterr()
    assert captured.out.split() == paths
    assert captured.err.count("is there already") == 3
    assert len(loaders.networks) == 3
    assert run(*wanted, "--rebuild") == ExitCode.OK
    assert len(loaders.networks) == 6
    assert run(*wanted, "--strip") == ExitCode.OK  # other files, though the same work
    assert len(loaders.networks) == 9
    assert run(*wanted, "--strip") == ExitCode.OK
    assert len(loaders.networks) == 9


def test_the_log_is_kept(tiny_bundle, store, loaders, tmp_path):
    path = tmp_path / "build.log"
    run(tiny_bundle, "--engines", store.folder, "--log", path)
    logging.getLogger("mt3_engines").info("afterwards")
    assert path.exists()
    assert "afterwards" not in path.read_text()
    with pytest.raises(OSError, match="cannot write"):
        run(tiny_bundle, "--engines", store.folder, "--log", tmp_path / "no" / "where")


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_graphs_are_written_without_tensorrt(tiny_bundle, tmp_path, capsys, version):
    wanted = ("--graphs", tmp_path / "graphs", "--tensorrt", version, "--capacities", "64")
    assert run(tiny_bundle, *wanted) == ExitCode.OK
    paths = capsys.readouterr().out.split()
    assert len(paths) == 3
    for path in paths:
        onnx.checker.check_model(path, full_check=True)


def test_graphs_replace_older_graphs_and_nothing_else(tiny_bundle, tmp_path, capsys):
    words = ("--graphs", tmp_path, "--tensorrt", "10.16", "--capacities", "64")
    assert run(tiny_bundle, *words) == ExitCode.OK
    first = snapshot(tmp_path)
    assert run(tiny_bundle, *words) == ExitCode.OK
    assert snapshot(tmp_path) == first
    for mine in (b"not ONNX", onnx.helper.make_model(onnx.helper.make_graph([], "mine", [], []))):
        content = mine if isinstance(mine, bytes) else mine.SerializeToString()
        (tmp_path / "encoder.fp16.onnx").write_bytes(content)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match=r"holds encoder\.fp16\.onnx, which mt3 did not"):
            run(tiny_bundle, *words)
        assert snapshot(tmp_path) == before


def test_a_log_does_not_replace_the_bundle(tiny_bundle, store, loaders, tmp_path):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = snapshot(bundle)
    with pytest.raises(OutputError, match="part of the model"):
        run(bundle, "--engines", store.folder, "--log", bundle / "bundle.json")
    assert snapshot(bundle) == before


def test_senseless_wishes_are_refused(tiny_bundle, tmp_path):
    with pytest.raises(OptionError):
        run(tiny_bundle, "--slots", "0")
    with pytest.raises(DeviceError, match="not supported"):
        run(tiny_bundle, "--graphs", tmp_path, "--tensorrt", "9.3")


def test_polygraphy_logs_instead_of_printing():
    needs.package("polygraphy")
    loaders = import_polygraphy()
    for name in ("CreateConfig", "EngineBytesFromNetwork", "NetworkFromOnnxBytes", "Profile"):
        assert hasattr(loaders, name)
