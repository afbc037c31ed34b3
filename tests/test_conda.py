"""The conda recipe asks for what pyproject.toml asks for, under conda-forge's names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
OUTPUTS = {output["package"]["name"]: output for output in RECIPE["outputs"]}

#: Where conda-forge has another name than PyPI.
NAMES = {"soundfile": "pysoundfile", "soxr": "soxr-python"}


def asked(lines: list[str]) -> set[tuple[str, str]]:
    """Requirements as names and ranges, as they are for conda-forge."""
    found = set()
    for line in lines:
        name, limits = re.fullmatch(r"([\w-]+)\s*(.*)", line).groups()
        found.add((NAMES.get(name, name), limits))
    return found


def test_the_version_is_that_of_the_project():
    assert RECIPE["context"]["version"] == PROJECT["version"]
    assert RECIPE["about"]["license"] == PROJECT["license"]


def test_the_core_asks_for_what_the_core_asks_for():
    core = OUTPUTS["mt3-runtime-core"]["requirements"]
    python = {("python", PROJECT["requires-python"])}
    assert asked(core["run"]) == asked(PROJECT["dependencies"]) | python
    builder = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert asked(builder) <= asked(core["host"])


def test_the_whole_is_the_core_with_what_the_extra_cpu_brings():
    whole = asked(OUTPUTS["mt3-runtime"]["requirements"]["run"])
    core = {("mt3-runtime-core", "==${{ version }}")}
    assert whole == asked(PROJECT["optional-dependencies"]["cpu"]) | core
