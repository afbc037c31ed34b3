"""Continuous integration proves something, or fails and says what it lacks."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.needs import NEEDS, PYTHONS, ROOT
from tests.pace import HANGS

FUNCTIONS = ROOT / ".ci" / "environments.sh"
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

#: What CI need not have: devices, large libraries beside smaller ones, and what is too long for
#: every check (scripts/nightly).
ABSENT = {
    "gpu", "jax2tf", "midi-readers", "control-groups", "encoders", "triton", "numpy1", "ray",
    "pages",
}  # fmt: skip


def shell(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script that has the functions of CI, where no package index can be reached."""
    unreachable = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source '{FUNCTIONS}'; {script}"],
        cwd=folder,
        env=inherited | unreachable | variables,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


@pytest.mark.parametrize(
    ("requirements", "arguments"),
    [
        ("numpy==2.4.6\n", '""'),  # the requirements
        ("", "torch==2.13.0"),  # what goes before them
        ("", '"" mt3-infer==0.2.0'),  # what goes behind them
    ],
)
def test_an_environment_that_cannot_be_installed_ends_the_run(tmp_path, requirements, arguments):
    (tmp_path / "oracle.txt").write_text(requirements)
    ended = shell(f"environment oracle oracle.txt {arguments}; echo went on", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "NOT INSTALLED: oracle.txt"
    assert "No matching distribution" in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / ".venvs" / "oracle" / "installed.txt").exists()


def test_a_python_that_is_not_there_ends_the_run(tmp_path):
    (tmp_path / "oracle.txt").touch()
    ended = shell('environment oracle oracle.txt ""', tmp_path, PYTHON="/no/python")
    assert ended.returncode == 1
    assert "NOT INSTALLED: oracle.txt" in ended.stderr


@pytest.mark.parametrize(("jobs", "code"), [(("true", "false", "true"), 1), (("true", "true"), 0)])
def test_one_failure_of_several_ends_the_run(tmp_path, jobs, code):
    started = "; ".join(f"{job} & jobs+=($!)" for job in jobs)
    ended = shell(f'jobs=(); {started}; all_of "${{jobs[@]}}"; echo went on', tmp_path)
    assert ended.returncode == code
    assert ended.stdout == ("" if code else "went on\n")


def test_an_environment_is_kept_until_something_else_is_wanted(tmp_path):
    """Nothing is installed here: an environment without packages, then with one."""
    (tmp_path / "oracle.txt").write_text("# nothing\n")
    first = shell('environment oracle oracle.txt ""', tmp_path)
    assert first.returncode == 0, first.stderr
    (tmp_path / ".venvs" / "oracle" / "mark").touch()
    kept = shell('environment oracle oracle.txt ""', tmp_path, PYTHON="/no/python")
    assert kept.returncode == 0, kept.stderr
    assert (tmp_path / ".venvs" / "oracle" / "mark").exists()
    other = shell('environment oracle oracle.txt "" mt3-infer==0.2.0', tmp_path)
    assert other.returncode == 1


def test_ci_requires_all_that_it_can_have():
    (listed,) = re.findall(r"MT3_REQUIRE=\$\{MT3_REQUIRE-([\w,\\\n-]+)\}", RUN)
    assert set(listed.replace("\\\n", "").split(",")) == set(NEEDS) - ABSENT
    for name, variable in PYTHONS.items():
        assert (f"export {variable}=$PWD/.venvs/" in RUN) == (name not in ABSENT), name


def test_ci_checks_the_nightly_results_and_ends_with_the_tests():
    assert "scripts/nightly_results.py check" in RUN
    assert RUN.splitlines()[-2:] == ["scripts/test", "exit $results"]
    nightly = (ROOT / "scripts" / "nightly").read_text(encoding="utf-8")
    assert "export MT3_JAX2TF_PYTHON=$PWD/.venvs/" in nightly


def test_the_check_needs_no_root():
    """scripts/test is what README shows: it installs into its own environment and nowhere else."""
    script = (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    assert "apt-get" not in script + FUNCTIONS.read_text(encoding="utf-8")
