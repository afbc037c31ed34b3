"""How many cores a process may use, by made-up control groups and a true one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mt3_runtime.diagnostics import cores
from mt3_runtime.diagnostics.cores import cpu_quota, usable_cores
from mt3_runtime.loading import load_model
from tests import needs

UNIFIED = "30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate"
OLD = "32 31 0:29 {shown} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "33 31 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


@pytest.fixture
def system(tmp_path):
    """Makes a root folder: ``system(groups, mounts, {path: text})``."""

    def make(groups: str, mounts: str, files: dict[str, str]) -> Path:
        for path, text in {
            "proc/self/cgroup": groups,
            "proc/self/mountinfo": mounts,
            **files,
        }.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text + "\n")
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("200000 100000", 2.0),
        ("150000 100000", 1.5),
        ("1000 100000", 0.01),
        ("max 100000", None),
        ("max", None),
        ("", None),
        ("200000", None),
        ("200000 0", None),
        ("-1 100000", None),
        ("a b", None),
    ],
)
def test_the_quota_of_a_container(system, text, quota):
    root = system("0::/", UNIFIED.format(shown="/"), {"sys/fs/cgroup/cpu.max": text})
    assert cpu_quota(root) == quota


def test_the_smallest_quota_up_the_hierarchy_counts(system):
    files = {
        "sys/fs/cgroup/cpu.max": "max 100000",
        "sys/fs/cgroup/kubepods/cpu.max": "300000 100000",
        "sys/fs/cgroup/kubepods/pod 1/cpu.max": "800000 100000",
        "sys/fs/cgroup/other/cpu.max": "100000 100000",
    }
    root = system("0::/kubepods/pod 1", UNIFIED.format(shown="/"), files)
    assert cpu_quota(root) == 3.0


def test_a_container_that_sees_its_group_under_the_hosts_name(system):
    """Without a namespace of its own, the path is the host's and the mount the group itself."""
    files = {"sys/fs/cgroup/cpu.max": "50000 100000", "sys/fs/cgroup/in/cpu.max": "20000 100000"}
    mounts = UNIFIED.format(shown="/docker/4711")
    assert cpu_quota(system("0::/docker/4711", mounts, files)) == 0.5
    assert cpu_quota(system("0::/docker/4711/in", mounts, files)) == 0.2
    assert cpu_quota(system("0::/../elsewhere", mounts, files)) == 0.5


def test_control_groups_of_the_old_kind(system):
    groups = "9:name=systemd:/x\n4:memory:/a\n2:cpu,cpuacct:/docker/4711\n0::/"
    mounts = "\n".join([MEMORY, OLD.format(shown="/")])
    folder = "sys/fs/cgroup/cpu,cpuacct/docker/4711"
    files = {f"{folder}/cpu.cfs_quota_us": "250000", f"{folder}/cpu.cfs_period_us": "100000"}
    assert cpu_quota(system(groups, mounts, files)) == 2.5
    assert cpu_quota(system(groups, mounts, {f"{folder}/cpu.cfs_quota_us": "-1"})) is None
    files = {f"{folder}/../cpu.cfs_quota_us": "100000", f"{folder}/../cpu.cfs_period_us": "200000"}
    assert cpu_quota(system(groups, mounts, files)) == 0.5


def test_blanks_in_names_are_octal(system):
    mounts = r"32 31 0:29 / /sys/fs/my\040groups rw - cgroup2 none rw"
    assert cpu_quota(system("0::/", mounts, {"sys/fs/my groups/cpu.max": "7 7"})) == 1.0


@pytest.mark.parametrize("mounts", ["", "nonsense", "1 2 3 - cgroup2", "1 2 3 4 /x - cgroup2 a b"])
@pytest.mark.parametrize("groups", ["", "0::", ":::::", "0"])
def test_what_cannot_be_understood_is_no_quota(system, groups, mounts):
    assert cpu_quota(system(groups, mounts, {})) is None


def test_other_systems_have_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "usable"),
    [(64, 2.0, 2), (64, 1.2, 2), (64, 0.1, 1), (2, 8.0, 2), (2, None, 2), (1, 1.0, 1)],
)
def test_the_smaller_of_affinity_and_quota(monkeypatch, affinity, quota, usable):
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
    assert usable_cores() == usable


@pytest.mark.parametrize(
    ("text", "usable"), [("5", 5), ("default", 2), ("0", 2), ("", 2), ("-3", 2), ("many", 2)]
)
def test_python_s_own_variable_overrules(monkeypatch, text, usable, tiny_bundle):
    monkeypatch.setenv("PYTHON_CPU_COUNT", text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    assert usable_cores() == usable
    with load_model(tiny_bundle, device="cpu") as model:
        assert f"threads: {usable})" in model.device


def test_a_true_control_group():
    """Where the kernel has groups of the old kind and lets us make one."""
    parent = Path("/sys/fs/cgroup/cpu")
    group = parent / f"mt3-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        needs.missing("control-groups", str(error))
    code = (
        f"import os; open({str(group / 'tasks')!r}, 'w').write(str(os.getpid()));"
        "from mt3_runtime.diagnostics.cores import *; print(cpu_quota(), usable_cores())"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHON_CPU_COUNT"}
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
        )
    finally:
        group.rmdir()
    assert ended.stdout == "0.5 1\n", ended.stderr
