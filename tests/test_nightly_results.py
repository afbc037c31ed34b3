"""What the nightly run covers, and which changes ask for a new one."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from scripts import nightly_results
from scripts.nightly_results import PARTS, Part, check, digest, good, meaning, read
from tests.needs import NEEDS, ROOT

SOURCE = '''"""Makes weights."""

from __future__ import annotations

import json

from mt3_export.graphs.graph_builder import Graph
from mt3_export.weights import T5Shape, Weights
from mt3_runtime.diagnostics import nvidia
from mt3_runtime.errors import MT3Error


def make() -> Weights:
    from mt3_export.graphs.graph_builder import late

    return late(json, Graph, T5Shape, nvidia, MT3Error)
'''
MOVED = '''"""Makes weights of what `mt3_export.networks.weights` describes."""

from __future__ import annotations

import json

from mt3_export.networks.weights import (
    T5Shape,
    Weights,
)
from mt3_runtime.diagnostics import nvidia
from mt3_runtime.errors import MT3Error
from mt3_training.late_graph import Graph


def make() -> Weights:
    """Weights; see `mt3_export.networks.weights`."""
    # The graph is late.
    from mt3_training.graph import late

    return late(json, Graph, T5Shape, nvidia, MT3Error)
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with one covered module, and one that it imports."""
    for folder in nightly_results.SOURCES:
        (tmp_path / folder).mkdir()
    (tmp_path / nightly_results.FOLDER).mkdir(parents=True)
    (tmp_path / "export" / "maker.py").write_text(SOURCE)
    (tmp_path / "export" / "weights.py").write_text("")
    return tmp_path


PART = Part(("maker.py",), ("shared",))


def said(tree: Path, text: str) -> str:
    (tree / "export" / "maker.py").write_text(text)
    return digest(PART, tree)


def keep(tree: Path, name: str = "nightly-2030-01-01.json", **changes: object) -> None:
    result = {"digest": digest(PART, tree), "exit": 0, "passed": 3, "failed": 0, "skipped": 0}
    whole = {"date": name[8:18], "parts": {"making": result | changes}}
    (tree / nightly_results.FOLDER / name).write_text(json.dumps(whole))


def test_moving_what_is_imported_changes_nothing(tree):
    before = digest(PART, tree)
    assert said(tree, MOVED) == before
    folder = tree / "export" / "networks"
    folder.mkdir()
    (tree / "export" / "maker.py").rename(folder / "maker.py")
    (tree / "export" / "weights.py").rename(folder / "weights.py")
    assert digest(PART, tree) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return late(", "return 2 * late("),
        ("T5Shape, Weights\n", "OtherShape as T5Shape, Weights\n"),
        (
            "from mt3_export.graphs.graph_builder import Graph\n",
            "from mt3_export.graphs.graph_builder import Graph as T\n",
        ),
        ("import json", "import simplejson as json"),
        ("from mt3_runtime.diagnostics import nvidia", "from mt3_runtime import weights as nvidia"),
    ],
)
def test_saying_something_else_changes_it(tree, old, new):
    before = digest(PART, tree)
    assert old in SOURCE
    assert said(tree, SOURCE.replace(old, new)) != before


def test_data_is_taken_as_it_is(tmp_path):
    (tmp_path / "x.json").write_text("import mt3_runtime\n")
    assert meaning(tmp_path / "x.json") == b"import mt3_runtime\n"


@pytest.mark.parametrize("places", [(), ("tests/maker.py", "runtime/maker.py")])
def test_a_name_is_one_file(tree, places):
    (tree / "export" / "maker.py").unlink()
    for place in places:
        (tree / place).write_text("")
    with pytest.raises(SystemExit, match=r"expected one file maker\.py"):
        digest(PART, tree)


def test_a_result_holds_until_the_code_changes(tree):
    (fault,) = check(tree, {"making": PART})
    assert fault.startswith("making was not run on this code, whose files are maker.py (last good ")
    assert "result: never); run scripts/nightly making" in fault
    keep(tree)
    assert check(tree, {"making": PART}) == []
    (fault,) = check(tree, {"making": PART, "other": PART})
    assert fault.startswith("other was not run")
    said(tree, SOURCE + "\n\nONE = 1\n")
    (fault,) = check(tree, {"making": PART})
    assert "last good result: 2030-01-01" in fault
    keep(tree, "nightly-2030-01-02-making.json")
    assert check(tree, {"making": PART}) == []


@pytest.mark.parametrize(
    "changes", [{"failed": 1}, {"skipped": 1}, {"passed": 0}, {"exit": 2}, {"digest": "0"}]
)
def test_what_proved_nothing_does_not_count(tree, changes):
    keep(tree, **changes)
    assert len(check(tree, {"making": PART})) == 1


def test_outcomes_and_figures_are_read_from_pytests_report():
    report = ET.fromstring("""<testsuites><testsuite>
        <testcase classname="tests.a" name="t[1]"><properties>
            <property name="F1" value="0.93"/></properties></testcase>
        <testcase classname="tests.a" name="u"><failure message="no"/></testcase>
        <testcase classname="tests.a" name="v"><error message="no"/></testcase>
        <testcase classname="tests.a" name="w"><skipped message="no"/></testcase>
        </testsuite></testsuites>""")
    found = read(report.iter("testcase"))
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert found["tests"]["tests.a::t[1]"] == "passed"
    assert found["figures"] == {"F1": "0.93"}
    assert not good({"exit": 0} | found)


def test_every_part_has_tests_and_covers_what_is_there():
    """And no test is marked with a part that nobody runs."""
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py")]
    marked = {name for s in sources for name in re.findall(r'mark\.nightly\(part="(\w+)"\)', s)}
    assert marked == set(PARTS)
    assert not [s for s in sources if re.search(r"mark\.nightly(?!\(part=)\b(?!\\)", s)]
    for part in PARTS.values():
        assert len(digest(part)) == 64
        assert set(part.needs) <= set(NEEDS)
