"""README's figures are those of the kept results, word for word."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from scripts import nightly_results
from scripts.nightly_results import FIGURES, FOLDER, check
from tests.needs import ROOT


def script(name: str):
    """A benchmark's module, which lies in no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = script("readme_table")


@pytest.fixture
def kept() -> dict:
    return table.load()


def test_readme_shows_what_was_kept():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table.replaced(text, table.render(table.load())) == text


def test_the_kept_figures_are_of_one_run(kept):
    result = kept["parts"]["readme"]
    for part in result["benchmarks"].values():
        assert part["machine"] == kept["machine"]
        assert part["digest"] == result["digest"]
        assert part["figures"]["same"]


@pytest.mark.parametrize(
    ("part", "figure", "old", "new"),
    [
        ("song", "ours", "123 s", "| song of 3 minutes, file to MIDI | 123 s (1.5x real time) |"),
        ("cold_start", "shipped", "mt3-infer: 123 s", "| mt3-infer: 123 s |"),
        ("mr_mt3", "one_by_one", "123 s", "one recording at a time: 123 s |"),
    ],
)
def test_another_figure_is_another_table(kept, part, figure, old, new):
    before = table.render(kept)
    changed = copy.deepcopy(kept)
    changed["parts"]["readme"]["benchmarks"][part]["figures"][figure] = 123.4
    assert old not in before
    assert new in table.render(changed)


def test_the_caption_names_processor_date_and_other_work(kept):
    changed = copy.deepcopy(kept)
    changed["machine"] = {"cpu": "Some(R) Chip(TM)  9", "flags": ["avx2", "amx_tile"], "cores": 64}
    changed["date"] = "2031-05-06T07:08:09+00:00"
    parts = changed["parts"]["readme"]["benchmarks"]
    for part in parts.values():
        part["busy_before"] = 0.01
    assert "Not quiet" not in table.render(changed)
    parts["many"]["busy_before"] = 1.37
    caption = table.render(changed).partition("\n")[0]
    assert "64 cores of Some Chip 9 (avx2, amx_tile), 2031-05-06" in caption
    assert "Not quiet: other work took up to 1.4 cores." in caption


def test_a_result_that_lacks_a_part_makes_no_table(kept):
    del kept["parts"]["readme"]["benchmarks"]["yourmt3"]
    with pytest.raises(KeyError, match="yourmt3"):
        table.render(kept)


@pytest.mark.parametrize("missing", table.MARKS)
def test_a_page_without_marks_is_left_alone(tmp_path, missing):
    page = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace(missing, "")
    page.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="lacks"):
        table.write(readme=page)
    assert page.read_text(encoding="utf-8") == text


def test_only_what_is_between_the_marks_is_written(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n" + "old\n".join(table.MARKS) + "\nbehind\n", encoding="utf-8")
    assert table.write(readme=page)
    assert not table.write(readme=page)
    found = page.read_text(encoding="utf-8")
    assert found.startswith(f"before\n{table.MARKS[0]}")
    assert found.endswith(f"{table.MARKS[1]}\nbehind\n")
    assert "old" not in found


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("s", 0.456, "0.46 s"), ("s", 9.96, "10.0 s"), ("s", 534.4, "534 s"),
        ("x", 0.954, "0.95x"), ("x", 2.449, "2.4x"), ("x", 97.4, "97x"),
        ("%", 0.9902, "99.0 %"), ("%", 1.0, "100 %"), ("%", 0.016, "1.6 %"), ("%", 0.68, "68 %"),
        ("%", 1.213, "121 %"),
        ("%", 0.0, "0 %"), ("length", 180.0, "3 minutes"), ("length", 60.0, "60 s"),
        ("ms", [0.0023, 0.00599, 0.0146], "2.3 / 6.0 / 14.6 ms"),
    ],
)  # fmt: skip
def test_rounding(kind, value, expected):
    assert table.Words().vformat(f"{{a.b:{kind}}}", (), {"a": {"b": value}}) == expected


@pytest.mark.parametrize(
    ("ended", "runaways", "expected"),
    [
        ([True, True, False, True], 1, 0.5 + 4 * 2.0),
        ([True, False, False, False], 3, 0.5 + 4 * 1.0),
        ([True, True, True, True], 0, 0.5 + 4 * 2.5),
    ],
)
def test_time_without_runaway_segments(monkeypatch, ended, runaways, expected):
    """Segments that never end are counted as long as the mean of those that do."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    song = importlib.import_module("song")
    seconds = [1.0, 2.0, 4.0 if all(ended) else 60.0, 3.0]
    each = [
        {"seconds": took, "tokens": 9 if end else 1023, "ended": end}
        for took, end in zip(seconds, ended, strict=True)
    ]
    answer = {"around": 0.5, "segments": 4, "each": each}
    assert song.without_runaways([answer]) == (runaways, pytest.approx(expected))
    assert song.without_runaways([answer, answer])[0] == 2 * runaways


def test_scores_of_several_recordings_add_up(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    recordings = importlib.import_module("recordings")
    assert recordings.f1([5, 10, 10]) == pytest.approx(0.5)
    assert recordings.f1([5, 10, 10], [0, 0, 10]) == pytest.approx(1 / 3)
    assert recordings.f1([0, 0, 0]) == 0.0


# --- what the figures cover ----------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What decides whether the figures are of this code."""
    for source in nightly_results.SOURCES:
        (tmp_path / source).mkdir()
    for name in FIGURES["readme"].files:
        place = nightly_results.find(ROOT, name).relative_to(ROOT)
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / place, tmp_path / place)
    shutil.copytree(ROOT / FOLDER, tmp_path / FOLDER)
    return tmp_path


def test_the_figures_are_of_this_code(tree):
    assert check(tree, FIGURES) == []


@pytest.mark.parametrize("name", ["search.py", "audio/log_mel.py", "ort_cpu.py", "decoder.py"])
def test_figures_of_older_code_are_refused(tree, name):
    path = nightly_results.find(tree, name)
    path.write_text(path.read_text(encoding="utf-8") + "\n\nLATER = 1\n", encoding="utf-8")
    (fault,) = check(tree, FIGURES)
    assert "readme was not run on this code" in fault
    assert "run python benchmarks/readme.py --write and commit" in fault


@pytest.mark.parametrize("change", ["missing", "failed", "unfinished"])
def test_figures_that_prove_nothing_are_refused(tree, change):
    path = tree / FOLDER / "readme.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    found["parts"]["readme"] |= {"failed": {"failed": 1}, "unfinished": {"passed": 0}}.get(
        change, {}
    )
    if change != "missing":
        path.write_text(json.dumps(found), encoding="utf-8")
    assert len(check(tree, FIGURES)) == 1


def test_the_covered_files_are_there():
    assert len(nightly_results.digest(FIGURES["readme"])) == 64
    words = (ROOT / "benchmarks" / "readme_table.md").read_text(encoding="utf-8")
    assert not re.search(r"\d\.\d", words)  # words only: every figure is a kept one
