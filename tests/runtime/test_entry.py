"""How `mt3` begins and ends: its entry point, ``python -m``, and Ctrl-C in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import soundfile

from mt3_runtime.cli import ExitCode
from mt3_runtime.imports.interrupts import Held

ROOT = Path(__file__).parents[2]

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

#: Presses Ctrl-C while a module is about to be imported, then runs the entry as `mt3` does.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            os.kill(os.getpid(), signal.SIGINT)

from mt3_runtime.__main__ import main
sys.modules.pop({moment!r}, None)
sys.meta_path.insert(0, Press())
sys.argv = ["mt3", *{words!r}]
{before}
sys.exit(main())
"""


def python(*words: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, **options
    )


@posix
@pytest.mark.parametrize(
    "moment",
    [
        "mt3_runtime.cli",
        "argparse",
        "mt3_runtime.errors",
        "mt3_runtime.commands.models_command",
        "json",
    ],
)
def test_ctrl_c_while_it_starts_is_one_line(moment):
    code = INTERRUPTED.format(moment=moment, words=["models"], before="")
    ended = python("-c", code)
    assert ended.stderr == "mt3: interrupted\n"
    assert ended.returncode == ExitCode.INTERRUPTED
    assert ended.stdout == ""


#: As C extensions answer an exception in the middle of their import: with another one.
FRAGILE = """
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {moment!r}:
            try:
                os.kill(os.getpid(), signal.{signal})
                for _ in range(100):
                    pass
            except BaseException as error:
                raise ImportError("initialization failed", name=name) from error
"""


@posix
@pytest.mark.parametrize(
    ("name", "said", "code"),
    [("SIGINT", "mt3: interrupted\n", 130), ("SIGTERM", "mt3: terminated\n", -15)],
)
@pytest.mark.parametrize("moment", ["numpy", "mido", "onnxruntime", "soundfile"])
def test_a_signal_while_an_extension_is_imported_waits(tmp_path, moment, name, said, code):
    soundfile.write(tmp_path / "a.wav", [0.1, -0.1] * 4000, 16000)
    words = ["transcribe", "-q", str(tmp_path / "a.wav"), "-o", str(tmp_path / "a.mid")]
    before, _, after = INTERRUPTED.partition("class Press:")
    after = after[after.index("\nfrom mt3_runtime") :]
    code_ = (before + FRAGILE.replace("{signal}", name) + after).format(
        moment=moment, words=words, before=""
    )
    ended = python("-c", code_)
    assert (ended.stderr, ended.returncode) == (said, code)
    assert not (tmp_path / "a.mid").exists()


@posix
def test_held_signals_reach_the_handlers_there_were():
    called = []
    before = signal.signal(signal.SIGINT, lambda number, _: called.append(number))
    ignored = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Held():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert called == []
        assert called == [signal.SIGINT]
        signal.raise_signal(signal.SIGINT)
        assert called == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, ignored)


def test_other_threads_import_without_handlers():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: Held().__enter__() or "fine").result() == "fine"


@posix
def test_ctrl_c_while_an_earlier_one_is_answered_is_one_line():
    again = (
        "import mt3_runtime.cli as cli\n"
        "def talk(message): os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.talk = talk"
    )
    code = INTERRUPTED.format(
        moment="mt3_runtime.commands.models_command", words=["models"], before=again
    )
    ended = python("-c", code)
    assert ended.stderr == "mt3: interrupted\n"
    assert ended.returncode == ExitCode.INTERRUPTED


@posix
def test_ctrl_c_while_python_ends_prints_no_traceback():
    late = "import atexit; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))"
    ended = python("-c", INTERRUPTED.format(moment="none", words=["--version"], before=late))
    assert ended.stdout.startswith("mt3-runtime ")
    assert ended.stderr == ""


def test_the_entry_imports_nothing_before_it_can_be_interrupted():
    code = (
        "import sys; before = set(sys.modules); import mt3_runtime.__main__;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    assert set(python("-c", code).stdout.split()) <= {"mt3_runtime", "importlib", "warnings"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"mt3": "mt3_runtime.__main__:main"}


@pytest.mark.parametrize("module", ["mt3_runtime", "mt3_runtime.cli"])
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], ExitCode.OK),
        (["transcribe", "nope.wav"], ExitCode.FAILED),
        (["nonsense"], ExitCode.USAGE),
        ([], ExitCode.USAGE),
    ],
)
def test_python_m_is_the_command(module, words, code, tmp_path):
    ended = python("-m", module, *words, cwd=tmp_path)
    assert ended.returncode == code
    assert ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "package",
    [
        "mt3_export",
        "mt3_engines",
        "mt3_synthesis",
        "mt3_evaluation",
        "mt3_training",
        "mt3_quantisation",
    ],
)
def test_python_m_of_another_package_is_refused(package):
    ended = python("-m", package)
    assert ended.returncode != ExitCode.OK
    assert "cannot be directly executed" in ended.stderr


def test_the_version_is_found_when_it_is_asked_for():
    code = "import mt3_runtime as m, sys; print(m.__version__, 'importlib.metadata' in sys.modules)"
    assert python("-c", code).stdout.split()[1:] == ["True"]
    code = "import mt3_runtime, sys; print('importlib.metadata' in sys.modules)"
    assert python("-c", code).stdout == "False\n"
