"""Which kernels a CPU gets, read from what Linux says of real processors, and which are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mt3_runtime.backends.ort_common import import_onnxruntime
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.commands.machine import describe, machine
from mt3_runtime.diagnostics import cpu_kernels, doctor
from mt3_runtime.errors import DeviceError

BASE = "fpu sse sse2 ssse3 sse4_1 sse4_2 avx"
HASWELL = f"{BASE} f16c fma avx2"
SKYLAKE = f"{HASWELL} avx512f avx512dq avx512bw avx512vl"
ZEN5 = f"{SKYLAKE} avx_vnni avx512_vnni avx512_bf16"
SAPPHIRE = f"{ZEN5} avx512_fp16 amx_bf16 amx_tile amx_int8"

#: Flags of processors, and the kernels they get.
KNOWN = {
    "Sandy Bridge": (BASE, "fp32 AVX, int8 SSE without VNNI"),
    "Haswell": (HASWELL, "fp32 AVX2, int8 AVX2 without VNNI"),
    "Alder Lake": (f"{HASWELL} avx_vnni", "fp32 AVX2, int8 AVX-VNNI"),
    "Skylake": (SKYLAKE, "fp32 AVX-512, int8 AVX-512 without VNNI"),
    "Zen 5": (ZEN5, "fp32 AVX-512, int8 AVX-512 VNNI"),
    "Sapphire Rapids": (SAPPHIRE, "fp32 AVX-512, int8 AMX"),
    "Cortex-A72": ("fp asimd evtstrm aes", "fp32 NEON, int8 NEON"),
    "Neoverse N1": ("fp asimd asimdhp asimddp", "fp32 NEON, int8 NEON dotprod"),
    "Neoverse V1": ("fp asimd asimddp sve i8mm bf16", "fp32 NEON, int8 NEON i8mm"),
}


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lets the system tell of another processor, on an x86 machine."""

    def put(flags: str, *, key: str = "flags", name: str = "Some CPU") -> None:
        core = f"model name\t: {name}\nbogomips\t: 4800.00\n{key}\t\t: {flags}\n\n"
        (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + core + "processor\t: 1\n" + core)
        monkeypatch.setattr(cpu_kernels, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "x86_64")

    return put


@pytest.mark.parametrize("name", KNOWN)
def test_kernels_are_those_of_the_instructions(cpuinfo, name: str) -> None:
    flags, expected = KNOWN[name]
    cpuinfo(flags, key="Features" if "asimd" in flags else "flags", name=name)
    found = cpu_kernels.cpu()
    assert found.name == name
    assert cpu_kernels.kernels(found.flags) == expected


def test_amx_needs_tiles_and_integers(cpuinfo) -> None:
    cpuinfo(f"{SKYLAKE} amx_tile amx_bf16")
    assert "AMX" not in cpu_kernels.kernels(cpu_kernels.cpu().flags)


def test_measurements_name_the_kernels(cpuinfo) -> None:
    cpuinfo(SAPPHIRE, name="Xeon")
    assert machine()["kernels"] == "fp32 AVX-512, int8 AMX"
    assert describe(machine()).startswith("Xeon (fp32 AVX-512, int8 AMX), ")
    kept = machine()
    del kept["kernels"]  # as results of earlier versions are
    assert describe(kept).startswith("Xeon, ")


def test_the_doctor_names_the_kernels(cpuinfo) -> None:
    cpuinfo(SAPPHIRE, name="Xeon")
    (found,) = (each for each in doctor.examine() if each.subject == "CPU")
    assert found.level is doctor.Level.OK
    assert found.detail == (
        "Xeon; ONNX Runtime's kernels: fp32 AVX-512, int8 AMX; not used by it: amx_bf16, "
        "avx512_bf16, avx512_fp16"
    )


@pytest.mark.parametrize("flags", [BASE, f"{BASE} f16c fma", "fpu sse sse2"])
def test_a_cpu_without_avx2_is_refused_by_name(cpuinfo, flags: str) -> None:
    cpuinfo(flags, name="Old Xeon")
    with pytest.raises(DeviceError, match=r"The CPU \(Old Xeon\) lacks AVX2"):
        import_onnxruntime()


def test_the_doctor_refuses_it_too(cpuinfo) -> None:
    cpuinfo(BASE, name="Old Xeon")
    findings = {each.subject: each for each in doctor.examine()}
    for subject in ("CPU", "CPUExecutionProvider"):
        assert findings[subject].level is doctor.Level.PROBLEM
        assert "lacks AVX2" in findings[subject].detail
    assert not doctor.works(list(findings.values()))


def test_a_command_ends_before_anything_is_loaded(cpuinfo, tiny_bundle, tmp_path, capsys) -> None:
    cpuinfo(BASE, name="Old Xeon")
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"RIFF")
    code = main(["transcribe", str(audio), "--model", str(tiny_bundle), "--device", "cpu"])
    assert code == ExitCode.UNUSABLE
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "lacks AVX2" in said


def test_onnxruntime_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name : Old\nflags : {BASE}\n")
    script = (
        "import sys, pathlib; from mt3_runtime.diagnostics import cpu_kernels, doctor;"
        "from mt3_runtime.backends import ort_common;"
        f"cpu_kernels.CPUINFO = pathlib.Path({str(tmp_path / 'cpuinfo')!r});"
        "cpu_kernels.platform.machine = lambda: 'AMD64'\n"
        "try: ort_common.import_onnxruntime()\n"
        "except Exception as error: print(type(error).__name__)\n"
        "doctor.examine(); print('onnxruntime' in sys.modules)"
    )
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said.split() == ["DeviceError", "False"]


@pytest.mark.parametrize("text", ["", "model name : X\n", "flags :\n"])
def test_what_is_not_told_is_not_refused(cpuinfo, tmp_path: Path, text: str) -> None:
    cpuinfo("")
    (tmp_path / "cpuinfo").write_text(text)
    cpu_kernels.check_cpu()
    assert cpu_kernels.kernels(cpu_kernels.cpu().flags) == ""
    assert "kernels" in machine()


def test_processors_of_arm_are_not_asked_for_avx2(cpuinfo, monkeypatch) -> None:
    cpuinfo("fp asimd", key="Features")
    monkeypatch.setattr(cpu_kernels.platform, "machine", lambda: "aarch64")
    cpu_kernels.check_cpu()
