"""OpenVINO's plug-in provider itself, on this machine's CPU.

Its package (52 MB to download, 180 MB installed) lives in an environment of its own:
openvino-requirements.txt, its Python in MT3_OPENVINO_PYTHON.  Nothing of its speed is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

import mt3_runtime
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.loading import load_model
from tests import needs

SCRIPT = """
import json, sys
import numpy as np
from mt3_runtime.backends import ort_plugin
from mt3_runtime.errors import MT3Error
from mt3_runtime.loading import load_model
bundle, features, device, profile, unasked = sys.argv[1:]
if unasked:  # as a program would that does not know what the plug-in does by itself
    ort_plugin.options_of = lambda *_: lambda *_: {}
try:
    with load_model(bundle, device=device, profile=profile or None, threads=2) as model:
        found = [sequence.tokens.tolist() for sequence in model.forward(np.load(features))]
        print(json.dumps({"device": model.device, "tokens": found}))
except MT3Error as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


@pytest.fixture(scope="module")
def features(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of six segments of noise."""
    spec = Bundle(tiny_bundle).manifest.features
    path = tmp_path_factory.mktemp("features") / "features.npy"
    noise = np.random.default_rng(7).normal(size=(6, spec.frames, spec.bins))
    np.save(path, noise.astype(np.float32))
    return path


@pytest.fixture
def say(tiny_bundle: Path, features: Path, tmp_path: Path):
    """What the environment with the plug-in says of the tiny bundle."""
    python = needs.python_of("openvino")
    # The tested package alone: what else is installed here must not be found.
    (tmp_path / "mt3_runtime").symlink_to(Path(mt3_runtime.__file__).parent)

    def run(device: str = "plugin:openvino", profile: str = "", unasked: str = "") -> dict:
        arguments = [str(tiny_bundle), str(features), device, profile, unasked]
        done = subprocess.run(
            [python, "-c", SCRIPT, *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run


def test_it_says_what_the_cpu_provider_says(say, tiny_bundle: Path, features: Path) -> None:
    with load_model(tiny_bundle, device="cpu", threads=1) as model:
        expected = [sequence.tokens.tolist() for sequence in model.forward(np.load(features))]
    found = say()
    assert found["tokens"] == expected
    assert found["device"].startswith("plugin:openvino:0 (")
    assert "onnxruntime-ep-openvino 1.8.1" in found["device"]
    assert "encoder of profile compat in fp32" in found["device"]


def test_what_it_does_not_take_is_named(say) -> None:
    found = say(profile="portable")
    assert found["error"] == "DeviceError"
    assert "(RMSNormalization) on CPUExecutionProvider" in found["text"]
    assert "encoder.portable.onnx would not run on device plugin:openvino:0" in found["text"]


def test_a_device_that_is_not_there_is_refused(say) -> None:
    found = say("plugin:openvino:9")
    assert found["error"] == "DeviceError"
    assert "onnxruntime-ep-openvino 1.8.1 offers plugin:openvino:0 " in found["text"]


def test_bits_that_nobody_asked_to_lose_are_refused(say) -> None:
    """With AMX or AVX-512 BF16 the plug-in multiplies in bf16 unless it is told not to."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    found = say(unasked="yes")
    if {"amx_bf16", "avx512_bf16"} & set(flags):
        assert found["error"] == "DeviceError"
        assert "asked for products in fp32" in found["text"]
    else:
        assert "tokens" in found
