from __future__ import annotations

import re
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_runtime.cli import ExitCode, main
from mt3_runtime.diagnostics import cuda_libraries, doctor, wheels
from mt3_runtime.diagnostics.doctor import Level


@pytest.fixture
def cache(monkeypatch, tmp_path, nothing_shipped):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path))
    return tmp_path


def finding(subject: str) -> doctor.Finding:
    (found,) = [item for item in doctor.examine() if item.subject == subject]
    return found


def test_this_machine_is_fit(cache, capsys):
    assert main(["doctor"]) == ExitCode.OK
    report = capsys.readouterr().out
    assert re.search(r"^ok +CPUExecutionProvider +works$", report, re.MULTILINE)
    assert "libsndfile" in report
    assert "Transcription on device cpu works; problems found: 0." in report


def test_every_finding_that_is_not_all_right_has_a_remedy(cache):
    for item in doctor.examine():
        assert bool(item.remedy) == (item.level is not Level.OK)


def test_a_missing_base_package_breaks_the_cpu_path(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mido", None)
    assert main(["doctor"]) == ExitCode.UNUSABLE
    report = capsys.readouterr().out
    assert '-> pip install --force-reinstall "mido"' in report
    assert "Transcription on device cpu does not work; problems found: 1." in report


def test_a_device_that_was_asked_for_and_is_absent_is_a_problem(cache, monkeypatch, capsys):
    only = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", only)
    assert main(["doctor", "--device", "cuda"]) == ExitCode.UNUSABLE
    report = capsys.readouterr().out
    lacking = r"^problem +CUDAExecutionProvider +the installed ONNX Runtime lacks it .*\n +-> pip "
    assert re.search(lacking, report, re.MULTILINE)
    assert not any(one.subject == "CUDAExecutionProvider" for one in doctor.examine("cpu"))


def test_a_device_that_fails_is_a_problem_to_those_who_ask_for_it(cache, monkeypatch):
    monkeypatch.setattr(cuda_libraries, "trouble", lambda: "there is no GPU")
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(error="x"))
    levels = {
        device: one.level
        for device in ("cpu", "cuda")
        for one in doctor.examine(device)
        if one.subject == "CUDAExecutionProvider"
    }
    assert levels == {"cpu": Level.NOTE, "cuda": Level.PROBLEM}


def test_missing_comforts_do_not_break_the_cpu_path(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert main(["doctor"]) == ExitCode.OK
    assert finding("rich").level is Level.NOTE
    assert finding("audio files").level is Level.PROBLEM
    assert finding("soundfile").remedy == 'pip install "soundfile>=0.12.1"'


def test_without_onnx_runtime_the_extra_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(wheels, "ORT_WHEELS", ())
    found = finding("CPUExecutionProvider")
    assert found.level is Level.PROBLEM
    assert found.remedy.startswith('pip install "onnxruntime<')
    assert not doctor.works(doctor.examine())


def test_a_hollow_onnx_runtime_is_reinstalled(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    assert finding("CPUExecutionProvider").remedy == ('pip install --force-reinstall "onnxruntime"')


@pytest.mark.parametrize(
    ("installed", "faults"),
    [
        ({"nvidia-cudnn-cu12": "9.5.1.17", "nvidia-cudnn-cu13": "9.28.1.4"}, 1),
        ({"nvidia-cudnn-cu12": "9.5.1.17"}, 0),
        ({"nvidia-cudnn-cu13": "9.28.1.4"}, 0),
    ],
)
def test_two_cudnns_in_one_place_are_a_problem(cache, monkeypatch, installed, faults):
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    found = [one for one in doctor.examine() if one.subject == "cuDNN wheels"]
    assert len(found) == faults
    for one in found:
        assert one.level is Level.PROBLEM
        assert "nvidia-cudnn-cu12 9.5.1.17 and nvidia-cudnn-cu13 9.28.1.4" in one.detail
        assert "environments of their own" in one.remedy


def test_two_wheels_of_one_module_are_a_problem(cache, monkeypatch):
    versions = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    found = finding("onnxruntime")
    assert found.level is Level.PROBLEM
    assert found.remedy.startswith(
        'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "onnxruntime-gpu[cuda,cudnn]'
    )


class FakeRuntime:
    """Lists CUDA; what a session really does is told by the test."""

    class SessionOptions:
        def __init__(self) -> None:
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    def __init__(self, used: str = "", result: float = 42.0, error: str = "") -> None:
        self.used, self.result, self.error = used, result, error

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, graph, options, providers, enable_fallback):  # noqa: N802
        (provider,) = providers
        assert enable_fallback == 0  # it would print, and try another provider
        if self.error:
            raise RuntimeError(self.error)
        if provider.startswith("CUDA"):
            assert options.entries == {"session.disable_cpu_ep_fallback": "1"}
        return SimpleNamespace(
            get_providers=lambda: [self.used or provider],
            run=lambda names, feed: [np.asarray([self.result], np.float32)],
        )


@pytest.fixture
def nothing_in_the_way(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "trouble", lambda: "")


@pytest.mark.usefixtures("nothing_in_the_way")
@pytest.mark.parametrize(
    ("runtime", "cuda", "cpu"),
    [
        (FakeRuntime(), "works", "works"),
        (FakeRuntime(used="CPUExecutionProvider"), "given to CPUExecutionProvider", "works"),
        (FakeRuntime(result=0.0), "came out as [0.0]", "came out as [0.0]"),
        (FakeRuntime(error="no\n  driver"), "no driver", "no driver"),
    ],
)
def test_a_provider_is_judged_by_what_it_does(cache, monkeypatch, runtime, cuda, cpu):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    on_gpu, on_cpu = finding("CUDAExecutionProvider"), finding("CPUExecutionProvider")
    assert cuda in on_gpu.detail
    assert cpu in on_cpu.detail
    assert on_gpu.level is (Level.OK if cuda == "works" else Level.NOTE)
    assert on_cpu.level is (Level.OK if cpu == "works" else Level.PROBLEM)
    assert doctor.works(doctor.examine()) == (cpu == "works")
    assert not [item for item in doctor.examine() if "Azure" in item.subject]


def test_an_old_libsndfile_is_noted(cache, monkeypatch):
    old = SimpleNamespace(
        available_formats=lambda: {"WAV": "", "FLAC": ""}, __libsndfile_version__="1.0.31"
    )
    monkeypatch.setitem(sys.modules, "soundfile", old)
    found = finding("audio files")
    assert found.level is Level.NOTE
    assert "no MP3 (libsndfile 1.0.31)" in found.detail


def test_the_cache_folder_must_be_writable(cache, monkeypatch):
    assert finding("cache folder").detail == str(cache)
    monkeypatch.setenv("MT3_CACHE", str(cache / "new"))
    assert "made when first needed" in finding("cache folder").detail
    (cache / "file").write_text("")
    monkeypatch.setenv("MT3_CACHE", str(cache / "file" / "below"))
    found = finding("cache folder")
    assert found.level is Level.PROBLEM
    assert "MT3_CACHE" in found.remedy


def test_installed_models_are_listed(cache):
    assert "mt3 export" in finding("models").remedy
    (cache / "bundles" / "mine").mkdir(parents=True)
    (cache / "bundles" / "mine" / "bundle.json").write_text("{}")
    assert finding("models").detail == "mine"


@pytest.mark.parametrize(("runtime", "code"), [
    (FakeRuntime(), ExitCode.OK), (FakeRuntime(error="no driver"), ExitCode.UNUSABLE)
])  # fmt: skip
def test_the_exit_code_is_about_the_asked_device(cache, monkeypatch, capsys, runtime, code):
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(cuda_libraries, "trouble", lambda: "")
    assert main(["doctor", "--device", "cuda"]) == code
    assert "Transcription on device cuda " in capsys.readouterr().out


# NVIDIA's software -------------------------------------------------------------------------------


class FakeLibraries:
    """Answers for shared libraries: a driver with one GPU, CUDA, cuDNN and TensorRT."""

    def __init__(self, *absent: str, cuda: int = 13000, status: int = 0, gpus: int = 1) -> None:
        self.absent, self.cuda, self.status, self.gpus = absent, cuda, status, gpus

    def open(self, name: str):
        return None if name in self.absent else self

    def cuDriverGetVersion(self, found) -> None:  # noqa: N802
        found._obj.value = self.cuda

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, found) -> None:  # noqa: N802
        found._obj.value = self.gpus

    def cuDeviceGetName(self, name, length: int, index: int) -> None:  # noqa: N802
        name.value = b"Orin"

    def cuDeviceTotalMem_v2(self, found, index: int) -> None:  # noqa: N802
        found._obj.value = 8 << 30

    def cuDeviceGetAttribute(self, found, attribute: int, index: int) -> None:  # noqa: N802
        found._obj.value = {75: 8, 76: 7}[attribute]

    def cudaRuntimeGetVersion(self, found) -> None:  # noqa: N802
        found._obj.value = 13010

    def getInferLibVersion(self) -> int:  # noqa: N802
        return 101601

    @property
    def cudnnGetVersion(self):  # noqa: N802
        return Answer(91002)


class Answer:
    """A function of C, whose type of result can be set."""

    def __init__(self, answer: int) -> None:
        self.answer, self.restype = answer, None

    def __call__(self) -> int:
        return self.answer


@pytest.fixture
def gpu(cache, monkeypatch):
    """Fakes the libraries and the wheels: ``gpu(*absent, wheels=..., **driver)``."""

    def fake(*absent: str, installed: tuple[str, ...] = ("onnxruntime-gpu",), **options):
        monkeypatch.setattr(cuda_libraries, "_open", FakeLibraries(*absent, **options).open)
        found = dict.fromkeys(installed, "1.31.1")
        monkeypatch.setattr(wheels, "installed", lambda: found)
        monkeypatch.setattr(cuda_libraries, "preload", lambda runtime: None)
        return {item.subject: item for item in doctor._gpu()}

    return fake


def test_a_machine_with_all_of_it(gpu):
    found = gpu()
    assert {name: (item.level, item.detail) for name, item in found.items()} == {
        "NVIDIA driver": (Level.OK, "serves CUDA 13.0; cuda:0 Orin (compute 8.7, 8 GiB)"),
        "CUDA": (Level.OK, "13.1 (ONNX Runtime is built for 13)"),
        "cuDNN": (Level.OK, "9.10.2"),
        "TensorRT": (Level.OK, "10.16.1"),
    }


def test_neither_gpu_nor_wheel_is_nothing_to_speak_of(gpu):
    assert gpu("libcuda.so.1", installed=("onnxruntime",)) == {}


def test_a_gpu_that_the_wheel_cannot_use(gpu):
    found = gpu(installed=("onnxruntime",))
    assert list(found) == ["NVIDIA driver", "CUDA", "TensorRT"]
    assert found["CUDA"].remedy.startswith(
        'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]'
    )


def test_a_jetson_is_sent_to_tensorrt(gpu, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "use device tensorrt" in gpu(installed=("onnxruntime",))["CUDA"].remedy


@pytest.mark.parametrize(
    ("absent", "options", "subject", "detail"),
    [
        (["libcuda.so.1"], {}, "NVIDIA driver", "none (no libcuda.so.1)"),
        ([], {"status": 100}, "NVIDIA driver", "cuInit failed with status 100"),
        ([], {"gpus": 0}, "NVIDIA driver", "serves CUDA 13.0, but it has no GPU"),
        ([], {"cuda": 12040}, "CUDA", "the driver serves 12.4"),
        (["libcublas.so.13", "libcurand.so.10"], {}, "CUDA",
         "not found: libcublas.so.13, libcurand.so.10"),
        (["libcudnn.so.9"], {}, "cuDNN", "not found"),
        (["libnvinfer.so.10"], {}, "TensorRT", "not found"),
    ],
)  # fmt: skip
def test_what_is_missing_comes_with_its_remedy(gpu, absent, options, subject, detail):
    item = gpu(*absent, **options)[subject]
    assert detail in item.detail
    assert item.level is not Level.OK
    assert item.remedy


@pytest.mark.parametrize(
    ("libraries", "why"),
    [
        (FakeLibraries(), ""),
        (FakeLibraries("libcuda.so.1"), "there is no NVIDIA driver (libcuda.so.1)"),
        (FakeLibraries(status=100), "a driver, but no GPU (cuInit failed with status 100)"),
        (FakeLibraries(cuda=12040), "the driver serves CUDA 12.4, ONNX Runtime is built for 13"),
        (FakeLibraries("libcublas.so.13"), "libraries are missing: libcublas.so.13"),
    ],
)
def test_what_is_in_the_way_of_cuda(monkeypatch, libraries, why):
    monkeypatch.setattr(cuda_libraries, "_open", libraries.open)
    assert why in cuda_libraries.trouble()
    assert bool(why) == bool(cuda_libraries.trouble())


def test_a_gpu_that_is_not_there_is_in_the_way(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "_open", FakeLibraries(gpus=2).open)
    assert cuda_libraries.trouble(1) == ""
    assert cuda_libraries.trouble(2) == "there is no GPU 2, only 2 of them, counted from 0"


def test_a_driver_to_link_against_is_none(monkeypatch):
    monkeypatch.setattr(cuda_libraries, "_open", lambda name: SimpleNamespace())
    assert cuda_libraries.driver() is None


def test_what_is_in_the_way_is_said_instead_of_what_onnx_runtime_says(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(error="fallback was disabled"))
    monkeypatch.setattr(cuda_libraries, "_open", FakeLibraries("libcuda.so.1").open)
    assert "there is no NVIDIA driver" in finding("CUDAExecutionProvider").detail


def test_libraries_of_wheels_elsewhere_are_loaded_by_path(monkeypatch, tmp_path):
    """Those of PyTorch may lie in another site-packages than ONNX Runtime."""
    wanted = []
    for root, folder, names in (
        ("a", "cudnn", ["libcudnn.so.9"]),
        ("a", "curand", ["libcurand.so.10"]),  # of an older CUDA, with the same name
        ("b", "cu13", ["libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"]),
    ):
        place = tmp_path / root / "nvidia" / folder / "lib"
        place.mkdir(parents=True)
        for name in names:
            (place / name).touch()
            wanted.append(place / name)
    for root in "ab":
        monkeypatch.syspath_prepend(str(tmp_path / root))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    loaded = []
    monkeypatch.setattr(cuda_libraries, "_open", loaded.append)
    cuda_libraries._load_from_wheels(13)
    own = [path for path in loaded if path.startswith(str(tmp_path))]
    cudnn, _, cublas, cublas_lt, curand = map(str, wanted)
    assert own == [cublas_lt, cublas, curand, cudnn]


def test_windows_has_other_names(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(cuda_libraries, "_open", lambda name: None)
    monkeypatch.setattr(cuda_libraries, "wheel_cuda", lambda: 13)
    assert cuda_libraries.missing(13) == ["cudart64_13.dll", "cublasLt64_13.dll", "cublas64_13.dll"]
    assert cuda_libraries.runtime_library() == "cudart64_13.dll"


def test_no_second_wheel_of_onnx_runtime_is_advised(cache, monkeypatch):
    monkeypatch.setattr(wheels, "installed", lambda: {"onnxruntime-gpu": "1.31.1"})
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert finding("soundfile").remedy == 'pip install "soundfile>=0.12.1"'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModuleNotFoundError("No module named 'mt3_engines'"), "No module named 'mt3_engines'"),
        (ZeroDivisionError("oops"), "ZeroDivisionError: oops"),
    ],
)
@pytest.mark.parametrize("moment", ["loading", "running"])
def test_a_check_that_cannot_run_is_a_finding(cache, monkeypatch, capsys, error, said, moment):
    def check(*, asked):
        raise error
        yield

    def load():
        if moment == "loading":
            raise error
        return check

    entry = SimpleNamespace(name="tensorrt", value="mt3_engines.checks:examine", load=load)
    monkeypatch.setattr(doctor, "entry_points", lambda group: [entry])
    assert main(["doctor", "--device", "tensorrt"]) == ExitCode.UNUSABLE
    assert said in capsys.readouterr().out
    assert main(["doctor"]) == ExitCode.OK


def test_a_provider_that_cannot_work_is_not_loaded(cache, monkeypatch):
    """ONNX Runtime would print why on stderr, at a log level that is the whole process's."""
    tried = []

    class Watched(FakeRuntime):
        def get_available_providers(self):
            return ["TensorrtExecutionProvider", *super().get_available_providers()]

        def InferenceSession(self, graph, options, providers, enable_fallback):  # noqa: N802
            tried.extend(providers)
            return super().InferenceSession(graph, options, providers, enable_fallback)

    monkeypatch.setitem(sys.modules, "onnxruntime", Watched())
    monkeypatch.setattr(cuda_libraries, "_open", lambda name: None)
    details = {item.subject: item.detail for item in doctor.examine()}
    assert tried == ["CPUExecutionProvider"]
    for name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        assert "there is no NVIDIA driver" in details[name]


def test_other_packages_judge_the_devices_they_bring(cache, monkeypatch, capsys):
    def check(*, asked):
        yield doctor.Finding("device tensorrt", Level.OK if asked else Level.NOTE, "there", "do")

    entry = SimpleNamespace(name="tensorrt", load=lambda: check)
    monkeypatch.setattr(doctor, "entry_points", lambda group: [entry])
    assert main(["doctor", "--device", "tensorrt"]) == ExitCode.OK
    assert "Transcription on device tensorrt works" in capsys.readouterr().out
    assert main(["doctor"]) == ExitCode.OK
    monkeypatch.setattr(doctor, "entry_points", lambda group: [])
    assert main(["doctor", "--device", "tensorrt"]) == ExitCode.UNUSABLE


def test_the_wheel_says_which_cuda_it_is_built_for(monkeypatch):
    about = SimpleNamespace(cuda_version="12.8")
    monkeypatch.setitem(sys.modules, "onnxruntime.capi.build_and_package_info", about)
    assert cuda_libraries.wheel_cuda() == 12


def test_libraries_are_looked_for_by_the_loader():
    assert cuda_libraries._open("libc.so.6") is not None
    assert cuda_libraries._open("libnothing.so.99") is None
    assert cuda_libraries.missing(77) == [
        "libcudart.so.77", "libcublasLt.so.77", "libcublas.so.77",
        *(["libcurand.so.10"] if cuda_libraries._open("libcurand.so.10") is None else []),
    ]  # fmt: skip
    assert cuda_libraries.runtime_version(77) is None
    assert cuda_libraries.tensorrt_version(77) is None
