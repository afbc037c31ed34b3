"""What hostile and clumsy users do to `mt3` and to the Python API.

Every case ends in one clear error or in correct work: the documented exit code, no traceback, no
half-written file, nothing but data on stdout; the other files of the same call are still done.
Most cases run the real command in a process of its own.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from pathlib import Path

import mido
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import Weights
from mt3_runtime import cli
from mt3_runtime.audio.containers import byte_source as audiobytes
from mt3_runtime.audio.sources import load_audio, open_audio
from mt3_runtime.batch.records import journal
from mt3_runtime.errors import AudioError, AudioNotFoundError, AudioWarning, MT3Error, OptionError
from mt3_runtime.imports.interrupts import ENDING
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.models.installed import resolve_model
from mt3_runtime.models.shipped import shipped_models
from tests.export.writers import write_t5x
from tests.pace import HANGS
from tests.seeded import seeded_weights

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, streams and names")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc, /dev or prctl")

#: The child takes Ctrl-C and hanging up even where the tests run in the background, or under
#: nohup, and ignore them.
RUN = (
    "import signal, sys\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "hasattr(signal, 'SIGHUP') and signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    "{}\n"
    "from mt3_runtime.cli import main\n"
    "sys.exit(main())"
)

#: Makes permission bits bind root, too: no CAP_DAC_OVERRIDE (1), no CAP_DAC_READ_SEARCH (2).
UNPRIVILEGED = """
import ctypes, os
if os.geteuid() == 0:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    sets[0] &= ~0b110  # effective
    sets[1] &= ~0b110  # permitted: what access() goes by
    assert libc.capset(header, sets) == 0
"""


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory, tiny_bundle):
    """The tiny model is the default one, and nobody's cache is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MT3_", "PYTHON", "LC_"))]:
            if name not in ("PYTHONPATH", "MT3_SHARED"):
                patch.delenv(name)
        patch.setenv("MT3_MODEL", str(tiny_bundle))
        patch.setenv("MT3_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def here(tmp_path, monkeypatch, audio):
    """An own folder as the current one, with ``a.wav`` in it."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", audio, 16000)
    return tmp_path


@pytest.fixture(scope="module")
def brief_bundle(tmp_path_factory, tiny_bundle):
    """The tiny model, stopped after one token per segment: it never finds a note, and is fast."""
    path = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("brief") / "brief")
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["decoding"]["max_tokens"] = 1
    (path / "bundle.json").write_text(json.dumps(manifest))
    return path


def command(*arguments, before=""):
    return [sys.executable, "-c", RUN.format(before), *map(str, arguments)]


def mt3(*arguments, before="", env=None, **options):
    return subprocess.run(
        command(*arguments, before=before),
        env={**os.environ, **(env or {})},
        check=False,
        timeout=HANGS,
        **{"capture_output": True, "stdin": subprocess.DEVNULL, **options},
    )


def through_shell(script, *arguments, **options):
    """Runs ``script``, in which ``"$@"`` is the command with these arguments."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *command(*arguments)],
        capture_output=True,
        check=False,
        timeout=HANGS,
        **options,
    )


def refused(ended, code, *words):
    """Checks an error: its code, one line of ours on stderr with these words, nothing on stdout."""
    error = ended.stderr.decode()
    assert ended.returncode == code, error
    assert ended.stdout == b""
    assert error.count("\n") == error.count("mt3: error: ") == 1, error
    for word in words:
        assert word in error
    return error


def names(folder="."):
    """What is in a folder, but for the journal of a batch."""
    return sorted({*os.listdir(folder)} - {journal.NAME})


def is_midi(path):
    return len(mido.MidiFile(path).tracks) > 0


# Inputs ------------------------------------------------------------------------------------------


def wav(*, rate=16000, channels=1, bits=16, data=bytes(32000), stated=None, code=1):
    """A WAV file whose header says what it likes."""
    align = channels * bits // 8
    return (
        b"RIFF"
        + struct.pack("<I", min(36 + (stated or len(data)), 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, code, channels, rate, rate * align % 2**32, align, bits)
        + b"data"
        + struct.pack("<I", len(data) if stated is None else stated)
        + data
    )


def encoded(samples, container, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format=container, **options)
    return buffer.getvalue()


def spoilt(samples, value):
    changed = samples.copy()
    changed[70000] = value
    return encoded(changed, "WAV", subtype="FLOAT")


@pytest.fixture(scope="module")
def bad_files(audio):
    """Content no notes can come from, by the words of the error."""
    noise = np.random.default_rng(0).bytes(50000)
    return {
        "empty.wav": (b"", "is empty (0 bytes)"),
        "text.wav": (b"these are not the samples\n" * 99, "is not audio"),
        "random.mp3": (noise, "is not audio"),
        "none.wav": (encoded(audio[:0], "WAV"), "holds no audio"),
        "nan.wav": (spoilt(audio, np.nan), "at 4.375 s"),
        "inf.wav": (spoilt(audio, np.inf), "at 4.375 s"),
        "loud.wav": (spoilt(audio, 3e38), "at 4.375 s"),
        "floats.wav": (wav(code=3, bits=32, data=noise), "too large"),
        "head.wav": (encoded(audio, "WAV")[:20], "is not audio"),
        "cut.flac": (encoded(audio, "FLAC")[:20], "is not audio"),
        "piece.ogg": (encoded(audio, "OGG")[:20], "is not audio"),
        "part.mp3": (encoded(audio, "MP3")[:20], "is not audio"),
        "rate0.wav": (wav(rate=0), "is not audio"),
        "rate1.wav": (wav(rate=1), "sample rate of 1 Hz"),
        "fast.wav": (wav(rate=4_000_000_000), "is not audio"),
        "channels0.wav": (wav(channels=0), "is not audio"),
        "channels1000.wav": (wav(channels=1000), "1000 channels"),
        "bits0.wav": (wav(bits=0), "is not audio"),
        "codec.wav": (wav(code=0x1234), "is not audio"),
    }


def test_bad_files_are_reported_one_by_one_and_the_good_ones_done(here, bad_files):
    for name, (content, _) in bad_files.items():
        Path(name).write_bytes(content)
    Path("folder.wav").mkdir()
    ended = mt3("transcribe", "-q", *bad_files, "missing.wav", "folder.wav", "a.wav", "-o", "out/")
    assert (ended.returncode, ended.stdout) == (1, b"")
    lines = ended.stderr.decode().splitlines()
    errors = [line for line in lines if not line.startswith(("[src/libmpg123", "Note: "))]
    assert all(line.startswith("mt3: error: ") for line in errors)
    wanted = {name: words for name, (_, words) in bad_files.items()}
    wanted |= {"missing.wav": "no such file", "folder.wav": "no audio file directly in"}
    assert len(errors) == len(wanted)
    for name, words in wanted.items():
        (line,) = [line for line in errors if name in line]
        assert words in line
    assert names("out") == ["a.mid"]
    assert is_midi("out/a.mid")


def test_unusual_files_are_read(here, audio):
    Path("in").mkdir()
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        soundfile.write(f"in/{subtype}.wav", audio, 16000, subtype)
    soundfile.write("in/six.wav", np.stack([audio] * 6, 1), 16000, "FLOAT")
    soundfile.write("in/96k.wav", np.repeat(audio, 6), 96000)
    soundfile.write("in/8k.wav", audio[::2], 8000)
    soundfile.write("in/one.wav", audio[:1], 16000)
    soundfile.write("in/RF64.wav", audio, 16000, format="RF64", subtype="FLOAT")
    Path("in/endless.wav").write_bytes(wav(stated=2**32 - 1))  # as ffmpeg writes to a pipe
    Path("in/odd.wav").write_bytes(wav(data=bytes(1001)))
    shutil.copyfile("in/FLOAT.wav", "flac.flac")  # a lie, but a harmless one
    ended = mt3("transcribe", "in", "flac.flac", "-o", "out")
    assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr.decode()
    assert names("out") == sorted(f"{Path(n).stem}.mid" for n in [*names("in"), "flac.flac"])
    same = {Path(f"out/{n}.mid").read_bytes() for n in ("FLOAT", "DOUBLE", "six", "flac", "RF64")}
    assert len(same) == 1
    assert all(is_midi(Path("out", name)) for name in names("out"))


def cut(data):
    return data[: len(data) // 2]


def scratched(data):
    middle = len(data) // 2
    return data[:middle] + np.random.default_rng(1).bytes(4000) + data[middle + 4000 :]


@pytest.mark.parametrize("damage", [cut, scratched])
@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3", "WAV"])
def test_damaged_files_are_read_in_part_and_say_so(here, audio, container, damage):
    name = f"song.{container.lower()}"
    Path(name).write_bytes(damage(encoded(audio, container)))
    ended = mt3("transcribe", "-q", name)
    assert (ended.returncode, ended.stdout) == (0, b"")
    assert is_midi("song.mid")
    said = [line for line in ended.stderr.decode().splitlines() if line.startswith("mt3: ")]
    if (container, damage) == ("WAV", scratched):  # every byte is a sample
        assert said == []
    else:
        assert said
        assert said[0].startswith(f"mt3: warning: {name} ")
        assert "left out" in said[0]


def test_a_header_that_promises_too_much():
    with pytest.warns(AudioWarning, match="ends early: 1.00 s of 31250.00 s could be read"):
        assert len(load_audio(io.BytesIO(wav(stated=10**9)))) == 16000


@linux
def test_weird_names(here):
    weird = [
        "a b.wav",
        "-dash.wav",
        "new\nline.wav",
        "escape\x1b[31m.wav",
        "%s{}.wav",
        "a:b*?.wav",
        "trailing. .wav",
        "n" * 251 + ".wav",
        "\u00fcn\u00ef \u97f3\u3000\u266b.wav",
        "odd\udce9byte.wav",
    ]
    Path("in").mkdir()
    for name in weird:
        shutil.copyfile("a.wav", f"in/{name}")
    strict = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for env in ({}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, strict):
        ended = mt3("transcribe", ".", "--overwrite", cwd="in", env=env)
        assert (ended.returncode, ended.stdout) == (0, b""), ended.stderr.decode()
        assert ended.stderr.count(b"\n") == 2 + len(weird)  # one line each, and two about all
        assert b"\x1b" not in ended.stderr
        assert names("in") == sorted([*weird, *(f"{name[:-4]}.mid" for name in weird)])
        for name in weird:
            Path(f"in/{name[:-4]}.mid").unlink()
    assert mt3("transcribe", "-q", "--", "-dash.wav", cwd="in").returncode == 0
    assert is_midi("in/-dash.mid")
    refused(mt3("transcribe", "not\nthere.wav"), 1, r"not\nthere.wav: there is no such file")


@linux
def test_names_on_stdout_that_it_cannot_encode(here, tmp_path, tiny_bundle):
    shutil.copytree(tiny_bundle, tmp_path / "cache" / "bundles" / "\u97f3\udce9")
    env = {"MT3_CACHE": str(tmp_path / "cache")}
    ended = mt3("models", "list", env={**env, "PYTHONIOENCODING": "ascii"})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"\u97f3\udce9" in ended.stdout
    ended = mt3("models", "list", env={**env, "PYTHONIOENCODING": "utf-8"})
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "\u97f3\udce9".encode(errors="surrogateescape") in ended.stdout


@posix
@pytest.mark.parametrize("long", ["x" * 300, "/".join(["d" * 200] * 25)], ids=["name", "path"])
def test_names_that_are_too_long(here, long):
    refused(mt3("transcribe", f"{long}.wav"), 1)
    refused(mt3("transcribe", "a.wav", "-o", f"{long}.mid"), 1)
    refused(mt3("transcribe", "-q", "a.wav", "-o", f"{long}/"), 1, "cannot make the folder")
    refused(mt3("transcribe", "a.wav", "-m", long), 3, "too long")
    refused(mt3("transcribe", "a.wav", "-m", "x", env={"MT3_CACHE": f"/{long}"}), 2, "MT3_CACHE")
    assert names() == ["a.wav"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.wav"], 1, "missing.wav: there is no such file"),
        (["a.wav/x.wav"], 1, "there is no such file"),
        (["missing.mid"], 1, "missing.mid: there is no such file"),
        (["missing.csv", "-f", "csv"], 1, "missing.csv: there is no such file"),
        (["link.mid"], 1, "link.mid is named as notes are"),
        (["link.mid", "--overwrite"], 1, "link.mid is named as notes are"),
        (["-"], 2, "standard input needs a name"),
        (["empty"], 1, "no audio file directly in empty"),
        ([""], 2, "input file is empty"),
        (["a.wav", "-o", ""], 2, "-o is empty"),
        (["a.wav", "-o", "a.wav", "-f", "midi"], 1, "also an input"),
        (["a.wav", "-o", "./empty/../a.wav", "-f", "midi"], 1, "also an input"),
        (["a.wav", "-o", "link.mid"], 1, "also an input"),
        (["link.mid", "-o", "a.wav", "-f", "midi"], 1, "also an input"),
        (["a.wav", "-o", "a.wav"], 2, "suffix"),
        (["a.wav", "-o", "a.wav/x.mid"], 1, "no folder"),
        (["a.wav", "-o", "a.wav/"], 1, "is a file"),
        (["a.wav", "-o", "nowhere/x.mid"], 1, "no folder"),
        (["a.wav", "a.flac", "-o", "x.mid"], 2, "do not fit"),
        (["a.wav", "-f", "wav"], 2, "unknown format 'wav'"),
        (["a.wav", "-f", ""], 2, "unknown format ''"),
        (["a.wav", "-o", "x.mid", "-f", "json"], 2, "looks like midi"),
        (["a.wav", "-m", ""], 3, "''"),
        (["a.wav", "-m", "nonsense"], 3, "`mt3 models`"),
        (["a.wav", "-m", "./nonsense"], 3, "no bundle at ./nonsense"),
        (["a.wav", "-m", "~nobody-at-all/x"], 3, "no bundle at ~nobody-at-all/x"),
        (["a.wav", "-m", "./a.wav"], 3, "neither a bundle folder nor a zip"),
        (["a.wav", "-m", "empty"], 3, "not a bundle"),
        (["a.wav", "-m", "magenta_mt3"], 3, "mt3 models pull magenta_mt3"),
        (["a.wav", "--device", "gpu"], 2, "cpu, cuda[:n]"),
        (["a.wav", "--device", ""], 2, "cpu, cuda[:n]"),
        (["a.wav", "--device", "cuda:x"], 2, "cpu, cuda[:n]"),
        (["a.wav", "--profile", "nonsense"], 2, "cpu, portable, compat"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_done(here, arguments, code, words):
    (here / "empty").mkdir()
    (here / "link.mid").symlink_to("a.wav")
    shutil.copyfile("a.wav", "a.flac")
    before = Path("a.wav").read_bytes(), sorted(here.rglob("*"))
    refused(mt3("transcribe", *arguments), code, words)
    assert (Path("a.wav").read_bytes(), sorted(here.rglob("*"))) == before


@pytest.mark.parametrize("words", [["-x.wav"], ["a.wav", "-x.wav"], ["--no.wav", "-q"]])
def test_files_that_look_like_options_are_told_from_mistakes(here, words):
    (here / words[0]).touch()
    (here / words[-1]).touch()
    name = next(word for word in words if word.startswith("-"))
    ended = mt3("transcribe", *words)
    assert ended.returncode == 2
    assert f"write .{os.sep}{name}" in ended.stderr.decode()
    assert "write ." not in mt3("transcribe", "--absent.wav").stderr.decode()


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tensorrt"])
def test_a_device_is_honoured_or_refused(here, device):
    ended = mt3("transcribe", "-q", "a.wav", "--device", device)
    if ended.returncode:
        refused(ended, 3, f"device {device.partition(':')[0]} was asked for", "device cpu")
    assert names() == (["a.wav"] if ended.returncode else ["a.mid", "a.wav"])


@pytest.mark.parametrize("threads", ["0", "-1", "x", "1.5", "99999999999"])
def test_threads_that_are_none(here, threads):
    ended = mt3("transcribe", "a.wav", f"--threads={threads}")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert f"'{threads}' is not a number of threads" in ended.stderr.decode()
    assert names() == ["a.wav"]


def test_many_threads(here):
    assert mt3("transcribe", "a.wav", "--threads", "100").returncode == 0


def test_a_file_named_twice_is_done_once(here):
    ended = mt3("transcribe", "a.wav", ".", "./a.wav")
    assert ended.returncode == 0
    assert b"found 1 file\n" in ended.stderr


# Outputs -----------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_written_does_not_stop_the_others(here):
    shutil.copyfile("a.wav", "b.wav")
    Path("a.mid").mkdir()
    refused(mt3("transcribe", "-q", "a.wav", "b.wav"), 1, "a.mid: it is a folder")
    assert is_midi("b.mid")


def test_overwrite_goes_together_with_a_new_folder(here):
    assert mt3("transcribe", "a.wav", "--overwrite", "-o", "new/deep/").returncode == 0
    assert names("new/deep") == ["a.mid"]


def test_an_empty_old_result(here):
    Path("a.mid").touch()
    refused(mt3("transcribe", "a.wav"), 2, "--overwrite")
    assert Path("a.mid").read_bytes() == b""
    assert mt3("transcribe", "a.wav", "-o", "a.mid").returncode == 0
    assert is_midi("a.mid")


def test_two_processes_with_one_output(here, audio):
    soundfile.write("b.wav", audio[::-1], 16000)
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for name in "ab":
        assert mt3("transcribe", f"{name}.wav").returncode == 0
    whole = {Path(f"{name}.mid").read_bytes() for name in "ab"}
    assert len(whole) == 2
    running = [
        subprocess.Popen(command("transcribe", f"{name}.wav", "-o", "x.mid"), **options)
        for name in "abab"
    ]
    seen = set()
    while any(process.poll() is None for process in running):
        with contextlib.suppress(FileNotFoundError):
            seen.add(Path("x.mid").read_bytes())
    assert [process.returncode for process in running] == [0] * 4
    seen.add(Path("x.mid").read_bytes())
    assert seen <= whole
    assert names() == ["a.mid", "a.wav", "b.mid", "b.wav", "x.mid"]


@linux
def test_special_files_as_outputs(here):
    assert mt3("transcribe", "a.wav", "-o", "/dev/null", "-f", "midi").returncode == 0
    assert Path("/dev/null").is_char_device()
    full = mt3("transcribe", "-q", "a.wav", "-o", "/dev/full", "-f", "midi")
    refused(full, 1, "/dev/full", "No space left")


@posix
def test_a_full_disk(here, tiny_bundle):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))"
    Path("x.csv").write_text("old")
    shutil.copyfile("a.wav", "b.wav")
    ended = mt3("transcribe", "-q", "a.wav", "-o", "x.csv", before=limit)
    refused(ended, 1, "a.wav: cannot write x.csv: File too large")
    assert Path("x.csv").read_text() == "old"
    many = mt3("transcribe", "-q", "a.wav", "b.wav", "-f", "csv", before=limit)
    assert (many.returncode, many.stderr.count(b"File too large")) == (1, 2)
    assert names() == ["a.wav", "b.wav", "x.csv"]


@linux
def test_permissions(here, tiny_bundle):
    """Read-only and locked places, as they look to somebody who is not root."""
    model = shutil.copytree(tiny_bundle, here / "model")
    for path in model.iterdir():
        path.chmod(0o400)
    model.chmod(0o500)
    for name in ("read-only", "locked"):
        Path(name).mkdir()
        shutil.copyfile("a.wav", f"{name}/b.wav")
    shutil.copyfile("a.wav", "secret.wav")
    Path("secret.wav").chmod(0)
    Path("read-only").chmod(0o500)
    Path("locked").chmod(0)

    def user(*arguments, **options):
        return mt3("transcribe", "-q", *arguments, before=UNPRIVILEGED, **options)

    try:
        assert user("a.wav", "-m", model, "-o", "ok.mid").returncode == 0
        error = refused(user("secret.wav", "a.wav", "-o", "out"), 1, "secret.wav")
        assert "Permission denied" in error
        assert names("out") == ["a.mid"]
        refused(user("read-only/b.wav"), 1, "no permission to write in")
        refused(user("a.wav", "-o", "read-only/x.mid"), 1, "no permission to write in")
        refused(user("a.wav", "-o", "read-only/new/"), 1, "no permission to write in")
        refused(user("a.wav", "-o", "locked/x.mid"), 1, "ermission")
        refused(user("locked"), 1, "locked cannot be read: Permission denied")
        refused(user("locked/b.wav"), 1, "Permission denied")
        refused(user("a.wav", "-o", "y.mid", "-m", "./locked/model"), 3, "Permission denied")
        home = {"MT3_MODEL": "", "MT3_CACHE": str(here / "locked" / "cache")}
        refused(user("a.wav", "-o", "y.mid", "-m", "mr_mt3", env=home), 2, "MT3_CACHE")
        if shipped_models():
            used = user("a.wav", "-o", "y.mid", env=home)
            assert (used.returncode, b"MT3_CACHE" in used.stderr) == (0, True)
        assert user("a.wav", "-o", "z.mid", "-m", "./model", env=home).returncode == 0
        doctor = mt3("doctor", before=UNPRIVILEGED, env=home)
        assert (doctor.returncode, doctor.stderr) == (0, b"")
        assert b"Permission denied" in doctor.stdout
    finally:
        for path in (model, Path("read-only"), Path("locked")):
            path.chmod(0o700)


# Streams -----------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_disturb_the_work(here, redirection):
    ended = through_shell(f'exec "$@" {redirection}', "transcribe", "a.wav")
    assert (ended.returncode, ended.stdout) == (0, b"")
    assert b"Traceback" not in ended.stderr
    assert b"error" not in ended.stderr
    assert mt3("transcribe", "-q", "a.wav", "-o", "b.mid").returncode == 0
    assert Path("a.mid").read_bytes() == Path("b.mid").read_bytes()


@posix
def test_closed_streams_that_are_needed(here):
    for kind in ("csv", "midi"):
        arguments = ("transcribe", "-q", "a.wav", "-o", "-", "-f", kind)
        refused(through_shell('exec "$@" >&-', *arguments), 1, "standard output")
    assert through_shell('exec "$@" 2>&-', "transcribe", "missing.wav").stdout == b""
    assert through_shell('exec "$@" 2>&-', "nonsense").returncode == 2
    for words in (("models", "list"), ("doctor",), ("--help",)):
        assert through_shell('exec "$@" >&-', *words).returncode == 0


@linux
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_device_on_either_stream(here, unbuffered):
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    kinds = [("transcribe", "-q", "a.wav", "-o", "-", "-f", kind) for kind in ("csv", "jsonl")]
    for words in (("models", "list"), *kinds):
        refused(through_shell('exec "$@" >/dev/full', *words, env=env), 1, "No space left")
    ended = through_shell('exec "$@" 2>/dev/full', "transcribe", "a.wav", env=env)
    assert ended.returncode == 0
    assert is_midi("a.mid")


@posix
def test_head_takes_one_line(here, audio):
    """The pipe holds 64 KiB; this result is larger, so the command meets the closed end."""
    soundfile.write("long.wav", np.tile(audio, 60), 16000)
    arguments = ("transcribe", "-q", "long.wav", "-o", "-", "-f", "jsonl")
    process = subprocess.Popen(command(*arguments), stdout=-1, stderr=-1)
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(HANGS) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    assert {"onset", "pitch"} <= json.loads(first).keys()


@posix
def test_nobody_listens_to_the_talk(here):
    shutil.copyfile("a.wav", "b.wav")
    reading, writing = os.pipe()
    os.close(reading)
    ended = mt3("transcribe", ".", capture_output=False, stderr=writing)
    os.close(writing)
    assert ended.returncode == 0
    assert names() == ["a.mid", "a.wav", "b.mid", "b.wav"]


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_streams_of_a_program_around_us(monkeypatch, capsys):
    """The same as above, without descriptors below."""
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["models", "info", "nonsense"]) == 2
    assert sys.stderr.name == os.devnull
    sys.stderr.close()
    monkeypatch.setattr(sys, "stderr", Full())
    assert cli.main(["models", "info", "nonsense"]) == 2
    monkeypatch.undo()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdout", Full())
    assert cli.main(["models", "where"]) == 1
    assert capsys.readouterr().err.count("No space left") == 1
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["models", "where"]) == 0


@posix
def test_a_terminal_gets_text_but_no_midi(here):
    main_end, terminal = os.openpty()
    options = {"capture_output": False, "stdout": terminal, "stderr": -1}
    ended = mt3("transcribe", "-q", "a.wav", "-o", "-", **options)
    assert ended.returncode == 2
    assert b"MIDI is binary" in ended.stderr
    ended = mt3("transcribe", "-q", "a.wav", "-o", "-", "-f", "csv", **options)
    assert ended.returncode == 0
    assert os.read(main_end, 100).startswith(b"onset,offset")
    os.close(terminal)
    os.close(main_end)


# Signals -----------------------------------------------------------------------------------------


@pytest.fixture
def running(here):
    """Starts the command, waits until the model is loaded, and returns the process."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(command("transcribe", *arguments), stdout=-1, stderr=-1)
        started.append(process)
        assert b"on cpu" in process.stderr.readline()
        time.sleep(0.2)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@posix
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, b"mt3: interrupted\n"),
        *((number, -number, b"mt3: terminated\n") for number in ENDING),
    ],
)
def test_a_long_transcription_can_be_stopped(running, number, code, words):
    with soundfile.SoundFile("long.wav", "w", 16000, 1) as file:
        file.seek(0)
    with open("long.wav", "r+b") as file:  # an hour of silence, which takes a minute or more
        file.truncate(44 + 3600 * 32000)
        file.seek(0)
        file.write(wav(data=b"", stated=3600 * 32000))
    Path("long.mid").write_bytes(b"old")
    process = running("long.wav", "-o", "long.mid")
    process.send_signal(number)
    out, error = process.communicate(timeout=HANGS)
    assert (process.returncode, out, error) == (code, b"", words)
    assert names() == ["a.wav", "long.mid", "long.wav"]
    assert Path("long.mid").read_bytes() == b"old"


@posix
def test_a_pipe_nobody_writes_to_can_be_given_up(running):
    os.mkfifo("fifo.wav")
    process = running("fifo.wav")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=HANGS)[1] == b"mt3: interrupted\n"
    assert process.returncode == 130


class Stopped:
    """A command that meets SIGTERM."""

    name = help = "stopped"

    def add_arguments(self, parser):
        pass

    def run(self, args):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(HANGS)


@posix
def test_the_first_process_of_a_container_ends_as_well(monkeypatch, capsys):
    """There, a signal without a handler does nothing, not even one that it sends itself."""
    sent = []
    monkeypatch.setattr(cli.Listing, "load", lambda self: Stopped())
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    assert cli.main(["doctor"]) == 143
    assert sent == [(os.getpid(), signal.SIGTERM)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert capsys.readouterr().err == "mt3: terminated\n"


@posix
def test_a_program_around_us_keeps_its_own_signals(here):
    own = lambda *_: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, own)
    try:
        assert cli.main(["models", "where"]) == 0
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(cli.main(["models", "where"])))
    thread.start()
    thread.join()
    assert codes == [0]


# Surroundings ------------------------------------------------------------------------------------


@posix
def test_from_a_folder_that_is_gone(here):
    gone = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    refused(through_shell(gone, "transcribe", "-q", "x.wav"), 1)
    refused(through_shell(gone, "transcribe", "-q", here / "a.wav", "-o", "x.mid"), 1)
    refused(through_shell(gone, "transcribe", "-q", "."), 1)
    refused(through_shell(gone, "transcribe", here / "a.wav", "-m", "tiny"), 3)
    assert through_shell(gone, "transcribe", here / "a.wav").returncode == 0
    assert is_midi("a.mid")
    assert through_shell(gone, "doctor").returncode == 0


def test_a_default_model_that_is_none(here):
    refused(mt3("transcribe", "a.wav", env={"MT3_MODEL": "nonsense"}), 3, "'nonsense'")
    assert names() == ["a.wav"]
    unnamed = mt3("transcribe", "a.wav", env={"MT3_MODEL": ""})
    if shipped_models():
        assert unnamed.returncode == 0
        assert is_midi("a.mid")
    else:
        refused(unnamed, 3, "mt3 export")
        assert names() == ["a.wav"]


@posix
def test_without_a_home(here, monkeypatch, tiny_bundle, capsys):
    for name in ("HOME", "MT3_CACHE", "MT3_MODEL", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # as containers run us: in no list of users
    assert cli.main(["transcribe", "a.wav", "-m", str(tiny_bundle)]) == 0
    capsys.readouterr()
    named = ["transcribe", "a.wav", "-o", "x.mid", "-m", "magenta_mt3"]
    for words in (["models", "where"], ["models", "remove", "magenta_mt3"], named):
        assert cli.main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "MT3_CACHE" in captured.err
    assert cli.main(["models", "list"]) == 0
    assert "MT3_CACHE" in capsys.readouterr().err
    assert cli.main(["doctor"]) == 0
    assert "home folder of this user is unknown" in capsys.readouterr().out
    monkeypatch.setenv("MT3_CACHE", "~nobody-at-all/x")
    assert cli.main(["models", "where"]) == 0


@linux
def test_an_hour_takes_no_more_memory_than_five_minutes(here, brief_bundle):
    noise = np.random.default_rng(0).integers(-3000, 3000, 16000 * 60, np.int16)
    peak = (
        "import atexit, re\n"
        "atexit.register(lambda: print('peak', re.search(r'VmHWM:\\s+(\\d+)', "
        "open('/proc/self/status').read())[1]))"
    )
    peaks = []
    for minutes in (5, 60):
        with soundfile.SoundFile("song.wav", "w", 16000, 1, "PCM_16") as file:
            for _ in range(minutes):
                file.write(noise)
        ended = mt3(
            *("transcribe", "song.wav", "-o", "x.mid", "--threads", "1", "-m", brief_bundle),
            before=peak,
        )
        assert ended.returncode == 0, ended.stderr.decode()
        assert f"{60.0 * minutes:.1f} s of audio" in ended.stderr.decode()
        peaks.append(int(ended.stdout.split()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 20  # MiB; the hour itself has 220 MiB as float32


def test_silence_is_an_empty_file_and_no_error(here, brief_bundle):
    soundfile.write("silence.wav", np.zeros(5 * 16000, np.int16), 16000)
    assert mt3("transcribe", "silence.wav", "-m", brief_bundle).returncode == 0
    assert not [m for m in mido.MidiFile("silence.mid") if m.type == "note_on"]


def test_silence_on_the_real_model(here, real_bundle):
    soundfile.write("silence.wav", np.zeros(5 * 16000, np.int16), 16000)
    ended = mt3("transcribe", "-q", "silence.wav", "-m", real_bundle)
    assert (ended.returncode, ended.stderr.count(b"mt3: warning: ")) == (0, 2)
    assert b"every sample is 0" in ended.stderr
    assert not [m for m in mido.MidiFile("silence.mid") if m.type == "note_on"]


# Models ------------------------------------------------------------------------------------------


def flip_a_byte(model, _other):
    path = model / "decoder.cpu.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(model, _other):
    path = model / "encoder.cpu.onnx"
    path.write_bytes(path.read_bytes()[:-1])


def remove(model, _other):
    (model / "encoder.cpu.onnx").unlink()


def mix(model, other):
    """A graph of another export, with its own digest: everything fits but the export."""
    manifest = json.loads((model / "bundle.json").read_text())
    foreign = json.loads((other / "bundle.json").read_text())
    shutil.copyfile(other / "decoder.cpu.onnx", model / "decoder.cpu.onnx")
    manifest["graphs"] = [
        next(new for new in foreign["graphs"] if new["file"] == old["file"])
        if old["file"] == "decoder.cpu.onnx"
        else old
        for old in manifest["graphs"]
    ]
    (model / "bundle.json").write_text(json.dumps(manifest))


def manifest_of(content):
    return lambda model, _other: (model / "bundle.json").write_bytes(content)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "other"
    variant = variant_named("magenta_mt3")
    source = {"layout": "seeded", "digest": "1" * 64}
    export_bundle(seeded_weights(seed=22), variant, path, source=source, profiles=("cpu",))
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "decoder.cpu.onnx"),
        (shorten, "encoder.cpu.onnx"),
        (remove, "encoder.cpu.onnx"),
        (mix, "another export"),
        (manifest_of(b""), "not readable as JSON"),
        (manifest_of(b"\xff\xfe{"), "not readable as JSON"),
        (manifest_of(b"[" * 100_000), "not readable as JSON"),
        (manifest_of(b"[1, 2]"), "does not describe a bundle"),
        (manifest_of(b'{"format": "mt3-runtime.bundle", "version": 99}'), "version 99"),
        (manifest_of(b'{"format": "mt3-runtime.bundle", "version": 1}'), "missing keys"),
        (manifest_of(bytes(2 << 20)), "is no manifest"),
    ],
)
def test_damaged_models(here, tiny_bundle, other_bundle, damage, words):
    model = shutil.copytree(tiny_bundle, here / "model")
    damage(model, other_bundle)
    refused(mt3("transcribe", "a.wav", "-m", model), 3, words, "model")
    assert names() == ["a.wav", "model"]


def test_a_path_is_not_taken_for_a_name(here, tiny_bundle, other_bundle, monkeypatch):
    """An installed model of the same name wins over ``tiny``, but not over ``./tiny``."""
    monkeypatch.setenv("MT3_CACHE", "cache")
    shutil.copytree(tiny_bundle, "tiny")
    shutil.copytree(other_bundle, "cache/bundles/tiny")
    for name, digit in (("tiny", "1"), ("./tiny", "0"), (Path("./tiny").absolute(), "0")):
        with load_model(resolve_model(name)) as loaded:
            assert loaded.info.source["digest"] == digit * 64


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def evil_pickle(path):
    Path(path).write_bytes(pickle.dumps(Evil()))


def evil_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"lm_head.weight": Evil()}, protocol=2))
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("make", [evil_pickle, evil_archive])
def test_a_checkpoint_that_is_a_program_is_not_run(here, make):
    make("evil.pth")
    refused(mt3("export", "evil.pth", "-o", "out"), 3, "evil.pth")
    assert names() == ["a.wav", "evil.pth"]


def test_an_incomplete_checkpoint(here, tiny_weights: Weights):
    incomplete = dict(tiny_weights.tensors)
    del incomplete["decoder.layers_1.mlp.wo.kernel"]
    write_t5x(here / "checkpoint", incomplete)
    ended = mt3("export", "checkpoint", "-o", "out")
    refused(ended, 3, "decoder.layers_1.mlp.wo.kernel")
    assert names() == ["a.wav", "checkpoint"]


@pytest.mark.parametrize("checkpoint", ["missing", "a.wav", "empty.pth", "empty"])
def test_checkpoints_that_are_none(here, checkpoint):
    Path("empty.pth").touch()
    Path("empty").mkdir()
    refused(mt3("export", checkpoint, "-o", "out"), 3, checkpoint)
    assert not Path("out").exists()


# The Python interface ----------------------------------------------------------------------------


def test_a_mirror_that_is_no_address(here):
    for mirror in ("nonsense", "http://[x", "file:///etc", "http://a b/"):
        ended = mt3("models", "pull", "magenta_mt3", env={"MT3_MIRROR": mirror})
        assert (ended.returncode, ended.stdout) == (3, b"")
        assert ended.stderr.decode().splitlines()[1].startswith(f"mt3: error: {mirror}")


class Tensor:
    """Looks like a tensor of another library."""

    def __init__(self, samples):
        self._samples = samples

    def __array__(self, dtype=None, copy=None):
        return self._samples


class OnTheGpu:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.fixture(scope="module")
def model(tiny_bundle):
    with load_model(tiny_bundle) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "change",
    [
        lambda a: np.stack([a, a]),
        lambda a: np.stack([a, a], 1),
        lambda a: a[np.newaxis],
        lambda a: a.astype(np.float64),
        lambda a: a.astype(">f4"),
        lambda a: a.tolist(),
        Tensor,
        lambda a: np.frombuffer(a.tobytes(), np.float32),
        lambda a: np.repeat(a, 2)[::2],
        lambda a: io.BytesIO(encoded(a, "WAV", subtype="FLOAT")),
    ],
)
def test_samples_in_any_shape(model: Model, audio, change):
    samples = audio[: 4 * 16000]
    assert model.transcribe_notes(change(samples)).notes == model.transcribe_notes(samples).notes


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.uint8, np.uint16, np.uint32])
def test_integer_samples(audio, kind):
    scale = 2.0 ** (8 * np.dtype(kind).itemsize - 1)
    shift = scale if np.dtype(kind).kind == "u" else 0
    samples = load_audio((np.clip(audio, -0.9, 0.9).astype(float) * scale + shift).astype(kind))
    assert np.abs(samples - np.clip(audio, -0.9, 0.9)).max() <= 1 / min(scale, 2**23)


class BrokenFile(io.BytesIO):
    """A file on a share that goes away after 20 kB; with Ctrl-C instead, if told so."""

    def __init__(self, content, error=None):
        super().__init__(content)
        self._error = error or OSError(5, "Input/output error")

    def read(self, size=-1):
        if self.tell() > 20_000:
            raise self._error
        return super().read(size)


#: 200 kB as FLAC, 50 kB as MP3.
NOISE = np.random.default_rng(2).uniform(-0.5, 0.5, 100_000)


def closed_file():
    file = io.BytesIO(wav())
    file.close()
    return file


def open_socket():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"not audio")
    theirs.close()
    with ours:
        return ours.makefile("rb")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: np.zeros((2, 3, 4)), "shape"),
        (lambda: np.float32(3), "shape"),
        (lambda: np.zeros((100, 100)), "shape"),
        (lambda: np.zeros((2, 0)), "shape"),
        (lambda: np.zeros((0, 2)), "no samples"),
        (list, "no samples"),
        (lambda: [1, 2, 3], "int64"),
        (lambda: [[1.0, 2.0], [3.0]], "list"),
        (lambda: np.zeros(100, complex), "complex"),
        (lambda: np.zeros(100, bool), "bool"),
        (lambda: np.array(["a", "b"]), "type"),
        (lambda: np.array([None, 1.0]), "object"),
        (lambda: np.full(100, 1e300), "too large"),
        (lambda: np.full(100, 1e38, np.float32), "too large"),
        (lambda: np.array([0.0, np.nan]), "NaN"),
        (lambda: None, "object"),
        (dict, "object"),
        (lambda: object, "object"),
        (lambda: b"a.wav", "io.BytesIO"),
        (OnTheGpu, "cuda:0"),
        (lambda: "", "empty"),
        (lambda: "a\0b.wav", "cannot be opened"),
        (lambda: "x" * 300, "cannot be opened"),
        (lambda: "missing.wav", "no file"),
        (lambda: Path("/"), "is a folder"),
        (lambda: io.StringIO("text"), "text mode"),
        (io.BytesIO, "empty"),
        (closed_file, "cannot be read"),
        (open_socket, "not audio"),
        (lambda: BrokenFile(wav(data=bytes(100_000))), "Input/output error"),
        (lambda: BrokenFile(encoded(NOISE, "FLAC")), "Input/output error"),
        (lambda: BrokenFile(encoded(NOISE, "OGG")), "Input/output error"),
        (lambda: BrokenFile(encoded(NOISE, "MP3")), "Input/output error"),
    ],
)
def test_audio_that_is_none(model: Model, make, words):
    with pytest.raises(AudioError, match=words):
        model.transcribe_notes(make())


def test_ctrl_c_in_the_middle_of_a_read_is_not_lost():
    with pytest.raises(KeyboardInterrupt):
        load_audio(BrokenFile(wav(data=bytes(100_000)), KeyboardInterrupt()))


@pytest.mark.parametrize(
    "rate", [0, -1, np.nan, np.inf, 44.1, 1e9, 10**400, "44100", True, [16000]]
)
def test_rates_that_are_none(model: Model, rate):
    with pytest.raises(OptionError, match="is not a sample rate"):
        model.transcribe_notes(np.zeros(16000, np.float32), sr=rate)


@linux
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_devices_are_no_files(device):
    with pytest.raises(AudioError, match="is a device"):
        open_audio(device)


@posix
def test_a_pipe_without_end(monkeypatch):
    monkeypatch.setattr(audiobytes, "_MAX_UNSEEKABLE", 1 << 20)
    reading, writing = os.pipe()

    def pour():
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            while True:
                file.write(bytes(1 << 16))

    thread = threading.Thread(target=pour)
    thread.start()
    with os.fdopen(reading, "rb") as file, pytest.raises(AudioError, match="does not end"):
        open_audio(file)
    thread.join()


def test_errors_are_of_ours_and_of_the_builtin_kind(model: Model, here):
    with pytest.raises(FileNotFoundError) as caught:
        model.transcribe("missing.wav")
    assert isinstance(caught.value, AudioNotFoundError | MT3Error)
    with pytest.raises(ValueError, match="suffix"):
        model.transcribe_notes("a.wav").save("x.wav")
    with pytest.raises(OSError, match="no folder|No such file"):
        model.transcribe_notes("a.wav").save("nowhere/x.mid")
    assert names() == ["a.wav"]


# Any bytes ---------------------------------------------------------------------------------------


def read_or_refused(content):
    """Audio, or an `AudioError`; anything else is a bug."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            samples = load_audio(io.BytesIO(content))
        except AudioError:
            return
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert np.isfinite(samples).all()


SHORT = 0.1 * np.sin(np.arange(4000, dtype=np.float32))
FILES = [encoded(SHORT, name) for name in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")]


@settings(max_examples=100, deadline=None)
@given(
    start=st.sampled_from([b"", b"RIFF", b"fLaC", b"OggS", b"ID3", b"\xff\xfb\x90", b"FORM"]),
    rest=st.binary(max_size=2000),
)
def test_any_bytes_are_read_or_refused(start, rest):
    read_or_refused(start + rest)


@settings(max_examples=150, deadline=None)
@given(
    content=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    length=st.none() | st.integers(0, 4000),
)
def test_any_damage_is_read_or_refused(content, changes, length):
    damaged = bytearray(content)
    for position, value in changes:
        if position < len(damaged):
            damaged[position] = value
    read_or_refused(bytes(damaged[:length]))


@settings(max_examples=150, deadline=None)
@given(
    rate=st.integers(0, 2**32 - 1) | st.sampled_from([8000, 44100, 10_000_000]),
    channels=st.integers(0, 2**16 - 1) | st.integers(0, 8),
    bits=st.integers(0, 2**16 - 1) | st.sampled_from([8, 12, 16, 24, 32, 64]),
    code=st.integers(0, 2**16 - 1) | st.sampled_from([1, 2, 3, 6, 7, 0x11, 0x31, 0xFFFE]),
    stated=st.none() | st.integers(0, 2**32 - 1),
    data=st.binary(max_size=3000),
)
def test_any_wav_header_is_read_or_refused(rate, channels, bits, code, stated, data):
    align = channels * bits // 8 % 2**16
    header = wav(data=data, stated=stated)
    numbers = struct.pack("<HHIIHH", code, channels, rate, rate * align % 2**32, align, bits)
    read_or_refused(header[:20] + numbers + header[36:])


def test_a_result_inside_the_model_is_refused(here, tiny_bundle):
    copy = Path(shutil.copytree(tiny_bundle, here / "model"))
    before = (copy / "bundle.json").read_bytes()
    done = mt3("transcribe", "a.wav", "-m", "model", "-o", "model/bundle.json", "-f", "json")
    assert done.returncode == 1
    assert b"is inside the model" in done.stderr
    assert (copy / "bundle.json").read_bytes() == before
