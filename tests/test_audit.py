"""The audit: licences that cannot be combined and packages that nobody looked up fail it."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


licences, advisories = script("licences"), script("advisories")


def component(name: str, *entries: dict) -> dict:
    return {"name": name, "version": "1", "licenses": list(entries)}


MIT = {"license": {"id": "MIT"}}
BSD = {"license": {"name": "License :: OSI Approved :: BSD License"}}


@pytest.mark.parametrize(
    ("expression", "fits"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("BSD-3-Clause AND 0BSD AND Zlib", True),
        ("(MIT AND (Apache-2.0 OR BSD-2-Clause))", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-2.0-only", False),
        ("AGPL-3.0-or-later", False),
        ("SSPL-1.0", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_what_can_be_combined(expression, fits):
    assert licences.compatible(expression) == fits


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((MIT,), "MIT"),
        ((BSD,), "BSD-3-Clause"),
        (({"expression": "MIT OR Apache-2.0"}, BSD), "MIT OR Apache-2.0 AND BSD-3-Clause"),
        (({"license": {"name": "see the file"}}, MIT), "MIT"),
        (({"license": {"name": "see the file"}},), "see the file"),
        ((), ""),
    ],
)
def test_what_a_package_states(entries, expected):
    assert licences.stated(component("x", *entries)) == expected


def test_a_report_fails_for_what_is_incompatible_unknown_or_idle(tmp_path, monkeypatch, capsys):
    sbom, rules, out = tmp_path / "a.json", tmp_path / "audit.toml", tmp_path / "report.md"
    gpl = {"license": {"id": "GPL-3.0-only"}}
    sbom.write_text(
        json.dumps({"components": [component("b", gpl), component("A", MIT), component("c")]})
    )
    rules.write_text(
        '[[licence]]\npackage = "gone"\nlicence = "MIT"\nreason = "r"\ndate = 2026-11-30'
    )
    monkeypatch.setattr(licences, "RULES", rules)
    assert licences.main([str(sbom), "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert "b 1: GPL-3.0-only" in said
    assert "c 1: states no licence" in said
    assert "gone: the entry" in said
    assert [line.split(" | ")[0] for line in out.read_text().splitlines()[2:]] == [
        "| A",
        "| b",
        "| c",
    ]
    rules.write_text(
        '[[licence]]\npackage = "b"\nlicence = "GPL-3.0-only"\nreason = "a program"\n'
        'date = 2026-11-30\naccept = true\n[[licence]]\npackage = "c"\nlicence = "MIT"\n'
        'reason = "its file"\ndate = 2026-11-30'
    )
    assert licences.main([str(sbom), "-o", str(out)]) == 0
    assert "a program (2026-11-30)" in out.read_text()


def test_exceptions_have_reasons_and_dates():
    rules = tomllib.loads((ROOT / ".ci" / "audit.toml").read_text(encoding="utf-8"))
    assert set(rules) <= {"licence", "hole"}
    for entry in [*rules.get("licence", ()), *rules.get("hole", ())]:
        assert len(entry["reason"]) > 20
        assert entry["date"].year >= 2026


@pytest.mark.parametrize(
    ("packages", "offline", "code", "said"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], "", 0, ""),
        ([{"name": "a", "skip_reason": "not found"}], "", 1, "NOT LOOKED UP: 1 of 1"),
        ([{"name": "a", "skip_reason": "not found"}], "1", 0, "NOT LOOKED UP: 1 of 1"),
        ([{"name": "mt3-runtime-core", "skip_reason": "not found"}], "", 0, ""),
        (
            [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}],
            "1",
            1,
            "known hole: a 1: CVE-1, mended in 2",
        ),
    ],
)
def test_known_holes_and_silence_fail(packages, offline, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MT3_AUDIT_OFFLINE", offline)
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"dependencies": packages}))
    assert advisories.main([str(path)]) == code
    assert said in capsys.readouterr().err
