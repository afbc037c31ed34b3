"""Every message that docs/troubleshooting.md quotes is brought about, in the way the page says."""

from __future__ import annotations

import io
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime import loading
from mt3_runtime.backends import devices
from mt3_runtime.cli import main
from mt3_runtime.diagnostics import cpu_kernels, cuda_libraries, wheels
from mt3_runtime.notes.base import SegmentReport
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Transcription
from tests.pages import CODE, TEXTS, rows
from tests.played_plugin import Runtime, put

PAGE = TEXTS["docs/troubleshooting.md"]


@dataclass
class Desk:
    """What a user has: a folder, a model, a recording."""

    folder: Path
    bundle: Path
    samples: np.ndarray
    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def mt3(self, *words: str) -> str:
        """What a command says that does not succeed, or warns."""
        self.capsys.readouterr()
        main(list(words))
        return self.capsys.readouterr().err

    def transcribe(self, samples: np.ndarray, *words: str) -> str:
        soundfile.write("x.wav", samples, 16000, subtype="FLOAT")
        return self.mt3("transcribe", "x.wav", "-m", str(self.bundle), "-o", "x.json", *words)

    def without(self, *packages: str) -> None:
        for package in packages:
            self.patch.setitem(sys.modules, package, None)


def no_onnx(desk: Desk) -> str:
    for name in [name for name in sys.modules if name.split(".")[0] == "mt3_export"]:
        desk.patch.delitem(sys.modules, name)
    desk.without("onnx")
    return desk.mt3("export", str(desk.bundle), "-o", "again")


def no_onnxruntime(desk: Desk) -> str:
    desk.without("onnxruntime")
    return desk.transcribe(desk.samples)


def no_soundfile(desk: Desk) -> str:
    desk.without("soundfile")
    return desk.mt3("transcribe", "song.wav", "-m", str(desk.bundle), "-o", "x.mid")


def two_wheels(desk: Desk) -> str:
    real = metadata.version
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    desk.patch.setattr(wheels.metadata, "version", lambda name: both.get(name) or real(name))
    main(["doctor"])
    return desk.capsys.readouterr().out


def several_models(desk: Desk) -> str:
    for name in ("one", "two"):
        shutil.copytree(desk.bundle, desk.folder / "cache" / "bundles" / name)
    return desk.mt3("transcribe", "song.wav")


def checkpoint_for_bundle(desk: Desk) -> str:
    Path("model.pth").write_bytes(b"PK\3\4")
    return desk.mt3("transcribe", "song.wav", "-m", "./model.pth")


def damaged_bundle(desk: Desk) -> str:
    shutil.copytree(desk.bundle, "damaged")
    graph = next(Path("damaged").glob("decoder.cpu*"))
    raw = bytearray(graph.read_bytes())
    raw[len(raw) // 2] ^= 1
    graph.write_bytes(raw)
    return desk.mt3("transcribe", "song.wav", "-m", "./damaged")


def offline(desk: Desk) -> str:
    desk.patch.setenv("MT3_OFFLINE", "1")
    return desk.mt3("models", "pull", "magenta_mt3")


def no_server(desk: Desk) -> str:
    desk.patch.setenv("MT3_MIRROR", "http://127.0.0.1:9")
    return desk.mt3("models", "pull", "magenta_mt3")


def foreign_file(desk: Desk) -> str:
    shutil.copytree(desk.bundle, "mine")
    Path("mine/thesis.txt").write_text("years of work")
    return desk.mt3("export", str(desk.bundle), "-o", "mine")


def other_format(desk: Desk) -> str:
    Path("x.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(200))
    return desk.mt3("transcribe", "x.m4a", "-m", str(desk.bundle))


def odd_suffix_in_a_folder(desk: Desk) -> str:
    Path("songs").mkdir()
    shutil.copy("song.wav", "songs")
    shutil.copy("song.wav", "songs/song.bin")
    return desk.mt3("transcribe", "songs/", "-m", str(desk.bundle))


def empty_folder(desk: Desk) -> str:
    Path("songs/live").mkdir(parents=True)
    return desk.mt3("transcribe", "songs/", "-m", str(desk.bundle))


def cut_file(desk: Desk) -> str:
    file = io.BytesIO()
    soundfile.write(file, desk.samples[:64000], 16000, format="WAV")
    Path("x.wav").write_bytes(file.getvalue()[: 44 + 64000])
    return desk.mt3("transcribe", "x.wav", "-m", str(desk.bundle))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  the text is what is compared
        call()
    return str(caught.value)


def rate_of_a_file(desk: Desk) -> str:
    with loading.load_model(desk.bundle) as model:
        return error_of(lambda: model.transcribe_notes("song.wav", 44100))


def list_of_blocks(desk: Desk) -> str:
    blocks = [desk.samples[n : n + 1600] for n in range(0, 32000, 1600)]
    with loading.load_model(desk.bundle) as model:
        return error_of(lambda: model.transcribe_notes(blocks, 16000))


def no_cuda(desk: Desk) -> str:
    return desk.transcribe(desk.samples, "--device", "cuda")


def no_driver(desk: Desk) -> str:
    desk.patch.setattr(devices, "_check_provider", lambda: None)
    desk.patch.setattr(cuda_libraries, "driver", lambda: None)
    return desk.transcribe(desk.samples, "--device", "cuda")


def node_elsewhere(desk: Desk) -> str:
    put(desk.patch, Runtime(lost=("RMSNormalization",)))
    return desk.transcribe(desk.samples, "--device", "plugin:played")


def old_cpu(desk: Desk) -> str:
    Path("cpuinfo").write_text("model name : Xeon E5-2690\nflags : sse sse2 avx\n")
    desk.patch.setattr(cpu_kernels, "CPUINFO", Path("cpuinfo"))
    desk.patch.setattr(cpu_kernels.platform, "machine", lambda: "x86_64")
    return desk.transcribe(desk.samples, "--device", "cpu")


def no_graphs(desk: Desk) -> str:
    from mt3_runtime.bundles.bundle import Bundle

    assert main(["export", str(desk.bundle), "--profiles", "cpu", "-o", "plain"]) == 0
    return error_of(lambda: devices.check_profile(Bundle("plain"), "cuda"))


def same_name(desk: Desk) -> str:
    Path("song.mid").write_bytes(b"")
    return desk.mt3("transcribe", "song.wav", "-m", str(desk.bundle))


def endless(desk: Desk) -> str:
    report = SegmentReport(0, 0.0, 1024, truncated=True)
    return " ".join(Transcription((), (report,), 2.0, "x", "").warnings)


def many_instruments(desk: Desk) -> str:
    notes = [Note(0.0, 1.0, 60, 100, program) for program in range(17)]
    return " ".join(Transcription(tuple(notes), (), 1.0, "x", "").warnings)


def internal_error(desk: Desk) -> str:
    desk.patch.setattr(loading, "resolve_model", lambda _: 1 / 0)
    desk.patch.delenv("MT3_DEBUG", raising=False)
    return desk.mt3("transcribe", "song.wav")


def scaled(factor: float) -> Callable[[Desk], str]:
    return lambda desk: desk.transcribe(desk.samples * np.float32(factor))


#: Beginning of a message, as the page has it -> what brings it about.
CAUSES: dict[str, Callable[[Desk], str]] = {
    "... needs onnxruntime": no_onnxruntime,
    "mt3 export needs onnx": no_onnx,
    "Reading audio files needs soundfile": no_soundfile,
    "onnxruntime ..., onnxruntime-gpu ...": two_wheels,
    "There is no bundle and no installed": lambda d: d.mt3("transcribe", "song.wav", "-m", "mt4"),
    "The model magenta_mt3": lambda d: d.mt3("transcribe", "song.wav", "-m", "magenta_mt3"),
    "Several models are installed": several_models,
    "... is neither a bundle": checkpoint_for_bundle,
    "... is not the file that was exported": damaged_bundle,
    "... is not in ..., and MT3_OFFLINE": offline,
    "... could not be fetched": no_server,
    "... also holds": foreign_file,
    "... is not audio that can be decoded": other_format,
    "passed over 1 file": odd_suffix_in_a_folder,
    "There is no audio file directly": empty_folder,
    "... ends early": cut_file,
    "... has samples of up to": scaled(1000.0),
    "... is very quiet": scaled(0.001),
    "... is as good as silent": scaled(0.00005),
    "The channels of": lambda d: d.transcribe(np.stack([d.samples, -d.samples], 1)),
    "... contradicts": rate_of_a_file,
    "... is not one recording": list_of_blocks,
    "the installed ONNX Runtime has no CUDA": no_cuda,
    "there is no NVIDIA driver": no_driver,
    "has graphs of profile cpu": no_graphs,
    "device plugin:... was asked for, and its": lambda d: d.transcribe(
        d.samples, "--device", "plugin:nowhere"
    ),
    "would not run on device plugin": node_elsewhere,
    "The CPU (...) lacks AVX2": old_cpu,
    "device must be auto": lambda d: d.transcribe(d.samples, "--device", "gpu"),
    "song.mid exists": same_name,
    "no notes were found": lambda d: d.mt3(
        "transcribe", "song.wav", "-m", str(d.bundle), "-o", "x.mid", "--instruments", "harp"
    ),
    "min_confidence=... leaves none": lambda d: d.transcribe(d.samples, "--min-confidence", "0.99"),
    "segments that reached the token limit": endless,
    "more than 15 instruments": many_instruments,
    "internal error": internal_error,
}


def messages() -> list[str]:
    """What the page quotes as being said."""
    table = [row[0] for row in rows(PAGE) if row[0].startswith("`")]
    return [CODE.findall(cell)[0] for cell in table] + ["internal error (...)"]


@pytest.fixture
def desk(tiny_bundle, audio, tmp_path, monkeypatch, capsys) -> Desk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    for name in ("MT3_MODEL", "MT3_OFFLINE", "MT3_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    soundfile.write("song.wav", audio[:64000], 16000)
    return Desk(tmp_path, tiny_bundle, audio[:64000], monkeypatch, capsys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("message", messages())
def test_messages_are_said(message: str, desk: Desk) -> None:
    (found,) = [made for start, made in CAUSES.items() if message.startswith(start)]
    said = found(desk)
    pattern = ".*".join(map(re.escape, message.split("...")))
    assert re.search(pattern, said, re.DOTALL), said
    assert "Traceback" not in said


def test_every_cause_is_of_a_message() -> None:
    for start in CAUSES:
        assert [message for message in messages() if message.startswith(start)], start
