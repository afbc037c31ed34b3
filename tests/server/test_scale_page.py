"""docs/scale.md says what its scripts say: costs, and what the simulation comes to."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_costs_are_those_of_the_script():
    costs = script("costs")
    rows = costs.rows([float(price) for price in costs.PRICES.split(",")])
    for line in (*costs.HEAD.splitlines(), *(row.line() for row in rows)):
        assert line in PAGE.splitlines()
    song = costs.figures()["song"]["figures"]
    for machine in costs.MACHINES[1:]:
        for speed in costs.limits(machine, song["tokens"] / song["audio"]).values():
            assert f"| {speed:,.0f}x |" in PAGE


@pytest.mark.parametrize("seed", [1, 2])
def test_the_simulation_loses_nothing(seed):
    million = script("million")
    world = million.World(
        songs=4_000, workers=20, lifetime=1.0, slow=0.1, crashing=0.001, speed=10.0
    )
    found = million.simulate(world, seed)
    assert len(found) == 3
    for way in found.values():
        assert way["twice"] == way["lost"] == 0
        assert way["deaths"] > 0
        assert way["again"] > 0
        assert way["hours"] >= way["ideal"]
    slowest = found["1 shards a worker"]["hours"]
    assert found["blocks of one driver"]["hours"] < slowest
    assert found["10 shards a worker"]["hours"] < slowest


def test_the_page_has_the_kept_figures():
    kept = json.loads((ROOT / "benchmarks" / "results" / "million.json").read_text("utf-8"))
    for name, way in kept["ways, simulated"].items():
        assert f"| {name} | {way['hours']:.1f} |" in PAGE
    assert kept["world"]["songs"] == 1_000_000
    assert kept["world"]["workers"] == 1_000
