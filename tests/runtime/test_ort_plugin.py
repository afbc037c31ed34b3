"""Plug-in providers, played by ONNX Runtime's CPU provider: what is registered, asked, refused.

What a true plug-in does is in test_openvino.py.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_runtime.backends import ort_plugin
from mt3_runtime.backends.devices import Device, open_backend
from mt3_runtime.backends.ort_plugin import OrtPluginBackend, registered
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.errors import BundleError, DeviceError, OptionError
from mt3_runtime.loading import load_model
from tests.played_plugin import Runtime, put


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch):
    """Puts a plug-in's package, named ``played`` or otherwise, and a runtime in place."""
    return partial(put, monkeypatch)


def _features(bundle: Path) -> np.ndarray:
    spec = Bundle(bundle).manifest.features
    return np.random.default_rng(3).normal(size=(3, spec.frames, spec.bins)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("plugin:openvino", Device("plugin", 0, "openvino")),
        ("plugin:openvino:2", Device("plugin", 2, "openvino")),
        ("plugin:nv-tensorrt-rtx-cu13:12", Device("plugin", 12, "nv-tensorrt-rtx-cu13")),
        ("cuda:3", Device("cuda", 3)),
    ],
)
def test_names_are_read(name: str, device: Device) -> None:
    assert Device.parse(name) == device


@pytest.mark.parametrize(
    "name",
    ["plugin", "plugin:", "plugin::1", "plugin:a/b", "plugin:../x", "plugin:A", "plugin:os.path",
     "plugin:openvino:", "plugin:openvino:x", "plugin:openvino:1:2", "plugin:openvino ", "cpu:1"],
)  # fmt: skip
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"plugin:NAME\[:n\]"):
        Device.parse(name)


def test_a_plugin_says_what_the_cpu_says(play, tiny_bundle: Path) -> None:
    features = _features(tiny_bundle)
    with load_model(tiny_bundle, device="cpu") as model:
        expected = [list(sequence.tokens) for sequence in model.forward(features)]
    runtime = play(Runtime(devices=2))
    with load_model(tiny_bundle, device="plugin:played:1") as model:
        assert model.device.startswith("plugin:played:1 (chip 1, onnxruntime-ep-played ")
        assert [list(sequence.tokens) for sequence in model.forward(features)] == expected
    assert runtime.loaded == ["/lib/played.so"]
    used = [device for given, _ in runtime.given for device in given]
    assert {device.ep_metadata["FULL_DEVICE_NAME"] for device in used} == {"chip 1"}


def test_a_library_is_registered_once(play, tiny_bundle: Path) -> None:
    runtime = play(Runtime())
    for _ in range(3):
        registered("played")
    OrtPluginBackend(Bundle(tiny_bundle), "played", threads=1).close()
    assert runtime.loaded == ["/lib/played.so"]


def test_the_profile_may_be_chosen(play, tiny_bundle: Path) -> None:
    play(Runtime())
    for profile, used in ((None, "compat"), ("portable", "portable"), ("compat", "compat")):
        backend = open_backend(Bundle(tiny_bundle), "plugin:played", threads=1, profile=profile)
        assert f"encoder of profile {used} in fp32" in backend.description
    with pytest.raises(OptionError, match="profile cpu does not run on device plugin"):
        open_backend(Bundle(tiny_bundle), "plugin:played", profile="cpu")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (
            ("RMSNormalization",),
            r"as a whole: node_0 \(RMSNormalization\) on CPUExecutionProvider\.",
        ),
        (("Gelu", "Attention", "Add", "Mul", "Mul"), r"node_2 \(Add\) on \S+ and 2 more\."),
    ],
)
def test_nodes_that_land_elsewhere_are_named(play, tiny_bundle, lost, said) -> None:
    play(Runtime(lost=lost))
    with pytest.raises(DeviceError, match=said):
        open_backend(Bundle(tiny_bundle), "plugin:played")


def test_fewer_bits_than_asked_for_are_refused(play, tiny_bundle: Path) -> None:
    play(Runtime(coarse=True))
    with pytest.raises(DeviceError, match=r"asked for products in fp32, and .* in fewer bits"):
        open_backend(Bundle(tiny_bundle), "plugin:played")


def test_more_bits_than_asked_for_are_refused(play, tiny_bundle: Path) -> None:
    play(Runtime())
    with pytest.raises(DeviceError, match=r"asked for products in bf16, and .* in all bits"):
        OrtPluginBackend(Bundle(tiny_bundle), "played", arithmetic="bf16")
    play(Runtime(coarse=True))
    OrtPluginBackend(Bundle(tiny_bundle), "played", arithmetic="bf16").close()


def test_openvino_is_asked_for_the_arithmetic_and_the_threads(play, tiny_bundle: Path) -> None:
    runtime = play(Runtime(), "openvino")
    backend = OrtPluginBackend(Bundle(tiny_bundle), "openvino", threads=4)
    backend.lane(2, alone=True)
    asked = [json.loads(options["load_config"])["CPU"] for _, options in runtime.given]
    assert {each["INFERENCE_PRECISION_HINT"] for each in asked} == {"f32"}
    shares = {(each["NUM_STREAMS"], each["INFERENCE_NUM_THREADS"]) for each in asked}
    assert shares == {("4", "4"), ("1", "4")}


@pytest.mark.parametrize("name", ["absent", "not-there"])
def test_an_absent_package_is_named(tiny_bundle: Path, name: str) -> None:
    with pytest.raises(DeviceError, match=f'pip install "onnxruntime-ep-{name}"'):
        open_backend(Bundle(tiny_bundle), f"plugin:{name}")


def test_the_command_ends_with_the_code_of_devices(tiny_bundle: Path, tmp_path, capsys) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"RIFF")
    code = main(
        ["transcribe", str(audio), "--model", str(tiny_bundle), "--device", "plugin:absent"]
    )
    said = capsys.readouterr().err.strip().splitlines()
    assert code == ExitCode.UNUSABLE
    assert len(said) == 1
    assert "onnxruntime-ep-absent" in said[0]


def test_what_a_plugin_cannot_do_is_said(play, tiny_bundle: Path) -> None:
    bundle = Bundle(tiny_bundle)
    play(Runtime(devices=0))
    with pytest.raises(DeviceError, match="finds no device of its own"):
        open_backend(bundle, "plugin:played")
    play(Runtime(devices=2))
    with pytest.raises(DeviceError, match=r"offers plugin:played:0 chip 0, plugin:played:1 chip 1"):
        open_backend(bundle, "plugin:played:2")
    broken = play(Runtime())
    broken.broken = "undefined symbol: CreateEpFactories"
    with pytest.raises(DeviceError, match=r"does not work with .* CreateEpFactories"):
        open_backend(bundle, "plugin:played")
    play(Runtime(), get_library_path=lambda: (_ for _ in ()).throw(FileNotFoundError("no library")))
    with pytest.raises(DeviceError, match="does not work with .* no library"):
        open_backend(bundle, "plugin:played")


def test_an_old_runtime_is_named(monkeypatch, tiny_bundle: Path) -> None:
    old = SimpleNamespace(__version__="1.22.0", get_available_providers=list)
    monkeypatch.setattr(ort_plugin, "import_onnxruntime", lambda: old)
    with pytest.raises(DeviceError, match=r"needs ONNX Runtime 1\.24 or newer, and 1\.22\.0 is"):
        registered("openvino")


def test_a_bundle_without_the_graphs_is_told_how(play, cpu_only: Path) -> None:
    play(Runtime())
    with pytest.raises(BundleError, match=r"device plugin runs compat or portable.*--profiles"):
        open_backend(Bundle(cpu_only), "plugin:played")


@pytest.fixture
def cpu_only(tmp_path: Path, tiny_weights) -> Path:
    path = tmp_path / "cpu only"
    export_bundle(
        tiny_weights, variant_named("magenta_mt3"), path, source={"digest": "0"}, profiles=("cpu",)
    )
    return path
