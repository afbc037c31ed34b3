"""`mt3 transcribe` with many files: what is done, skipped, done again, refused and reported."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from mt3_runtime.batch import batch_progress, batch_run
from mt3_runtime.batch.batch_engine import BatchEngine
from mt3_runtime.batch.records.journal import NAME
from mt3_runtime.batch.source_list import Source
from mt3_runtime.batch.task import Task
from mt3_runtime.batch.watch import Watch
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.commands.jobs import Job
from mt3_runtime.errors import AudioError, BundleError, OptionError, OutputError
from mt3_runtime.leakage.leakage_report import LeakageReport
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Handle, Transcription
from tests.answering import AnsweringEngine, AnsweringModel

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and links")


class EndedError(Exception):
    """Ends what would go on for ever."""


class FakeModel(AnsweringModel):
    """Says one note per source, at the pitch of its size; names tell what else happens.

    ``bad`` is no audio, ``io`` cannot be read at first, ``long`` is long, ``bug`` is our fault,
    ``break`` ends the engine, ``grow`` changes while it is read.
    """

    device = "fake"

    def __init__(self):
        self.reads: list[str] = []
        self.loads = 0

    def load(self, path, **options):
        self.loads += 1
        return self

    def length(self, name):
        return 7200.0 if "long" in name else 2.0

    def answer(self, source, name, options):
        self.reads.append(name)
        return self.outcome(source, name)

    def outcome(self, source, name):
        if name.startswith("bad"):
            return AudioError(f"{source} is not audio")
        if name.startswith("io") and self.reads.count(name) < 3:
            error = AudioError(f"{source} cannot be read.")
            error.__cause__ = OSError(errno.EIO, "Input/output error")
            return error
        if name.startswith("bug"):
            return ZeroDivisionError("oops")
        if name.startswith("break"):
            raise BundleError("the graph failed")
        if name.startswith("grow"):
            with open(source, "ab") as file:
                file.write(b"more")
        size = os.path.getsize(source)
        note = Note(0.5, 1.0, 30 + size % 64, 100, 0, is_drum=False)
        return Transcription((note,), (), 2.0, "fake", "0" * 64, leakage=LeakageReport())

    def stream(self, source, **options):
        self.reads.append(source.name)
        for onset in range(3):
            if source.name.startswith("bad") and onset == 1:
                raise AudioError(f"{source} is damaged")
            yield Note(float(onset), onset + 0.5, 60, 100, 0, is_drum=False)


@pytest.fixture
def model(monkeypatch, tmp_path, tiny_bundle):
    fake = FakeModel()
    bundle = tmp_path / "cache" / "bundles" / "tiny"
    bundle.mkdir(parents=True)
    shutil.copy(tiny_bundle / "bundle.json", bundle)
    monkeypatch.setenv("MT3_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MT3_MODEL", raising=False)
    monkeypatch.delenv("MT3_DEBUG", raising=False)
    monkeypatch.setattr("mt3_runtime.loading.load_model", fake.load)
    return fake


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An own folder as the current one, with ``in/a.wav`` to ``in/c.wav``."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    put("in/a.wav", "in/b.wav", "in/c.wav")
    return folder


def put(*names, content=b"xyz"):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content + name.encode(errors="surrogateescape"))


def mt3(*arguments, code=ExitCode.OK):
    assert main(["transcribe", *arguments]) == code


def results(folder="out"):
    return sorted({*os.listdir(folder)} - {NAME})


def did(model):
    """The names that were read since the last question."""
    names, model.reads[:] = sorted(model.reads), []
    return names


# --- resuming ------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_and_the_model_is_not_even_loaded(model, here, capsys):
    mt3("in", "-o", "out")
    assert did(model) == ["a.wav", "b.wav", "c.wav"]
    capsys.readouterr()
    mt3("in", "-o", "out")
    assert did(model) == []
    assert model.loads == 1
    assert f"3 files done before (out{os.sep}{NAME}), 0 files to do" in capsys.readouterr().err


def test_what_came_in_or_has_changed_is_done(model, here):
    mt3("in", "-o", "out")
    first = {name: Path("out", name).read_bytes() for name in results()}
    did(model)
    put("in/d.wav")
    put("in/b.wav", content=b"longer than before")
    mt3("in", "-o", "out")
    assert did(model) == ["b.wav", "d.wav"]
    changed = [name for name in first if Path("out", name).read_bytes() != first[name]]
    assert changed == ["b.mid"]


def test_what_failed_is_done_again(model, here):
    put("in/bad.wav")
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    did(model)
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    assert did(model) == ["bad.wav"]
    lines = [json.loads(line) for line in Path("out", NAME).read_text().splitlines()]
    (one, two) = [line for line in lines if line["status"] == "failed"]
    assert (one["error"], one["attempts"], two["attempts"]) == ("AudioError", 1, 2)


def test_a_result_that_is_gone_is_made_again_and_its_pair_is_ours(model, here):
    mt3("in", "-o", "out", "-f", "midi,json")
    whole = {name: Path("out", name).read_bytes() for name in results()}
    did(model)
    os.unlink("out/b.json")
    mt3("in", "-o", "out", "-f", "midi,json")
    assert did(model) == ["b.wav"]
    assert {name: Path("out", name).read_bytes() for name in results()} == whole


def test_a_result_that_was_edited_is_not_replaced(model, here, capsys):
    mt3("in", "-o", "out", "-f", "midi,json")
    Path("out/b.mid").write_bytes(b"edited")
    mt3("in", "-o", "out", "-f", "midi,json")  # both are there
    os.unlink("out/b.json")
    mt3("in", "-o", "out", "-f", "midi,json", code=ExitCode.FAILED)
    assert Path("out/b.mid").read_bytes() == b"edited"
    assert not Path("out/b.json").exists()
    assert "b.mid exists; pass --overwrite" in capsys.readouterr().err
    mt3("in", "-o", "out", "-f", "midi,json", "--overwrite")
    assert Path("out/b.mid").read_bytes().startswith(b"MThd")


def test_other_options_do_not_replace_results_unless_that_is_said(model, here, capsys):
    mt3("in", "-o", "out")
    put("in/d.wav")
    did(model)
    mt3("in", "-o", "out", "--smooth", code=ExitCode.FAILED)
    assert did(model) == ["d.wav"]
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "3 files done before with other options" in error
    mt3("in", "-o", "out", "--smooth", "--skip-existing")
    assert did(model) == []
    mt3("in", "-o", "out", "--smooth", "--restart")
    assert did(model) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    mt3("in", "-o", "out", "--smooth")
    assert did(model) == []


@pytest.mark.parametrize("formats", ["midi,json", "csv,midi,jsonl"])
def test_another_format_with_other_options_replaces_nothing_unless_that_is_said(
    model, here, capsys, formats
):
    mt3("in", "-o", "out")
    before = Path("out/a.mid").read_bytes()
    other = ["in", "-o", "out", "-f", formats, "--tempo", "90"]
    mt3(*other, code=ExitCode.FAILED)
    assert "3 files done before with other options" in capsys.readouterr().err
    assert results() == ["a.mid", "b.mid", "c.mid"]
    assert Path("out/a.mid").read_bytes() == before
    mt3(*other, "--restart")
    assert len(results()) == 3 * len(formats.split(","))
    assert Path("out/a.mid").read_bytes() != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["--instruments", "bass, drums"], ["--instruments", "Drums,bass"]),
        (["--exclude", "piano"], ["--exclude", "Pianos"]),
        (["--threads", "1"], ["--threads", "2"]),
        ([], ["--readers", "2"]),
        (["--no-auto-filter"], ["--auto-filter", "off"]),
    ],
)
def test_what_does_not_change_results_is_no_other_option(model, here, one, other):
    mt3("in", "-o", "out", *one)
    did(model)
    mt3("in", "-o", "out", *other)
    assert did(model) == []


@pytest.mark.parametrize(
    "option",
    ["--grammar", "--min-confidence=.5", "--tempo=90", "--exclude=bass", "--decoding=t5x"],
)
def test_what_changes_results_is_one(model, here, option):
    mt3("in", "-o", "out")
    mt3("in", "-o", "out", option, code=ExitCode.FAILED)


def test_another_format_is_added(model, here):
    mt3("in", "-o", "out")
    stamps = os.stat("out/a.mid").st_mtime_ns
    did(model)
    mt3("in", "-o", "out", "-f", "midi,csv")
    assert did(model) == ["a.wav", "b.wav", "c.wav"]
    assert results() == ["a.csv", "a.mid", "b.csv", "b.mid", "c.csv", "c.mid"]
    assert os.stat("out/a.mid").st_mtime_ns >= stamps
    mt3("in", "-o", "out")
    mt3("in", "-o", "out", "-f", "csv")
    assert did(model) == []


def test_restart_replaces_what_is_ours_and_nothing_else(model, here, capsys):
    mt3("in", "-o", "out")
    Path("out/a.mid").write_bytes(b"edited")
    did(model)
    mt3("in", "-o", "out", "--restart", code=ExitCode.FAILED)
    assert did(model) == ["b.wav", "c.wav"]
    assert Path("out/a.mid").read_bytes() == b"edited"


def test_files_of_one_name_in_two_folders_are_not_taken_for_each_other(model, here, capsys):
    put("other/a.wav")
    mt3("in", "-o", "out")
    before = Path("out/a.mid").read_bytes()
    mt3("other", "-o", "out", code=ExitCode.USAGE)  # as ever, of a single file
    assert Path("out/a.mid").read_bytes() == before
    assert "exists; pass --overwrite" in capsys.readouterr().err


def test_a_file_that_comes_in_beside_one_of_its_name_gets_its_suffix(model, here):
    mt3("in", "-o", "out")
    put("in/a.flac")
    did(model)
    mt3("in", "-o", "out")
    assert did(model) == ["a.flac"]
    assert results() == ["a.flac.mid", "a.mid", "b.mid", "c.mid"]


def test_everything_may_be_moved_together(model, here):
    mt3("in", "-o", "out")
    did(model)
    os.mkdir("new")
    os.rename("in", "new/in")
    os.rename("out", "new/out")
    mt3("new/in", "-o", "new/out")
    assert did(model) == []


# --- where there is a journal --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["in", "-o", "out"], "out"),
        (["in"], "in"),
        (["in/a.wav", "in/b.wav", "-o", "out/"], "out"),
        (["in/a.wav", "-o", "out/"], None),
        (["in/a.wav", "-o", "x.mid"], None),
        (["in/a.wav", "in/b.wav"], None),
        (["in/a.wav"], None),
        (["in", "-o", "out", "--no-journal"], None),
        (["in", "in/a.wav"], None),
    ],
)
def test_there_is_a_journal_where_results_have_one_folder(model, here, arguments, place):
    mt3(*arguments)
    found = [str(path.parent.relative_to(here)) for path in here.rglob(".mt3*")]
    assert found == ([place] if place else [])


def test_results_beside_their_inputs_are_resumed_too(model, here):
    mt3("in")
    did(model)
    put("in/d.wav")
    mt3("in")
    assert did(model) == ["d.wav"]


def test_a_command_that_fails_early_leaves_nothing(model, here):
    for arguments in (["-m", "nonsense"], ["--instruments", "vioiln"], ["-f", "wav"]):
        assert main(["transcribe", "in", "-o", "out", *arguments]) != ExitCode.OK
    assert os.listdir() == ["in"]
    assert len(os.listdir("in")) == 3


def test_a_journal_of_somebody_else_ends_it_at_once(model, here, capsys):
    put(f"out/{NAME}", content=b"my notes")
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    assert model.loads == 0
    assert "no journal of a batch" in capsys.readouterr().err


# --- skipping what exists ------------------------------------------------------------------------


@pytest.mark.parametrize(("formats", "there"), [("midi,json", "a.mid"), ("json,csv,midi", "a.csv")])
@pytest.mark.parametrize("journal", [["--no-journal"], []])
def test_what_was_kept_is_not_said_to_be_written(model, here, capsys, formats, there, journal):
    put(f"out/{there}", content=b"mine")
    report = ["--report-to", "r.json"]
    mt3("in/a.wav", "in/b.wav", "-o", "out", "-f", formats, "--skip-existing", *journal, *report)
    assert Path("out", there).read_bytes().startswith(b"mine")
    said = next(line for line in capsys.readouterr().err.splitlines() if "a.wav:" in line)
    assert there not in said
    rows = json.loads(Path("r.json").read_text())["sources"]
    (outputs,) = [row["outputs"] for row in rows if row["source"].endswith("a.wav")]
    assert sorted(Path(path).name for path in outputs) == sorted(
        {"a.mid", "a.json", "a.csv"}
        & {f"a.{f.replace('midi', 'mid')}" for f in formats.split(",")} - {there}
    )


def test_all_formats_have_to_exist_to_be_skipped(model, here):
    put("out/a.mid", "out/a.json", "out/b.mid", content=b"mine")
    mine = Path("out/b.mid").read_bytes()
    mt3("in", "-o", "out", "-f", "midi,json", "--skip-existing", "--no-journal")
    assert did(model) == ["b.wav", "c.wav"]
    assert Path("out/b.mid").read_bytes() == mine
    assert Path("out/b.json").exists()


def test_without_it_what_exists_fails_alone(model, here, capsys):
    put("out/a.mid", content=b"mine")
    mt3("in", "-o", "out", "--report-to", "r.json", code=ExitCode.FAILED)
    assert did(model) == ["b.wav", "c.wav"]
    assert "a.mid exists; pass --overwrite" in capsys.readouterr().err
    report = json.loads(Path("r.json").read_text())
    (row,) = [row for row in report["sources"] if row["status"] == "failed"]
    assert (Path(row["source"]), report["left"]) == (Path("in/a.wav"), 0)


# --- inputs --------------------------------------------------------------------------------------


def test_folders_are_searched_to_their_ends_and_results_keep_the_tree(model, here):
    put("in/x/d.wav", "in/x/y/a.wav", "in/.hidden/e.wav", "in/x/._d.wav")
    mt3("in", "-r", "-o", "out")
    found = sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.mid"))
    assert found == ["a.mid", "b.mid", "c.mid", "x/d.mid", "x/y/a.mid"]
    did(model)
    mt3("in", "-r")
    assert Path("in/x/y/a.mid").exists()


@posix
def test_a_search_does_not_follow_links_to_folders(model, here):
    os.symlink("..", "in/loop")
    mt3("in", "-r", "-o", "out")
    assert did(model) == ["a.wav", "b.wav", "c.wav"]


def test_a_tree_without_audio_is_an_error(model, here, capsys):
    put("empty/x/y/readme.txt")
    mt3("empty", "-r", code=ExitCode.FAILED)
    assert "no audio file in empty or below it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options"),
    [
        (b"in/a.wav\nin/b.wav\n", []),
        (b"in/a.wav\r\n\r\nin/b.wav", []),
        (b"\xef\xbb\xbfin/a.wav\nin/b.wav\n", []),
        (b"in/a.wav\0in/b.wav\0", ["-0"]),
        (b"in/a.wav\nin/b.wav\nin/a.wav\n./in/b.wav\n", []),
    ],
)
def test_lists_of_files(model, here, monkeypatch, content, options):
    Path("list").write_bytes(content)
    mt3("--files-from", "list", *options, "-o", "out")
    assert did(model) == ["a.wav", "b.wav"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    mt3("--files-from", "-", *options, "-o", "other")
    assert results("other") == ["a.mid", "b.mid"]


@posix
def test_lists_with_names_that_are_no_lines(model, here):
    put("in/new\nline.wav", os.fsdecode(b"in/odd\xe9.wav"))
    Path("list").write_bytes(b"in/new\nline.wav\0in/odd\xe9.wav\0")
    mt3("--files-from", "list", "-0", "-o", "out")
    mt3("--files-from", "list", "-0", "-o", "out")
    assert len(did(model)) == 2
    assert results() == ["new\nline.mid", os.fsdecode(b"odd\xe9.mid")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is no input"),
        (["in", "-0"], "-0 says how --files-from"),
        (["--files-from", ""], "--files-from is empty"),
        (["--files-from", "missing"], "missing cannot be read"),
        (["--files-from", "empty"], "empty names no file"),
        (["--files-from", "zeros"], "pass -0"),
        (["-", "--files-from", "-", "-o", "out"], "a list and a recording at once"),
        (["in", "--restart", "--skip-existing"], "choose one"),
        (["in", "--restart", "--no-journal"], "leave --no-journal out"),
        (["in/a.wav", "--restart"], "--restart needs a journal"),
        (["in", "--skip-existing", "--split", "stems"], "which stems"),
        (["in/a.wav", "--watch"], "--watch takes folders"),
        (["in", "in", "other", "--watch"], "--watch takes folders"),
        (["in", "--shard", "3/2"], "is no shard"),
        (["in", "--timeout", "0"], "not a number of seconds"),
        (["in", "--timeout", "nan"], "not a number of seconds"),
        (["in", "--max-duration", "inf"], "not a number of seconds"),
        (["in", "--retries=-1"], "further tries"),
        (["in", "--retries", "1e9"], "further tries"),
        (["in", "--report-to", "x.txt"], "FILE.json or FILE.csv"),
        (["in/a.wav", "-o", "-", "-f", "jsonl", "--timeout", "5"], "--timeout"),
        (["in", "-o", "-", "-f", "csv"], "one input file and one format"),
        (["in", "-o", "-", "-f", "jsonl", "--smooth"], "--smooth needs whole recordings"),
        (["in", "--per-stem", "--recursive"], "leave --recursive out"),
    ],
)
def test_contradictions_are_refused_before_anything_is_done(model, here, capsys, arguments, words):
    Path("empty").write_bytes(b"\n  \n")
    Path("zeros").write_bytes(b"in/a.wav\0")
    mt3(*arguments, code=ExitCode.USAGE)
    assert words in capsys.readouterr().err
    assert model.reads == []
    assert sorted(path.name for path in here.rglob("*.mid")) == []


def test_missing_files_of_a_list_fail_and_the_others_are_done(model, here, capsys):
    Path("list").write_text("in/a.wav\nin/none.wav\n")
    mt3("--files-from", "list", "-o", "out", code=ExitCode.FAILED)
    assert results() == ["a.mid"]
    assert "none.wav: there is no such file" in capsys.readouterr().err


# --- shards --------------------------------------------------------------------------------------


def test_shards_do_every_file_once_and_agree_about_names(model, here):
    put(*(f"in/{number}.wav" for number in range(20)), "in/3.flac")
    for number in (1, 2, 3):
        mt3("in", "-o", "out", "--shard", f"{number}/3")
    names = did(model)
    assert Counter(names).most_common(1)[0][1] == 1
    assert len(names) == 24
    assert {"3.wav.mid", "3.flac.mid"} <= {*os.listdir("out")}
    mt3("in", "-o", "out")
    assert did(model) == []
    mt3("in", "-o", "other")
    same = [name for name in results("other") if not name.startswith(".")]
    assert same == [name for name in results() if not name.startswith(".")]


# --- failures ------------------------------------------------------------------------------------


def test_failures_of_reading_are_tried_again_and_no_others(model, here, monkeypatch, capsys):
    pauses = []
    monkeypatch.setattr(batch_run.time, "sleep", pauses.append)
    put("in/io.wav", "in/bad.wav")
    mt3("in", "-o", "out", "--retries", "5", code=ExitCode.FAILED)
    assert Counter(did(model)) == Counter(["a.wav", "b.wav", "bad.wav", "c.wav", *["io.wav"] * 3])
    assert "io.mid" in results()
    assert pauses == [1.0, 2.0]
    assert capsys.readouterr().err.count("tried again") == 2


def test_without_retries_there_are_none(model, here):
    put("in/io.wav")
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    assert model.reads.count("io.wav") == 1


def test_failures_of_writing_are_tried_again(model, here, monkeypatch):
    real, calls = batch_run.write_files, []

    def full(contents, job, **options):
        calls.append(job.source.name)
        if calls.count("b.wav") == 1 and job.source.name == "b.wav":
            raise OutputError("cannot write") from OSError(errno.EIO, "Input/output error")
        return real(contents, job, **options)

    monkeypatch.setattr(batch_run, "write_files", full)
    monkeypatch.setattr(batch_run.time, "sleep", lambda _: None)
    mt3("in", "-o", "out", "--retries", "1")
    assert results() == ["a.mid", "b.mid", "c.mid"]


def test_the_first_failure_may_end_it(model, here, capsys):
    put("in/aa-bad.wav", "in/bad.wav")
    mt3("in", "-o", "out", "--fail-fast", "--report-to", "r.json", code=ExitCode.FAILED)
    assert results() == ["a.mid", "b.mid", "aa-bad.mid"] or results() == [
        "a.mid",
        "aa-bad.mid",
        "b.mid",
    ]
    assert json.loads(Path("r.json").read_text())["left"] == 1
    did(model)
    os.unlink("in/bad.wav")
    mt3("in", "-o", "out")
    assert did(model) == ["c.wav"]


def test_a_bug_with_one_file_leaves_the_others_alone(model, here, capsys):
    put("in/bug.wav")
    mt3("in", "-o", "out", code=ExitCode.INTERNAL)
    assert results() == ["a.mid", "b.mid", "c.mid"]
    error = capsys.readouterr().err
    assert "bug.wav: internal error (ZeroDivisionError: oops). Please report it" in error


def test_a_file_that_changes_while_it_is_read_has_failed(model, here, capsys):
    put("in/grow.wav")
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    assert "grow.wav was changed while it was read" in capsys.readouterr().err
    assert results() == ["a.mid", "b.mid", "c.mid"]
    os.rename("in/grow.wav", "in/grown.wav")
    FakeModel.outcome, real = (
        (lambda self, source, name: real(self, source, "x")),
        FakeModel.outcome,
    )
    try:
        mt3("in", "-o", "out")
    finally:
        FakeModel.outcome = real
    assert "grown.mid" in results()


class Alone:
    """Stands for the process in which suspects are read."""

    def __init__(self, *_, **options):
        self.begin = options["begin"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def results(self, tasks):
        for task in tasks:
            self.begin(task)
            name = task.job.source.name
            yield (
                task,
                BundleError("no")
                if name == "none"
                else FakeModel().outcome(
                    task.job.source, "bad" if name.startswith("break") else "x"
                ),
            )


def test_a_loop_that_breaks_is_begun_again_without_what_was_in_it(model, here, monkeypatch):
    monkeypatch.setattr("mt3_runtime.batch.session.LoneProcess", Alone)
    put("in/break.wav")
    mt3("in", "-o", "out", code=ExitCode.FAILED)
    assert results() == ["a.mid", "b.mid", "c.mid"]


def test_a_loop_that_breaks_again_and_again_ends_it(model, here, monkeypatch, capsys):
    monkeypatch.setattr("mt3_runtime.batch.session.LoneProcess", Alone)
    put(*(f"in/break{number}.wav" for number in range(5)))
    for name in "abc":
        os.unlink(f"in/{name}.wav")
    put("in/c.wav")
    mt3("in", "-o", "out", "--report-to", "r.json", code=ExitCode.FAILED)
    error = capsys.readouterr().err
    assert error.count("the device failed: the graph failed") == 4
    assert "the device has failed; 2 files left" in error
    report = json.loads(Path("r.json").read_text())
    assert [report[name] for name in ("done", "failed", "left")] == [0, 4, 2]


def test_options_that_the_model_refuses_leave_nothing(model, here, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OptionError("The model has no bagpipe.")

    monkeypatch.setattr(FakeModel, "transcribe_many", refuse)
    mt3("in", "-o", "out", code=ExitCode.USAGE)
    assert "no bagpipe" in capsys.readouterr().err
    assert (did(model), os.listdir()) == ([], ["in"])


# --- limits --------------------------------------------------------------------------------------


class WaitingEngine(AnsweringEngine):
    """Takes recordings in and never answers."""

    def submit(self, source, **options):
        self._model.reads.append(source.name)
        return Handle(lambda: self._model.seconds, None, stop=lambda _: None)


@pytest.mark.parametrize(
    ("seconds", "memory", "expected"),
    [(1000.0, 0, 2), (100.0, 0, 3), (40.0, 0, 8), (2.0, 0, 64), (None, 0, 64), (1000.0, 8, 64)],
)
def test_a_bounded_number_of_recordings_is_under_way(seconds, memory, expected):
    """Of short ones as many as fill the slots; of models with memory, whatever their length."""
    fake = FakeModel()
    fake.seconds, fake.info = (
        seconds,
        SimpleNamespace(decoding=SimpleNamespace(memory_tokens=memory)),
    )
    fake.engine = lambda **_: WaitingEngine(fake)

    def look():
        raise EndedError

    tasks = [Task(Job(Path(f"{number}.wav"), ())) for number in range(100)]
    engine = BatchEngine(fake, {}, begin=lambda _: None, update=lambda *_: None, look=look)
    with pytest.raises(EndedError):
        list(engine.results(tasks))
    assert len(fake.reads) == expected


def test_recordings_that_are_too_long_are_refused(model, here, capsys):
    put("in/long.wav")
    mt3("in", "-o", "out", "--max-duration", "600", code=ExitCode.FAILED)
    assert results() == ["a.mid", "b.mid", "c.mid"]
    assert "long.wav is longer than 600 s (7200 s)" in capsys.readouterr().err


# --- reports and progress ------------------------------------------------------------------------


def test_a_report_has_a_row_for_every_source(model, here):
    put("in/bad.wav")
    mt3("in", "in/none.wav", "-o", "out", "--report-to", "r.json", code=ExitCode.FAILED)
    report = json.loads(Path("r.json").read_text())
    assert report["format"] == "mt3-runtime.batch-report"
    assert [report[name] for name in ("done", "skipped", "failed", "left")] == [3, 0, 2, 0]
    rows = {os.path.basename(row["source"]): row for row in report["sources"]}
    assert rows["a.wav"]["outputs"] == [str(Path("out/a.mid"))]
    assert (rows["a.wav"]["notes"], rows["a.wav"]["seconds"]) == (1, 2.0)
    assert (rows["bad.wav"]["error"], rows["bad.wav"]["attempts"]) == ("AudioError", 1)
    assert rows["none.wav"]["status"] == "failed"
    mt3("in", "-o", "out", "--report-to", "r.csv", code=ExitCode.FAILED)
    table = list(csv.DictReader(io.StringIO(Path("r.csv").read_text())))
    assert Counter(row["status"] for row in table) == {"skipped": 3, "failed": 1}
    assert {row["notes"] for row in table if row["status"] == "skipped"} == {"1"}


@pytest.mark.parametrize("place", ["in/a.wav", "out/a.json"])
def test_a_report_replaces_no_input_and_no_result(model, here, place):
    before = Path("in/a.wav").read_bytes()
    name = place if place.endswith(".json") else "in/a.csv"
    if name == "in/a.csv":
        os.rename("in/a.wav", name)
        before = Path(name).read_bytes()
    mt3(name if name == "in/a.csv" else "in", "in/b.wav", "-f", "json", "-o", "out",
        "--report-to", name, code=ExitCode.FAILED)  # fmt: skip
    assert Path(name if name == "in/a.csv" else "in/a.wav").read_bytes() == before
    assert not Path("out/a.json").exists()


@pytest.mark.parametrize("name", ["list.csv", "link.json", "model/bundle.json", "model/new.csv"])
def test_a_report_replaces_no_list_and_no_part_of_a_model(model, here, tiny_bundle, name):
    shutil.copytree(tiny_bundle, "model")
    Path("list.csv").write_text("in/a.wav\n")
    os.symlink("list.csv", "link.json")
    before = {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()}
    mt3("--files-from", "list.csv", "-m", "./model", "-o", "out", "--report-to", name,
        code=ExitCode.FAILED)  # fmt: skip
    assert {path: path.read_bytes() for path in Path().rglob("*.*") if path.is_file()} == before


def test_progress_as_lines_of_json(model, here, monkeypatch, capsys):
    now = [0.0]

    def later():
        now[0] += 6.0
        return now[0]

    monkeypatch.setattr(batch_progress.time, "monotonic", later)
    put("in/bad.wav")
    mt3("in", "-o", "out", "-q", "--progress", "json", code=ExitCode.FAILED)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events[-2:]] == ["progress", "end"]
    last = events[-1]
    assert (last["done"], last["failed"], last["total"]) == (3, 1, 4)
    assert (last["audio_seconds"], last["eta_seconds"]) == (6.0, 0.0)
    assert all(event["speed"] >= 0 for event in events)


# --- streaming -----------------------------------------------------------------------------------


def test_notes_stream_to_standard_output_with_their_source(model, here, capfdbinary):
    mt3("in/a.wav", "-o", "-", "-f", "jsonl")
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert [line["onset"] for line in lines] == [0.0, 1.0, 2.0]
    assert "source" not in lines[0]
    put("in/bad.wav")
    mt3("in", "-o", "-", "-f", "jsonl", code=ExitCode.FAILED)
    captured = capfdbinary.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    counts = Counter(os.path.basename(line["source"]) for line in lines)
    assert counts == {"a.wav": 3, "b.wav": 3, "bad.wav": 1, "c.wav": 3}
    assert b"bad.wav is damaged" in captured.err
    assert len(os.listdir("in")) == 4


# --- watching ------------------------------------------------------------------------------------


def watched(steps, find):
    """What settles at each look, while steps happen between them."""
    found, todo = [], iter(steps)

    def sleep(seconds):
        assert seconds == 2.0
        step = next(todo, None)
        if step is None:
            raise EndedError
        step()

    with contextlib.suppress(EndedError):
        for _, settled in Watch(find, 2.0, sleep=sleep).rounds():
            found.append(sorted(path.name for path in settled))
    return found


def test_a_file_is_taken_when_it_has_stopped_changing_and_once(here):
    find = lambda: [Source(path, path.name) for path in sorted(Path("in").glob("*.wav"))]  # noqa: E731
    nothing = lambda: None  # noqa: E731
    grow = lambda: put("in/new.wav", content=os.urandom(time.monotonic_ns() % 90 + 9))  # noqa: E731
    back = lambda: os.utime("in/new.wav", ns=(0, 0))  # noqa: E731  clocks may go back
    steps = [nothing, grow, grow, grow, nothing, nothing, back, nothing, nothing]
    assert watched(steps, find) == [["a.wav", "b.wav", "c.wav"], ["new.wav"], ["new.wav"]]


def test_a_file_that_is_only_announced_is_not_taken(here):
    find = lambda: [Source(path, path.name) for path in Path("in").glob("n*.wav")]  # noqa: E731
    empty = lambda: Path("in/new.wav").touch()  # noqa: E731
    full = lambda: put("in/new.wav")  # noqa: E731
    gone = lambda: os.unlink("in/new.wav")  # noqa: E731
    nothing = lambda: None  # noqa: E731
    assert watched([empty, nothing, nothing, full, nothing, gone, nothing], find) == [["new.wav"]]


def test_a_watched_folder_is_done_and_goes_on(model, here, monkeypatch):
    steps = iter([None, lambda: put("in/d.wav", "in/e.wav.part", "in/.f.wav"), None, None])

    def sleep(_):
        try:
            step = next(steps)
        except StopIteration:
            raise KeyboardInterrupt from None
        if step:
            step()

    monkeypatch.setattr("mt3_runtime.batch.watch.time.sleep", sleep)
    monkeypatch.setattr(Watch.__init__, "__kwdefaults__", {"sleep": sleep})
    assert main(["transcribe", "in", "-o", "out", "--watch"]) == ExitCode.INTERRUPTED
    assert did(model) == ["a.wav", "b.wav", "c.wav", "d.wav"]
    assert model.loads == 1
    mt3("in", "-o", "out")
    assert did(model) == []


def test_the_seam_hands_every_task_out_once(model, here):
    """Whatever is given up on the way."""
    put(*(f"in/{number}long.wav" for number in range(9)), "in/long.wav")
    mt3("in", "-o", "out", "--max-duration", "600", code=ExitCode.FAILED)
    lines = [json.loads(line) for line in Path("out", NAME).read_text().splitlines()]
    ends = Counter(line["source"] for line in lines if line["status"] in ("done", "failed"))
    assert len(ends) == 13
    assert set(ends.values()) == {1}


# --- collisions ----------------------------------------------------------------------------------


def test_inputs_of_one_name_are_refused_one_by_one_if_that_is_asked_for(model, here, capsys):
    put("in/a.flac", "in/b.mp3")
    mt3("in", "-o", "out", "--collisions", "refuse", code=ExitCode.FAILED)
    assert did(model) == ["c.wav"]
    assert results() == ["c.mid"]
    assert capsys.readouterr().err.count("would both be written to") == 4
    mt3("in", "-o", "out", "--collisions", "suffix")
    assert results() == ["a.flac.mid", "a.wav.mid", "b.mp3.mid", "b.wav.mid", "c.mid"]


def test_suffixes_that_tell_nothing_apart_refuse_these_and_no_others(model, here, capsys):
    put("other/a.wav", "other/d.wav")
    mt3("in", "other", "-r", "-o", "out", code=ExitCode.FAILED)
    assert results() == ["b.mid", "c.mid", "d.mid"]
    assert capsys.readouterr().err.count("would both be written to") == 2


# --- what killed processes leave -----------------------------------------------------------------


def test_temporary_files_of_killed_processes_go_and_others_stay(model, here, monkeypatch):
    monkeypatch.setattr("mt3_runtime.batch.session.LoneProcess", Alone)
    mt3("in", "-o", "out")
    lines = [json.loads(line) for line in Path("out", NAME).read_text().splitlines()]
    stamp = os.stat("in/b.wav")
    begun = {"status": "begun", "source": "../in/b.wav", "size": stamp.st_size + 1,
             "mtime_ns": stamp.st_mtime_ns}  # fmt: skip
    put("in/b.wav", content=b"longer")
    dead = {**lines[0], "pid": 999_999_999}
    with open(f"out/{NAME}", "a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in (dead, begun))
    ours = f"out/.mt3-999999999-{'0' * 16}.part"
    others = [f"out/.mt3-999999998-{'0' * 16}.part", "out/.mt3-999999999-x.part", "out/x.part"]
    put(ours, *others)
    mt3("in", "-o", "out")
    assert not Path(ours).exists()
    assert all(Path(name).exists() for name in others)
