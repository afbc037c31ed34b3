"""Which device is taken, what is said where it is not, and whether the advice works."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import onnxruntime
import pytest

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime.backends import devices
from mt3_runtime.backends.base import FloatArray
from mt3_runtime.backends.ort_gpu.ort_cuda import CUDA, OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import cuda_libraries
from mt3_runtime.errors import BundleError, DeviceError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.models import catalogue, installed, shipped
from mt3_runtime.models.cache import cache_dir
from mt3_runtime.models.installed import export_advice


class WithCuda:
    """ONNX Runtime as a GPU wheel presents itself, in front of the real one."""

    def __getattr__(self, name: str) -> object:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "my cache"))
    monkeypatch.delenv("MT3_MODEL", raising=False)
    monkeypatch.setattr(devices, "_told", set())


@pytest.fixture
def lacking(tmp_path: Path, tiny_weights: Weights) -> Path:
    """A bundle without graphs for GPUs, in a place whose name must be quoted."""
    path = tmp_path / "it's my bundle"
    export_bundle(
        tiny_weights, variant_named("magenta_mt3"), path, source={"digest": "0"}, storage="fp16"
    )
    return path


@pytest.fixture
def package(lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has such a bundle inside."""
    bundle = Path(shutil.copytree(lacking, tmp_path / "data" / "default"))
    (tmp_path / "data" / "default.files.json").write_text('{"files": []}')
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "data")
    monkeypatch.setattr(catalogue, "list_models", catalogue.list_models.__wrapped__)
    return bundle


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that works."""
    monkeypatch.setattr(cuda_libraries, "is_there", lambda: True)
    monkeypatch.setattr(devices, "import_onnxruntime", WithCuda)
    here = DeviceSpec("CPUExecutionProvider", "cpu")
    monkeypatch.setattr(devices, "OrtCudaBackend", partial(OrtCudaBackend, place=here))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda", "no CUDA provider .*pip install .onnxruntime-gpu"),
        ("cuda:3", "no CUDA provider"),
        ("tensorrt", r"needs tensorrt, which cannot be imported .*extra \[trt\]: pip install"),
        ("tensorrt:1", "needs tensorrt, which cannot be imported"),
    ],
)
def test_the_device_is_asked_before_the_bundle(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, device: str, reason: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(DeviceError, match=reason):
        load_model(lacking, device=device)


def test_a_gpu_that_does_not_work_says_so_before_the_bundle(
    lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (devices, "mt3_runtime.backends.ort_gpu.ort_cuda"):
        monkeypatch.setattr(
            *((module, "import_onnxruntime") if not isinstance(module, str)
              else (f"{module}.import_onnxruntime",)), WithCuda
        )  # fmt: skip
    monkeypatch.setattr(cuda_libraries, "trouble", lambda _: "the driver is too old")
    monkeypatch.setattr(cuda_libraries, "preload", lambda _: None)
    with pytest.raises(DeviceError, match="the driver is too old"):
        load_model(lacking, device="cuda")


@pytest.mark.parametrize(
    ("capability", "arithmetic", "index", "refused"),
    [
        ((7, 5), "bf16", 0, True),
        ((7, 0), "bf16", 1, True),
        ((8, 0), "bf16", 0, False),
        ((12, 0), "bf16", 0, False),
        ((7, 5), "fp16", 0, False),
        ((7, 5), "fp32", 0, False),
        ((7, 5), "bf16", 9, False),  # no such GPU: said elsewhere
    ],
)
def test_bf16_is_refused_by_gpus_without_it(
    monkeypatch: pytest.MonkeyPatch, gpu: None, capability, arithmetic, index, refused
) -> None:
    """Before anything is loaded: the CUDA backend is never reached."""
    here = cuda_libraries.Gpu("FAKE GPU", capability, 1 << 33)
    monkeypatch.setattr(
        cuda_libraries, "driver", lambda: cuda_libraries.Driver((13, 0), (here, here))
    )
    reached = []
    monkeypatch.setattr(devices, "OrtCudaBackend", lambda *a, **k: reached.append(k["index"]))
    precision = SimpleNamespace(arithmetic=arithmetic)
    bundle = SimpleNamespace(path=Path("b"), manifest=SimpleNamespace(precision=precision))
    if refused:
        with pytest.raises(DeviceError, match=r"bf16, which FAKE GPU .* does not have.*8\.0"):
            devices.open_backend(bundle, f"cuda:{index}")
        assert not reached
    else:
        devices.open_backend(bundle, f"cuda:{index}")
        assert reached == [index]


def _advised(error: pytest.ExceptionInfo[BundleError]) -> list[str]:
    """The command of a message, as a shell reads it, without the program's name."""
    command = str(error.value).partition("Make them once with: ")[2].rpartition(", and use")
    program, *words = shlex.split(command[0] or command[2])
    assert program == "mt3"
    return words


@pytest.mark.usefixtures("gpu")
def test_the_shipped_model_names_a_command_that_works(
    package: Path, audio: FloatArray, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_model(device="cpu").transcribe_notes(audio)
    with pytest.raises(BundleError, match="part of the package") as caught:
        load_model(device="cuda")
    words = _advised(caught)
    assert words == ["export", "default", "--profiles", "cpu,portable"]
    assert main(words) == ExitCode.OK
    with load_model(device="cuda") as model:
        assert "portable" in model.device
        assert model.transcribe_notes(audio).token_digest == before.token_digest
    assert Bundle(package).profiles == ["cpu"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("taken", [False, True])
def test_any_bundle_names_a_command_that_works(
    lacking: Path, tiny_weights: Weights, taken: bool
) -> None:
    other = cache_dir() / "bundles" / "magenta_mt3"
    if taken:
        export_bundle(tiny_weights, variant_named("magenta_mt3"), other, source={"digest": "1"})
    lacking.chmod(0o555)
    with pytest.raises(BundleError, match="has graphs of profile cpu") as caught:
        load_model(lacking, device="cuda")
    lacking.chmod(0o755)
    assert main(_advised(caught)) == ExitCode.OK
    name = str(caught.value).rpartition("and use the model ")[2].rstrip(".")
    assert name == ("magenta_mt3-portable" if taken else "magenta_mt3")
    with load_model(name, device="cuda") as model:
        assert model.info.name == "magenta_mt3"
    if taken:
        assert Bundle(other).profiles == ["cpu"]


def test_advice_names_the_extra_where_it_is_missing(
    lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    advice = export_advice(Bundle(lacking), "portable")
    assert advice.startswith('Make them once with: pip install "msgpack>=1.0" "onnx>=1.20"')
    assert " && mt3 export" in advice


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("home", ["unknown", "unreadable"])
@pytest.mark.parametrize("model", ["default", "lacking"])
def test_a_gpu_is_passed_over_and_advice_given_without_a_cache_folder(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, home: str, model: str
) -> None:
    if model == "lacking":
        model = str(request.getfixturevalue("lacking"))

    def nowhere(*_: object) -> NoReturn:
        raise OptionError(f"the home folder is {home}")

    monkeypatch.setattr(installed, "installed_models", nowhere)
    if home == "unknown":
        monkeypatch.setattr(installed, "cache_dir", nowhere)
    with pytest.raises(BundleError, match="has graphs of profile cpu") as caught:
        load_model(model, device="cuda")
    name = str(caught.value).rpartition("and use the model ")[2].rstrip(".")
    words = _advised(caught)
    assert words[-2:] == ["-o", name.removeprefix("./")]
    assert name.startswith("./")
    assert load_model(model).device.startswith("cpu (")


@pytest.mark.usefixtures("gpu")
def test_auto_says_aloud_why_a_gpu_is_idle_and_once(
    lacking: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        assert load_model(lacking).device.startswith("cpu (")
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "not using cuda:0, because" in said.getMessage()
    assert "mt3 export" in said.getMessage()


def test_auto_says_what_a_gpu_needs(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A GPU beside a wheel for CPUs."""
    monkeypatch.setattr(cuda_libraries, "is_there", lambda: True)
    load_model(lacking)
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 'pip install "onnxruntime-gpu' in said.getMessage()


def test_auto_is_silent_where_there_is_no_gpu(
    lacking: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_libraries, "is_there", lambda: False)
    load_model(lacking)
    monkeypatch.setattr(devices, "import_onnxruntime", WithCuda)
    monkeypatch.setattr(devices, "OrtCudaBackend", _refuses)
    load_model(lacking)
    load_model(lacking, profile="cpu")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def _refuses(*_: object, **__: object) -> None:
    raise DeviceError("there is no NVIDIA driver")


@pytest.mark.usefixtures("gpu")
def test_auto_does_not_hide_a_damaged_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    data = bytearray((path / "decoder.portable.onnx").read_bytes())
    data[-1] ^= 1
    (path / "decoder.portable.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        load_model(path)


def test_the_default_model_says_the_same_in_all_profiles(
    default_bundle: Path, tmp_path: Path
) -> None:
    """What is exported from the shipped bundle, on the demo recording."""
    demo = Path(__file__).parents[2] / "calibration" / "demo" / "demo.flac"
    out = tmp_path / "again"
    words = ["export", str(default_bundle), "--profiles", "cpu,portable,compat", "-o", str(out)]
    assert main(words) == ExitCode.OK
    new, old = (Bundle(path).manifest.export_id.encode() for path in (out, default_bundle))
    for name in ("encoder.cpu.onnx", "decoder.cpu.onnx"):  # ids tell exporters' versions apart
        made = (out / name).read_bytes().replace(new, old)
        assert made == (default_bundle / name).read_bytes()
    with load_model(default_bundle, device="cpu") as model:
        expected = model.transcribe_notes(demo)
    assert expected.notes
    for profile in ("cpu", "portable", "compat"):
        with load_model(out, device="cpu", profile=profile) as model:
            found = model.transcribe_notes(demo)
        assert found.token_digest == expected.token_digest, profile
        assert [n.pitch for n in found.notes] == [n.pitch for n in expected.notes]
        assert np.allclose([n.onset for n in found.notes], [n.onset for n in expected.notes])
