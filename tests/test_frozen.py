"""Programs that PyInstaller makes of scripts which use this project, with nothing said to it.

Slow: each is frozen once, in some ten seconds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import mt3_runtime.__pyinstaller as hooks
from mt3_runtime.cli import ExitCode
from mt3_runtime.files.formats import load_notes
from mt3_runtime.loading import load_model
from tests import needs

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "calibration" / "demo" / "demo.flac"

PROGRAMS = {
    "app": "import sys\nfrom mt3_runtime import transcribe\n"
    "transcribe(sys.argv[1]).save(sys.argv[2])\n",
    "reader": "print('top')\nimport sys\nfrom mt3_runtime.reading import LocalReading, ReaderPool\n"
    "with ReaderPool(2) as pool:\n"
    "    parts = [[p.data.tobytes() for p in pool.open(sys.argv[1])] for _ in range(2)]\n"
    "here = [part.data.tobytes() for part in LocalReading(sys.argv[1])]\n"
    "print(parts == [here, here], len(here))\n",
    "mt3": "import sys\nfrom mt3_runtime.__main__ import main\nsys.exit(main())\n",
}

needs.package("PyInstaller")


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, default_bundle):
    """Runs a frozen program, which is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("frozen")

    def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
        program = folder / "dist" / name / f"{name}{'.exe' if os.name == 'nt' else ''}"
        if not program.exists():
            script = folder / f"{name}.py"
            script.write_text(PROGRAMS[name])
            registered = entry_points(group="pyinstaller40", name="hook-dirs")
            ours = any(entry.value.startswith("mt3_runtime.") for entry in registered)
            # An installation from before the hook, or none at all, does not register it.
            told = [] if ours else ["--additional-hooks-dir", *hooks.get_hook_dirs()]
            subprocess.run(
                [sys.executable, "-m", "PyInstaller", "--log-level", "ERROR", *told, str(script)],
                cwd=folder,
                check=True,
                capture_output=True,
            )
        # Nothing of this environment: what the program needs is in it.
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("MT3_", "PYTHON"))}
        variables["MT3_CACHE"] = str(folder / "cache")
        return subprocess.run(
            [str(program), *words],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_frozen_program_transcribes_as_its_script_does(frozen, tmp_path):
    ended = frozen("app", str(DEMO), str(tmp_path / "x.mid"))
    assert ended.returncode == 0, ended.stderr
    with load_model("default") as model:
        model.transcribe(DEMO).save(tmp_path / "y.mid")
    assert (tmp_path / "x.mid").read_bytes() == (tmp_path / "y.mid").read_bytes()


def test_the_frozen_command(frozen, tmp_path):
    ended = frozen("mt3", "transcribe", str(DEMO), "-o", str(tmp_path / "x.json"))
    assert ended.returncode == ExitCode.OK, ended.stderr
    assert len(load_notes(tmp_path / "x.json")) > 100
    assert frozen("mt3", "models").returncode == ExitCode.OK
    assert re.match(r"mt3-runtime \d", frozen("mt3", "--version").stdout)


@pytest.mark.parametrize("device", ["cpu", "tensorrt"])
def test_the_doctor_of_a_frozen_program(frozen, device):
    ended = frozen("mt3", "doctor", "--device", device)
    assert ended.returncode == (ExitCode.OK if device == "cpu" else ExitCode.UNUSABLE)
    assert ended.stderr == ""
    for subject in ("CPUExecutionProvider", "audio files", "models", "soxr"):
        assert re.search(rf"^ok +{subject} ", ended.stdout, re.MULTILINE), ended.stdout
    assert "pip " not in ended.stdout


@pytest.mark.parametrize("words", [["export", "x.pth"], ["build", "x"], ["plot", "x.mid"]])
def test_a_room_that_was_left_out_is_named(frozen, words):
    ended = frozen("mt3", *words)
    assert ended.returncode == ExitCode.UNUSABLE
    assert re.fullmatch(
        rf"mt3: error: The command '{words[0]}' is registered, but cannot be loaded .*: "
        r"build this program again with mt3_\w+ in it\.\n",
        ended.stderr,
    )


def test_the_hook_is_where_the_package_says():
    (folder,) = hooks.get_hook_dirs()
    assert (Path(folder) / "hook-mt3_runtime.py").is_file()


def test_reader_processes_of_a_frozen_program(frozen):
    """They are the program itself, which runs once, though its script has no main guard."""
    ended = frozen("reader", str(DEMO))
    assert ended.returncode == 0, ended.stderr
    first, last = ended.stdout.splitlines()
    assert first == "top"
    assert last.startswith("True ")
