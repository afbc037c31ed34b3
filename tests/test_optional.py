"""Every command and every ``python -m`` program without the packages that only extras bring.

One thing may happen: it does its work, or it ends with code 3 and one line that names the package,
the extra, and what to type.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from mt3_runtime import cli
from mt3_runtime.cli import ExitCode
from mt3_runtime.imports import extras

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
DEMO = ROOT / "calibration" / "demo"

#: In no extra, and imported where it is needed all the same.
ALONE = {"tinysoundfont"}
OPTIONAL = set(extras._extras()) | ALONE | {"jaxlib"}

BLOCKED = """
import runpy, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
module, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

#: Words behind `mt3`, and the extra that is named; None where all works without.
COMMANDS = [
    ("transcribe {audio} -m {bundle} -o {folder}/x.mid", "cpu"),
    ("models list", None),
    ("models info mt3_pytorch", None),
    ("export {folder}/some.pth", "export"),
    ("export magenta_mt3", "export"),
    ("build {bundle}", "trt"),
    ("build {bundle} --for rtx", "rtx"),
    ("build {bundle} --graphs {folder}/graphs", "trt"),
    ("engines list --engines {folder}", None),
    ("calibrate {bundle} --precision fast -o {folder}/fast", "calibration"),
    ("calibrate train {folder}/run --steps 1", "cpu,calibration,torch,viz"),
    ("calibrate export {folder}/run -o {folder}/made", "calibration"),
    ("calibrate --help", None),
    ("calibrate index {demo} -o {folder}/indices", "cpu"),
    ("calibrate train --help", None),
    ("calibrate export --help", None),
    ("evaluate {audio} --labels {demo} -m {bundle}", "calibration"),
    ("evaluate --leakage {audio} -m {bundle}", "calibration"),
    ("plot {demo}/demo.mid -o {folder}/x.png", "viz"),
    ("tag {audio} -m {bundle}", "cpu"),
    ("genre {audio} -m {bundle}", "cpu"),
    ("assess {audio} -m {bundle}", "cpu"),
    ("assess {demo}/demo.mid", None),
    ("calibrate assess --help", None),
    ("serve -m {bundle} --spool {folder}/spool", "serve"),
    ("serve --help", None),
    ("triton {bundle} -o {folder}/repository", None),
    ("web build -m {bundle} -o {folder}/site", "export"),
    ("bench {audio} -m {bundle}", "cpu"),
    ("doctor", None),
]

PROGRAMS = [
    ("mt3_runtime models where", None),
    ("mt3_runtime.cli export {folder}/some.pth", "export"),
    ("mt3_engines.verify_on_gpu {bundle} {audio}", "trt"),
    ("mt3_training.shipping.ship {folder}/run", "export"),
    ("mt3_evaluation.leakage_study.leakage_evidence {demo} -m {bundle}", "cpu"),
    # These fail earlier, for want of what they are about.
    ("mt3_synthesis.demo {folder}", ""),
    ("mt3_evaluation.leakage_study.leakage_set tune {folder}", ""),
    ("mt3_training.shipping.model_card {folder} --board x --speed x -o {folder}", ""),
    ("mt3_evaluation.scoreboards.scoreboard {bundle} --sets e1 --count 1", ""),
]


def run(words: str, folder: Path, bundle: Path, blocked: Iterable[str] = OPTIONAL):
    names = {"folder": folder, "bundle": bundle, "demo": DEMO, "audio": DEMO / "demo.flac"}
    code = BLOCKED.format(blocked=set(blocked))
    return subprocess.run(
        [sys.executable, "-c", code, *(word.format(**names) for word in words.split())],
        capture_output=True,
        text=True,
        check=False,
    )


def check(ended, extra: str | None) -> None:
    """One line of advice, or the work."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "internal error" not in ended.stderr, ended.stderr
    if extra is None:
        assert ended.returncode == ExitCode.OK, ended.stderr
        return
    assert ended.returncode not in (ExitCode.OK, ExitCode.INTERNAL)
    said = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert len(said) == 1, ended.stderr
    if extra:
        named = re.search(r"extra \[([\w,]+)\]: pip install (.+)", said[0])
        assert named, said
        assert named[1] == extra
        lines = [line for one in extra.split(",") for line in EXTRAS[one]]
        asked = {re.split(r"[^\w.-]", line)[0].replace("_", "-") for line in lines}
        advised = set(re.findall(r'"([\w.-]+)', named[2]))
        assert advised
        assert advised <= asked


@pytest.mark.parametrize(("words", "extra"), COMMANDS)
def test_every_command_names_its_extra(words, extra, tmp_path, tiny_bundle):
    ended = run(f"mt3_runtime {words}", tmp_path, tiny_bundle)
    if words == "doctor":
        assert ended.returncode == ExitCode.UNUSABLE
        assert ended.stderr == ""
        for name in ("export", "calibration", "viz"):
            assert re.search(rf'note +extra {name} .*\n +-> pip install "', ended.stdout)
        return
    check(ended, extra)
    assert ended.returncode == (ExitCode.OK if extra is None else ExitCode.UNUSABLE)
    assert not list(tmp_path.rglob("*.mid"))


@pytest.mark.parametrize(("words", "extra"), PROGRAMS)
def test_every_program_names_its_extra(words, extra, tmp_path, tiny_bundle, monkeypatch):
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    check(run(words, tmp_path, tiny_bundle), extra)


@pytest.mark.parametrize(
    ("words", "blocked", "extra"),
    [
        ("transcribe {audio} -m {bundle} -o {folder}/x.mid", "soundfile", "cpu"),
        ("transcribe {audio} -m {bundle} -o {folder}/x.mid", "soxr", "cpu"),
        ("transcribe {audio} -m {bundle} -o {folder}/x.mid", "rich", None),
        ("export {folder}/some.pth", "msgpack", "export"),
        ("plot {demo}/demo.mid -o {folder}/x.png", "matplotlib", "viz"),
        ("evaluate {audio} --labels {demo} -m {bundle}", "soundfile", "cpu"),
        ("calibrate train {folder}/run --steps 1", "torch", "cpu,calibration,torch,viz"),
        ("calibrate {bundle} --precision fast -o {folder}/fast", "onnx", "calibration"),
        ("calibrate export --help", "onnx", None),
    ],
)
def test_one_package_is_absent(words, blocked, extra, tmp_path, tiny_bundle):
    ended = run(f"mt3_runtime {words}", tmp_path, tiny_bundle, {blocked})
    assert "Traceback" not in ended.stderr
    if extra is None:
        assert ended.returncode == ExitCode.OK, ended.stderr
        return
    assert f"needs {blocked}, which cannot be imported" in ended.stderr
    assert f"extra [{extra}]: pip install" in ended.stderr
    assert ended.returncode in (ExitCode.UNUSABLE, ExitCode.FAILED)


def test_no_command_is_left_out():
    assert {words.split()[0] for words, _ in COMMANDS} == set(cli.listings())


def test_no_program_is_left_out():
    found = set()
    for folder in ("runtime", "export", "engines", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                found.add(".".join(path.relative_to(ROOT / folder).with_suffix("").parts))
    assert {name.removesuffix(".__main__") for name in found} == {
        words.split()[0] for words, _ in PROGRAMS
    }


def test_what_the_code_imports_is_known():
    """By the installed metadata, every package of an extra leads to that extra."""
    for extra, requirements in EXTRAS.items():
        for requirement in requirements if extra != "dev" else ():
            name = re.split(r"[^\w.-]", requirement)[0].lower()
            module = extras._MODULES.get(name, name.replace("-", "_"))
            assert extra in extras._extras()[module], requirement
