"""Batches of the small network that are killed, stopped, starved and broken, and then go on."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile

from mt3_runtime import recording
from mt3_runtime.backends.ort_cpu import InPlaceLane
from mt3_runtime.batch import batch_run
from mt3_runtime.batch.records.fingerprint import digest, options_of
from mt3_runtime.batch.records.journal import NAME, Journal
from mt3_runtime.batch.records.ledger import Stamp
from mt3_runtime.batch.source_list import find_sources
from mt3_runtime.cli import ExitCode, _parser, listings, main
from mt3_runtime.errors import OutputError
from mt3_runtime.imports.interrupts import ENDING
from mt3_runtime.model import Model
from mt3_runtime.reading import local_reading
from tests.pace import HANGS, counted_work, until

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and pipes")
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds child processes in /proc")

#: Lengths of the recordings in samples at 16 kHz: one to three segments, so that short ones end
#: while longer ones are under way.
LENGTHS = [9_000, 40_000, 16_000, 70_000, 5_000, 33_000, 20_000, 64_000]

KILLS = 12

#: A program that is `mt3`, in this process and in those it starts, but for one thing.
PROGRAM = """
import os, signal, sys
from pathlib import Path
{patch}
if __name__ == "__main__":
    from mt3_runtime.cli import main
    sys.exit(main(["transcribe", *sys.argv[1:]]))
"""

#: A decoder that ends the process in one file.
CRASHES = """
import mt3_runtime.reading.local_reading as patched
real = patched.open_audio
def open_audio(source, **options):
    if "bad" in str(source):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(source, **options)
patched.open_audio = open_audio
"""

#: Heeds what processes in the background, or under nohup, ignore.
HEEDS = """
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""

#: The process ends between the two results of one file.
HALF = """
import mt3_runtime.commands.results as patched
real = patched.write_output
def write_output(path, data):
    real(path, data)
    if path.endswith("3.mid"):
        os.kill(os.getpid(), signal.SIGKILL)
patched.write_output = write_output
"""

#: No file may be longer than so many bytes.
NARROW = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
"""


@pytest.fixture
def songs(tmp_path, audio, monkeypatch):
    """The current folder has ``in`` with eight recordings."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("in")
    for number, length in enumerate(LENGTHS):
        soundfile.write(f"in/{number}.wav", audio[number * 999 :][:length], 16000)
    return tmp_path


@pytest.fixture
def whole(songs, tiny_bundle):
    """What a run gives that nobody disturbs, by file name."""
    assert main(["transcribe", "in", "-o", "whole", *asked(tiny_bundle)]) == ExitCode.OK
    return written("whole")


def asked(bundle, formats="midi,json"):
    return ["-m", str(bundle), "-f", formats, "--device", "cpu", "--threads", "1"]


def written(folder="out"):
    """The content of all files but the journals."""
    found = [path for path in Path(folder).iterdir() if not path.name.startswith(".mt3-batch")]
    return {path.name: path.read_bytes() for path in found}


def start(*arguments, program=None):
    """`mt3 transcribe` as a process of its own."""
    command = [sys.executable, "-m", "mt3_runtime", "transcribe"]
    if program is not None:
        Path("program.py").write_text(PROGRAM.format(patch=program))
        command = [sys.executable, "program.py"]
    return subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )


def ended(process):
    """The exit code of a process, and what it said."""
    said = process.communicate(timeout=HANGS)[1].decode()
    return process.returncode, said


def journal(folder="out"):
    """The lines of a journal that are whole."""
    path = Path(folder, NAME)
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def statuses(status, folder="out"):
    return [line for line in journal(folder) if line["status"] == status]


def errors(said):
    return [line for line in said.splitlines() if "error" in line]


# --- killed --------------------------------------------------------------------------------------


@posix
def test_a_batch_that_is_killed_again_and_again_ends_as_one_that_is_not(whole, tiny_bundle):
    chance = random.Random(5)
    for _ in range(KILLS):
        before = len(journal())
        process = start("in", "-o", "out", *asked(tiny_bundle))
        lines = before + chance.randrange(8)  # 0: while it is still loading
        until(lambda p=process, n=lines: p.poll() is not None or len(journal()) >= n)
        time.sleep(chance.random() / 50)
        process.kill()
        process.communicate()
    assert ended(start("in", "-o", "out", *asked(tiny_bundle)))[0] == ExitCode.OK
    assert written() == whole
    with Journal(Path("out")) as kept:
        assert kept.damaged == 0
        entries = [kept.entry(f"../in/{number}.wav") for number in range(len(LENGTHS))]
    assert [entry.status for entry in entries] == ["done"] * len(LENGTHS)


@pytest.mark.parametrize("readers", [0, 1, 2])
def test_reader_processes_give_the_same_files(whole, tiny_bundle, monkeypatch, readers):
    real, asked_for = Model.engine, []

    def engine(model, **options):
        asked_for.append(options.get("readers"))
        return real(model, **options)

    monkeypatch.setattr(Model, "engine", engine)
    status = main(["transcribe", "in", "-o", "out", "--readers", str(readers), *asked(tiny_bundle)])
    assert (status, written()) == (ExitCode.OK, whole)
    assert asked_for == [readers]


@posix
def test_a_kill_between_the_two_results_of_a_file_leaves_one_that_is_ours(whole, tiny_bundle):
    code, _ = ended(start("in", "-o", "out", *asked(tiny_bundle), program=HALF))
    assert code == -signal.SIGKILL
    assert "3.mid" in written()
    assert "3.json" not in written()
    assert main(["transcribe", "in", "-o", "out", *asked(tiny_bundle)]) == ExitCode.OK
    assert written() == whole


@posix
def test_a_file_that_kills_the_decoder_is_read_alone_and_fails_alone(whole, tiny_bundle):
    os.rename("in/4.wav", "in/4bad.wav")
    out = ["in", "-o", "out", *asked(tiny_bundle)]
    assert ended(start(*out, program=CRASHES))[0] == -signal.SIGKILL
    code, said = ended(start(*out, program=CRASHES))
    assert code == ExitCode.FAILED
    assert len(errors(said)) == 1
    assert "4bad.wav ended the process that read it (SIGKILL)" in said
    assert statuses("failed")[-1]["error"] == "crashed"
    assert written() == {k: v for k, v in whole.items() if not k.startswith("4")}
    code, said = ended(start(*out, program=CRASHES))  # it stays in quarantine
    assert (code, len(errors(said))) == (ExitCode.FAILED, 1)
    assert "7 files done before" in said
    assert main(["transcribe", *out]) == ExitCode.OK  # a decoder that can read it
    assert written()["4bad.mid"] == whole["4.mid"]


@linux
def test_a_process_that_reads_alone_may_be_killed(whole, tiny_bundle):
    out = ["in", "-o", "out", *asked(tiny_bundle)]
    assert ended(start(*out, program=CRASHES.replace("bad", "2.wav")))[0] == -signal.SIGKILL
    suspects = {line["source"] for line in statuses("begun")}
    process = start(*out)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def reader():
        for pid in children.read_text().split():
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        return 0

    until(reader)
    os.kill(reader(), signal.SIGKILL)
    code, said = ended(process)
    assert code == ExitCode.FAILED
    assert len(errors(said)) == 1
    assert "ended the process that read it (SIGKILL)" in said
    (crashed,) = statuses("failed")
    assert crashed["source"] in suspects
    assert main(["transcribe", *out]) == ExitCode.OK
    assert written() == whole


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_a_signal_ends_it_with_nothing_half_written_and_nothing_suspected(
    whole, tiny_bundle, number
):
    process = start("in", "-o", "out", *asked(tiny_bundle), program=HEEDS)
    until(lambda: statuses("done") or process.poll() is not None)
    process.send_signal(number)
    code, said = ended(process)
    assert code in (-number, ExitCode.INTERRUPTED)
    assert "Traceback" not in said
    assert journal()[-1]["status"] == "ended"
    assert {*written()} <= {*whole}
    assert all(whole[name] == content for name, content in written().items())
    with Journal(Path("out")) as kept:
        entries = [kept.entry(f"../in/{each}.wav") for each in range(len(LENGTHS))]
    assert not any(entry.suspicious for entry in entries if entry)
    assert main(["transcribe", "in", "-o", "out", *asked(tiny_bundle)]) == ExitCode.OK
    assert written() == whole


# --- starved -------------------------------------------------------------------------------------


@posix
def test_a_journal_that_finds_no_room_ends_it_with_one_error(whole, tiny_bundle):
    out = ["in", "-o", "out", *asked(tiny_bundle, "midi")]  # smaller than the journal is
    small = {name: content for name, content in whole.items() if name.endswith(".mid")}
    code, said = ended(start(*out, program=NARROW))
    assert code == ExitCode.FAILED
    assert len(errors(said)) == 1
    assert "What is done is kept" in said
    assert Path("out", NAME).read_bytes().endswith(b"\n")
    assert {*written()} < {*small}
    assert main(["transcribe", *out]) == ExitCode.OK
    assert written() == small


@pytest.mark.parametrize("options", [[], ["--retries", "3"]])
def test_a_full_disk_ends_it_with_one_error(whole, tiny_bundle, monkeypatch, capsys, options):
    real, calls = batch_run.write_files, []

    def full(contents, job, **options):
        calls.append(job)
        if len(calls) > 2:
            raise OutputError("cannot write x") from OSError(errno.ENOSPC, "No space left")
        return real(contents, job, **options)

    out = ["transcribe", "in", "-o", "out", *asked(tiny_bundle)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(batch_run, "write_files", full)
        assert main([*out, "--report-to", "r.json", *options]) == ExitCode.FAILED
    (error,) = errors(capsys.readouterr().err)
    assert "cannot write x. Make room" in error
    assert len(calls) == 3
    assert journal()[-1]["status"] == "ended"
    report = json.loads(Path("r.json").read_text())
    assert [report[name] for name in ("done", "failed", "left")] == [2, 0, 6]
    assert main(out) == ExitCode.OK
    assert written() == whole


@posix
def test_the_second_process_is_told_who_works_there(whole, tiny_bundle):
    os.mkfifo("slow.wav")
    out = ["in", "slow.wav", "-o", "out", *asked(tiny_bundle)]
    process = start(*out)
    until(lambda: statuses("begun"))
    code, said = ended(start("in", "-o", "out", *asked(tiny_bundle)))
    assert code == ExitCode.FAILED
    assert f"process {process.pid} on" in said
    assert len(errors(said)) == 1
    Path("slow.wav").write_bytes(Path("in/1.wav").read_bytes())
    assert ended(process)[0] == ExitCode.OK
    found = written()
    assert found.pop("slow.mid") == whole["1.mid"]
    assert {name: found[name] for name in whole} == whole


def test_shards_work_in_one_folder_at_once_and_one_of_them_may_be_killed(whole, tiny_bundle):
    out = ["in", "-o", "out", *asked(tiny_bundle)]
    first, second = (start(*out, "--shard", f"{number}/2") for number in (1, 2))
    until(lambda: len(written()) if Path("out").exists() else 0)
    first.kill()
    first.communicate()
    assert ended(second)[0] == ExitCode.OK
    assert ended(start(*out, "--shard", "1/2"))[0] == ExitCode.OK
    assert written() == whole


# --- broken --------------------------------------------------------------------------------------


def test_a_device_that_fails_for_good_ends_it_and_it_goes_on_later(
    whole, tiny_bundle, monkeypatch, capsys
):
    real = InPlaceLane.step

    def fails(lane, rows):
        if statuses("done"):
            raise MemoryError("the device is gone")
        real(lane, rows)

    out = ["transcribe", "in", "-o", "out", *asked(tiny_bundle)]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(InPlaceLane, "step", fails)
        patch.setattr("mt3_runtime.batch.batch_engine._MOST", 4)
        assert main([*out, "--report-to", "r.json"]) == ExitCode.FAILED
    said = capsys.readouterr().err
    report = json.loads(Path("r.json").read_text())
    failed, left = report["failed"], report["left"]
    begun = {line["source"] for line in statuses("begun")}
    assert said.count("the device failed: the device is gone") == failed > 0
    assert f"the device has failed; {left} file" in said
    assert report["done"] + failed == len(begun)
    assert report["done"] + failed + left == len(LENGTHS)
    assert {line["error"] for line in statuses("failed")} == {"device"}
    assert main(out) == ExitCode.OK
    assert written() == whole


def test_a_device_that_fails_once_costs_nothing(whole, tiny_bundle, monkeypatch):
    real, failed = InPlaceLane.step, []

    def fails(lane, rows):
        if not failed and statuses("done"):
            failed.append(rows)
            raise MemoryError("the device was gone")
        real(lane, rows)

    monkeypatch.setattr(InPlaceLane, "step", fails)
    monkeypatch.setattr("mt3_runtime.batch.batch_engine._MOST", 2)
    assert main(["transcribe", "in", "-o", "out", *asked(tiny_bundle)]) == ExitCode.OK
    assert failed
    assert written() == whole


def test_a_bug_that_one_file_brings_up_where_it_is_opened_leaves_the_others_alone(
    whole, tiny_bundle, monkeypatch, capsys
):
    real = local_reading.open_audio

    def open_audio(source, **options):
        return real(source, **options) if "3" not in Path(source).name else 1 / 0

    monkeypatch.setattr(local_reading, "open_audio", open_audio)
    capsys.readouterr()
    assert main(["transcribe", "in", "-o", "out", *asked(tiny_bundle)]) == ExitCode.INTERNAL
    (error,) = errors(capsys.readouterr().err)
    assert "3.wav: internal error (ZeroDivisionError" in error
    assert written() == {k: v for k, v in whole.items() if not k.startswith("3")}


# --- slow ----------------------------------------------------------------------------------------


@posix
def test_a_file_that_is_never_there_is_given_up_alone(whole, tiny_bundle, capsys):
    os.mkfifo("never.wav")
    out = ["transcribe", "in", "never.wav", "-o", "out", *asked(tiny_bundle), "--timeout", "5"]
    capsys.readouterr()
    assert main(out) == ExitCode.FAILED
    (error,) = errors(capsys.readouterr().err)
    assert "never.wav took longer than 5 s" in error
    assert written() == whole
    assert statuses("failed")[0]["error"] == "timeout"


def test_a_file_that_blocks_the_reader_is_given_up_and_tried_alone(whole, tiny_bundle, monkeypatch):
    """In this process it waits for ever, in the one that reads it alone it does not."""
    hold, real = threading.Event(), recording.Recording.jobs

    def jobs(each):
        if each.length() and 0.55 < each.length() < 0.57:  # 0.wav
            hold.wait()
        yield from real(each)

    monkeypatch.setattr(recording.Recording, "jobs", jobs)
    try:
        out = ["transcribe", "in", "-o", "out", *asked(tiny_bundle), "--timeout", "5"]
        assert main(out) == ExitCode.OK
    finally:
        hold.set()
    assert written() == whole
    assert not statuses("failed")


# --- large ---------------------------------------------------------------------------------------


def test_resuming_takes_work_that_grows_with_the_number_of_files(
    tmp_path, tiny_bundle, monkeypatch
):
    """And little of it for each; so 100,000 take seconds."""
    monkeypatch.chdir(tmp_path)
    calls = []
    for count in (500, 2000):
        folder, out = Path(f"in{count}"), Path(f"out{count}")
        folder.mkdir()
        with Journal(out) as kept:
            kept.start({})
        for number in range(count):
            (folder / f"{number}.wav").touch()
        _record_as_done(folder, out, tiny_bundle)
        with counted_work() as work:
            assert main(["transcribe", str(folder), "-o", str(out), *asked(tiny_bundle)]) == 0
        calls.append(work.calls)
    each = (calls[1] - calls[0]) / 1500
    assert each < 500
    assert calls[1] < 4.2 * calls[0]


def _record_as_done(folder, out, bundle):
    """Writes results and the journal that a run of the real model would leave."""
    command = listings()["transcribe"].load()
    args = _parser(listings(), command).parse_args(["transcribe", "x", *asked(bundle)])
    options = options_of(bundle, args)
    with Journal(out) as kept:
        kept.start(options)
        sync, os.fsync = os.fsync, lambda _: None
        try:
            for source in find_sources([str(folder)], recursive=False, fail=print, tell=print):
                path = out / source.path.with_suffix(".mid").name
                path.write_bytes(b"x")
                outputs = {str(path): b"x", str(path.with_suffix(".json")): b"x"}
                path.with_suffix(".json").write_bytes(b"x")
                key, stamp = kept.key(source.path), Stamp.of(source.path)
                kept.begin(key, stamp)
                kept.finish(
                    "done", key, stamp, options=digest(options), split=False, outputs=outputs,
                    attempts=1, seconds=1.0, wall=0.1, notes=1,
                )  # fmt: skip
        finally:
            os.fsync = sync
