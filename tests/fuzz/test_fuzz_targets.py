"""Every fuzz target reads its corpus, and some changed inputs; what fails overnight is kept."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings

from scripts import overnight_fuzzing as overnight
from tests import needs
from tests.fuzz import targets
from tests.fuzz.targets import CORPUS, TARGETS, inputs, seeds
from tests.pace import HANGS

FEW = {"audio": 60, "bundle": 40, "checkpoint": 60, "notes": 80, "http": 25}
"""Examples in every check; scripts/fuzz reads some hundred thousand in a night."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_changed_inputs_are_read_or_refused(name):
    if name == "http":
        needs.package("uvicorn")
    with TARGETS[name].opened() as read:
        for data in seeds(name):
            read(data)

        @settings(
            max_examples=FEW[name], deadline=None, database=None, derandomize=True,
            suppress_health_check=[*HealthCheck],
        )  # fmt: skip
        @given(inputs(name))
        def some(data):
            read(data)

        some()


def test_every_target_has_a_corpus_and_every_corpus_a_target():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(any((CORPUS / name).iterdir()) for name in TARGETS)


def test_a_fault_is_found_and_its_smallest_input_is_kept(tmp_path, monkeypatch):
    """A reader that cannot bear two bytes in a row is found, and its input made small."""

    def reader(data):
        if b"\xff\x80" in data:
            raise ZeroDivisionError

    opened = lambda: targets.contextlib.nullcontext(reader)  # noqa: E731
    monkeypatch.setitem(TARGETS, "notes", targets.Target(opened, lambda: [b"a\xff", b"\x80" * 20]))
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    (tmp_path / "notes").mkdir()
    monkeypatch.setattr(overnight, "STATE", tmp_path)
    monkeypatch.setattr(overnight.resource, "setrlimit", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        overnight.search("notes", HANGS)
    kept = overnight.keep("notes")
    assert kept.parent == tmp_path / "failing"
    assert b"\xff\x80" in kept.read_bytes()
    assert len(kept.read_bytes()) <= 22
    assert overnight.keep("notes") is None


def test_targets_take_turns_for_as_long_as_they_are_given(tmp_path):
    command = [sys.executable, "-m", "scripts.overnight_fuzzing", "notes", "checkpoint"]
    ended = subprocess.run(
        [*command, "--minutes", "0.02"], cwd=needs.ROOT, capture_output=True, text=True,
        timeout=HANGS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    count, said = ended.stdout.split(maxsplit=1)
    assert int(count) > 20
    assert said == "inputs, 0 failures\n"


def test_an_unknown_target_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        overnight.main(["audios"])
    assert "unknown target audios; expected some of audio, bundle" in capsys.readouterr().err
