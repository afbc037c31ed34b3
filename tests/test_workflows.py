"""The hosted workflows: scripts of this project, little permission, known actions."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEPS = [
    (f"{name}:{job}", step)
    for name, workflow in WORKFLOWS.items()
    for job, body in workflow["jobs"].items()
    for step in body["steps"]
]


def test_the_workflows_that_there_are():
    assert list(WORKFLOWS) == ["check.yml", "docs.yml", "nightly.yml", "release.yml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_actions_are_pinned_by_digest_and_say_their_version(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert lines
    for line in lines:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_one_action_has_one_version():
    used = {step["uses"] for _, step in STEPS if "uses" in step}
    assert len({action.partition("@")[0] for action in used}) == len(used)


def test_what_is_run_is_a_script_of_this_project():
    """So that what fails there fails here; the command after variables and `sudo`."""
    for where, step in STEPS:
        if "run" not in step:
            continue
        for line in step["run"].strip().splitlines():
            words = [word for word in line.split() if "=" not in word and word != "sudo"]
            program = ROOT / words[0]
            assert words[0].startswith(("scripts/", ".ci/")), f"{where}: {line}"
            assert program.stat().st_mode & 0o111, f"{where}: {line}"
            subprocess.run(["bash", "-n", program], check=True) if program.read_bytes().startswith(
                b"#!/usr/bin/env bash"
            ) else compile(program.read_text(encoding="utf-8"), program, "exec")


def test_permissions_are_given_by_job_and_credentials_are_not_kept():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {}, name
        for job, body in workflow["jobs"].items():
            assert "permissions" in body, f"{name}:{job}"
            assert body["timeout-minutes"] <= 240
    for where, step in STEPS:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, where
    writers = {
        f"{name}:{job}"
        for name, workflow in WORKFLOWS.items()
        for job, body in workflow["jobs"].items()
        if "write" in body["permissions"].values()
    }
    assert writers == {
        "docs.yml:deploy",
        *(f"release.yml:{n}" for n in ("build", "publish", "image")),
    }


def test_every_python_and_system_is_in_the_matrix():
    matrix = WORKFLOWS["check.yml"]["jobs"]["systems"]["strategy"]["matrix"]
    promised = [
        line.rpartition(" :: ")[2]
        for line in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", line)
    ]
    assert matrix["python"] == promised
    kinds = {"ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "windows-2025"}
    assert set(matrix["system"]) == kinds
    assert matrix["dependencies"] == ["newest"]
    assert [row["dependencies"] for row in matrix["include"]] == ["oldest"]


def test_nothing_is_published_without_its_provenance_and_audit():
    release = WORKFLOWS["release.yml"]["jobs"]
    build = [step.get("uses", step.get("run")) for step in release["build"]["steps"]]
    (attested,) = [n for n, what in enumerate(build) if "attest-build-provenance" in what]
    assert any(what.startswith("scripts/distributions") for what in build[:attested])
    assert "scripts/audit" in build
    assert release["publish"]["needs"] == "build"
    assert release["publish"]["environment"] == "release"
    assert release["publish"]["permissions"] == {"id-token": "write"}  # and no checkout, no token
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"secrets\.(\w+)", text)) == {"GITHUB_TOKEN"}


def test_a_bad_transcription_comes_with_what_is_needed_to_look_at_it():
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / "bad-transcription.yml"
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    fields = {item["id"]: item for item in form["body"] if "id" in item}
    required = {n for n, item in fields.items() if item.get("validations", {}).get("required")}
    assert {"audio", "expected", "doctor"} <= required
    assert "mt3 doctor" in fields["doctor"]["attributes"]["label"]


def test_the_check_lints_the_workflows_too():
    assert "\nscripts/lint\n" in (ROOT / "scripts" / "test").read_text(encoding="utf-8")
    lint = (ROOT / "scripts" / "lint").read_text(encoding="utf-8")
    programs = ("ruff check .", "mypy", "codespell ", "zizmor ", "check-jsonschema ", "actionlint")
    assert all(program in lint for program in programs)
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "--prefix .ci/actionlint" in run
