"""What the suite promises about itself: skips have names, and no verdict depends on the clock."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import needs
from tests.pace import HANGS, counted_work

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "tests").rglob("*.py"))

#: Seconds; a limit below it may end what is only slow.
SHORTEST = 60

#: What may be asked of the platform, where the thing tested does not exist on others.
PLATFORM = re.compile(r"(os\.name|sys\.platform) [!=]= '\w+'")
CLOCKS = {"monotonic", "perf_counter", "process_time", "thread_time", "time"}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, by the words before its parenthesis."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def silent_skips(path: Path) -> list[str]:
    """Calls that leave out a test for another reason than the platform."""
    found = []
    for name, call in calls(path):
        last = name.rpartition(".")[2]
        if last == "skipif" and call.args and PLATFORM.fullmatch(ast.unparse(call.args[0])):
            continue
        if last in ("importorskip", "skip", "skipif", "skipIf", "skipUnless", "SkipTest"):
            found.append(ast.unparse(call))
    return found


def impatience(path: Path) -> list[str]:
    """Calls that read a clock, or give something less than `SHORTEST` to finish."""
    found = []
    for name, call in calls(path):
        owner, _, last = name.rpartition(".")
        limits = [key.value for key in call.keywords if key.arg == "timeout"]
        limits += call.args[:1] if last in ("wait", "join", "communicate") else []
        numbers = [limit.value for limit in limits if isinstance(limit, ast.Constant)]
        short = any(isinstance(n, int | float) and n < SHORTEST for n in numbers)
        hurried = last == "settings" and any(
            k.arg == "deadline" and ast.unparse(k.value) != "None" for k in call.keywords
        )
        if short or hurried or (owner == "time" and last in CLOCKS):
            found.append(ast.unparse(call))
    return found


def test_whatever_is_missing_has_a_name():
    """Tests are skipped through `needs.missing`, which MT3_REQUIRE can turn into a failure."""
    faults = {p.name: silent_skips(p) for p in MODULES if p.name != "needs.py"}
    assert {name: found for name, found in faults.items() if found} == {}


def test_no_verdict_depends_on_the_clock():
    """Recipes report how long they took; the MIDI writer is compared with itself at two sizes."""
    exempt = {
        "pace.py", "ray_recipe.py", "rtx_layers.py", "test_midi.py", "torch_oracle.py",
        "triton_recipe.py",
    }  # fmt: skip
    faults = {p.name: impatience(p) for p in MODULES if p.name not in exempt}
    assert {name: found for name, found in faults.items() if found} == {}
    assert hypothesis.settings().deadline is None


@pytest.mark.parametrize(
    "line",
    [
        "pytest.skip('no weights')",
        "pytest.importorskip('torch')",
        "pytestmark = pytest.mark.skipif(FOLDER is None, reason='no folder')",
        "skipif = pytest.mark.skipif(not os.path.exists('/opt/x') or os.name == 'nt')",
        "raise unittest.SkipTest('later')",
    ],
)
def test_a_skip_without_a_name_is_found(tmp_path, line):
    path = tmp_path / "module.py"
    path.write_text(f"{line}\n@pytest.mark.skipif(os.name != 'posix', reason='')\ndef f(): ...\n")
    assert len(silent_skips(path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "assert time.perf_counter() - begin < 2",
        "process.communicate(timeout=30)",
        "event.wait(10.0)",
        "@settings(deadline=200)\ndef f(): ...",
    ],
)
def test_an_impatient_test_is_found(tmp_path, line):
    path = tmp_path / "module.py"
    path.write_text(f"{line}\nprocess.wait(HANGS)\n', '.join(names)\nqueue.get(timeout=90)\n")
    assert len(impatience(path)) == 1


def test_what_is_required_may_not_be_missing(monkeypatch):
    monkeypatch.setenv("MT3_REQUIRE", "shared, oracle,")
    for name in ("shared", "oracle"):
        with pytest.raises(pytest.fail.Exception, match=f"{name} is missing: gone"):
            needs.missing(name, "gone")
    with pytest.raises(pytest.skip.Exception, match=r"bindings is missing: gone \(python tests"):
        needs.missing("bindings", "gone")


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        *((name, lambda name=name: needs.python_of(name)) for name in needs.PYTHONS),
        ("extras", lambda: needs.package("no_such_package")),
        ("soundfonts", lambda: needs.package("no_such_package", "soundfonts")),
        ("compiler", lambda: needs.tool("no-such-program", "compiler")),
        ("shared", needs.shared_folder),
    ],
)
@pytest.mark.parametrize("value", ["", "/no/such/place"])
def test_every_way_of_lacking_something_can_fail(monkeypatch, name, ask, value):
    for variable in (*needs.PYTHONS.values(), "MT3_SHARED"):
        monkeypatch.setenv(variable, value or "/no/such")
    monkeypatch.setenv("MT3_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match=f"^{name} is missing"):
        ask()
    monkeypatch.setenv("MT3_REQUIRE", name)
    with pytest.raises(pytest.fail.Exception, match=f"^{name} is missing"):
        ask()


def test_a_run_that_lacks_what_is_required_fails_and_names_it():
    """A whole run of pytest, over a test that is skipped without the variable."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:cov"]
    command += ["tests/engines/test_bindings.py", "-k", "real_classes"]
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    bare.pop("MT3_TENSORRT_BINDINGS", None)
    codes = {}
    for required in ("shared", "shared,bindings", "binding"):
        done = subprocess.run(
            command,
            env=bare | {"MT3_REQUIRE": required},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=HANGS,
            check=False,
        )
        codes[required] = done.returncode, done.stdout + done.stderr
    assert codes["shared"][0] == 0
    code, said = codes["shared,bindings"]
    assert code == 1
    assert "bindings is missing: MT3_TENSORRT_BINDINGS is not set" in said
    code, said = codes["binding"]
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "MT3_REQUIRE names binding; expected some of shared" in said


def test_work_is_counted():
    with counted_work() as little:
        sorted(range(10), key=lambda x: -x)
    with counted_work() as much:
        sorted(range(1000), key=lambda x: -x)
    assert 10 <= little.calls < 20
    assert 1000 <= much.calls < 1010
