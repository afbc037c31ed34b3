"""Journals of batches: what they say after anything that may happen, and who may write them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.batch.records import folder_lock
from mt3_runtime.batch.records.journal import NAME, Journal
from mt3_runtime.batch.records.ledger import Ledger, Stamp
from mt3_runtime.batch.records.shard import Shard
from mt3_runtime.errors import OutputError

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and links")

STAMP = Stamp(10, 20)
OPTIONS = {"model": "tiny"}


def done(journal, name, *, outputs=None, stamp=STAMP):
    """Does a source as a batch does, writing its results into the journal's folder."""
    contents = {str(journal.path.parent / k): v for k, v in (outputs or {}).items()}
    journal.begin(name, stamp)
    journal.writing(name, contents)
    for path, data in contents.items():
        Path(path).write_bytes(data)
    journal.finish(
        "done", name, stamp, options="x", split=False, outputs=contents, attempts=1,
        seconds=1.5, wall=0.5, notes=3,
    )  # fmt: skip


def failed(journal, name, error="AudioError"):
    journal.begin(name, STAMP)
    journal.finish("failed", name, STAMP, error=error, message="no", attempts=1, wall=0.1)


@pytest.fixture
def out(tmp_path):
    """A folder whose journal has one source that is done, and one that failed."""
    with Journal(tmp_path / "out") as journal:
        journal.start(OPTIONS)
        done(journal, "a", outputs={"a.mid": b"A", "a.json": b"J"})
        failed(journal, "b")
        journal.end()
    return tmp_path / "out"


def test_what_is_done_is_known_again(out):
    with Journal(out) as journal:
        entry = journal.entry("a")
        assert (entry.status, entry.stamp, entry.options) == ("done", STAMP, "x")
        assert (entry.seconds, entry.notes, entry.attempts) == (1.5, 3, 1)
        names = [os.path.basename(path) for path in journal.results(entry)]
        assert names == ["a.mid", "a.json"]
        assert (journal.entry("b").status, journal.entry("b").error) == ("failed", "AudioError")
        assert journal.entry("c") is None
        assert journal.damaged == 0


@given(st.data())
@settings(max_examples=60)
def test_a_journal_cut_anywhere_says_what_it_said_before(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cut")
    with Journal(folder) as journal:
        journal.start(OPTIONS)
        for name in "abc":
            done(journal, name, outputs={f"{name}.mid": name.encode()})
        journal.end()
    path = folder / NAME
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    lines = whole[:cut].split(b"\n")[:-1]
    wanted = {json.loads(line)["source"] for line in lines if b'"status":"done"' in line}
    with Journal(folder) as journal:
        found = {name for name in "abc" if (e := journal.entry(name)) and e.status == "done"}
        assert found == wanted
        journal.start(OPTIONS)
        done(journal, "d", outputs={"d.mid": b"d"})
    with Journal(folder) as journal:
        assert journal.entry("d").status == "done"
        assert journal.damaged == 0


def _done_line(**facts):
    line = {
        "status": "done",
        "source": "z",
        "size": 1,
        "mtime_ns": 1,
        "options": "x",
        "split": False,
        "outputs": {},
        "attempts": 1,
        "seconds": 1.0,
        "wall": 1.0,
        "notes": 1,
    }
    return json.dumps(line | facts).encode()  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0\0",
        b"{}",
        b"[]",
        b'"done"',
        b'{"status":"done"}',
        b'{"status":"done","source":"z","size":"x","mtime_ns":1}',
        b'{"status":"begun","source":"z","size":1e999,"mtime_ns":1}',
        b'{"status":"begun","source":"z","size":1,"mtime_ns":-Infinity}',
        b'{"status":"run","pid":1e999}',
        _done_line(attempts=math.inf),
        _done_line(seconds=math.inf),
        _done_line(wall=math.nan),
        _done_line(outputs={"z.mid": 5}),
        b'{"status":"writing","source":"z","outputs":["a.mid"]}',
        b'{"status":"unheard of","source":"z"}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_lines_that_mean_nothing_are_counted_and_passed_over(out, line):
    with (out / NAME).open("ab") as file:
        file.write(line + b"\n")
    with Journal(out) as journal:
        assert journal.damaged == 1
        assert journal.entry("a").status == "done"
        assert journal.entry("z") is None


@pytest.mark.parametrize("content", [b"my notes\n", b"my notes", b'{"format":"mt3-x"}\n', b"\n"])
def test_a_file_of_somebody_else_is_no_journal_and_stays(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(OutputError, match="no journal of a batch"):
        Journal(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


@posix
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("x", path)])
def test_what_is_no_file_is_no_journal(tmp_path, make):
    make(tmp_path / NAME)
    with pytest.raises(OutputError, match="no regular file"):
        Journal(tmp_path)
    assert os.listdir(tmp_path) == [NAME]


def test_a_newer_journal_is_refused(out):
    text = (out / NAME).read_text().replace('"version":1', '"version":2')
    (out / NAME).write_text(text)
    with pytest.raises(OutputError, match="another version"):
        Journal(out)
    assert (out / NAME).read_text() == text


def test_where_nothing_was_begun_nothing_is_left(tmp_path, out):
    before = (out / NAME).read_bytes()
    with Journal(out) as journal:
        journal.start(OPTIONS)
        journal.end()
    assert (out / NAME).read_bytes() == before
    with Journal(tmp_path / "new" / "deep") as journal:
        journal.start(OPTIONS)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    with Journal(tmp_path / "mine"):
        (tmp_path / "mine" / "x.txt").touch()
    assert os.listdir(tmp_path / "mine") == ["x.txt"]


# --- what is ours --------------------------------------------------------------------------------


def test_only_what_we_wrote_and_nobody_changed_is_ours(out):
    (out / "other.mid").write_bytes(b"A")
    with Journal(out) as journal:
        assert journal.owns(str(out / "a.mid"), "a")
        assert not journal.owns(str(out / "other.mid"), "a")
        assert not journal.owns(str(out / "missing.mid"), "a")
        assert not journal.owns(str(out / "a.mid"), "b")
        (out / "a.mid").write_bytes(b"edited")
        assert not journal.owns(str(out / "a.mid"), "a")


def test_a_result_belongs_to_the_source_it_was_last_written_for(out):
    with Journal(out) as journal:
        done(journal, "z", outputs={"a.mid": b"Z"})
        assert journal.owns(str(out / "a.mid"), "z")
        (out / "a.mid").write_bytes(b"A")
        assert not journal.owns(str(out / "a.mid"), "a")


@posix
def test_a_link_to_a_result_is_not_a_result(out):
    (out / "kept").write_bytes(b"A")
    (out / "a.mid").unlink()
    (out / "a.mid").symlink_to("kept")
    with Journal(out) as journal:
        assert not journal.owns(str(out / "a.mid"), "a")


def test_what_was_about_to_be_written_is_ours_if_it_was(out):
    journal = Journal(out)
    journal.begin("c", STAMP)
    journal.writing("c", {str(out / "c.mid"): b"C", str(out / "c.json"): b"K"})
    (out / "c.mid").write_bytes(b"C")
    os.close(journal._file)  # as when the process dies
    with Journal(out) as journal:
        assert journal.owns(str(out / "c.mid"), "c")
        (out / "c.json").write_bytes(b"mine")
        assert not journal.owns(str(out / "c.json"), "c")
        assert journal.entry("c").status == ""


def test_sources_have_the_same_name_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "songs").mkdir()
    with Journal(tmp_path / "out") as journal:
        monkeypatch.chdir(tmp_path / "songs")
        keys = {journal.key(Path(p)) for p in ("a.wav", "../songs/a.wav", tmp_path / "songs/a.wav")}
        assert keys == {"../songs/a.wav"}
        assert journal.key(tmp_path / "out" / "a.wav") == "a.wav"


# --- what was begun and not finished -------------------------------------------------------------


def crash(folder, name, stamp=STAMP):
    """Begins a source in a process that dies."""
    journal = Journal(folder)
    journal.start(OPTIONS)
    journal.begin(name, stamp)
    os.close(journal._file)


def suspicious(folder, name):
    with Journal(folder) as journal:
        return journal.entry(name).suspicious


def test_a_source_begun_and_never_finished_is_suspicious(out):
    assert not suspicious(out, "a")
    crash(out, "p")
    assert suspicious(out, "p")
    with Journal(out) as journal:
        journal.begin("p", STAMP)
        journal.begin("p", STAMP)  # by the same process
        journal.finish("failed", "p", STAMP, error="x", message="", attempts=3, wall=0)
    assert not suspicious(out, "p")


def test_a_source_that_is_begun_again_by_one_process_is_called_off_once(out):
    with Journal(out) as journal:
        journal.start(OPTIONS)
        journal.begin("p", STAMP)
        journal.begin("p", STAMP)
        journal.end()
    assert not suspicious(out, "p")


def test_what_was_called_off_in_an_orderly_way_is_not(out):
    for _ in range(5):
        with Journal(out) as journal:
            journal.start(OPTIONS)
            journal.begin("p", STAMP)
            journal.end()
    assert not suspicious(out, "p")
    with Journal(out) as journal:
        assert journal.entry("p").attempts == 0


def test_what_has_crashed_stays_suspicious_until_it_is_done(out):
    with Journal(out) as journal:
        journal.start(OPTIONS)
        failed(journal, "p", "crashed")
    assert suspicious(out, "p")
    with Journal(out) as journal:
        journal.start(OPTIONS)
        journal.begin("p", STAMP)
        journal.end()
    assert suspicious(out, "p")
    with Journal(out) as journal:
        journal.start(OPTIONS)
        done(journal, "p")
    assert not suspicious(out, "p")


def test_a_restart_ends_what_stands_above_it(out):
    with Journal(out) as journal:
        journal.start(OPTIONS, restart=True)
    with Journal(out) as journal:
        assert journal.entry("a").status == ""
        assert journal.owns(str(out / "a.mid"), "a")


# --- one writer ----------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from mt3_runtime.batch.records.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.start({})
print("held", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def holder(out):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_told_who_works_there(out, holder):
    before = (out / NAME).read_bytes()
    with pytest.raises(OutputError, match=rf"in use: process {holder.pid} on .*--shard 1/2"):
        Journal(out)
    assert (out / NAME).read_bytes() == before


@posix
def test_a_lock_dies_with_its_process(out, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Journal(out) as journal:
        assert journal.entry("a").status == "done"


def test_shards_of_one_number_go_together_and_nothing_else(out):
    with Journal(out, Shard(1, 2)), Journal(out, Shard(2, 2)):
        for other in (None, Shard(1, 2), Shard(1, 3), Shard(3, 3)):
            with pytest.raises(OutputError, match="in use"):
                Journal(out, other)
    with Journal(out), pytest.raises(OutputError, match="in use"):
        Journal(out, Shard(1, 2))
    assert [path.name for path in out.glob(".mt3-batch*")] == [NAME]


def test_what_shards_have_done_the_whole_batch_knows_and_the_other_way_round(out):
    with Journal(out, Shard(1, 2)) as journal:
        journal.start(OPTIONS)
        assert journal.entry("a").status == "done"
        done(journal, "s", outputs={"s.mid": b"S"})
    with Journal(out) as journal:
        assert journal.entry("s").status == "done"
        assert journal.owns(str(out / "s.mid"), "s")
    with Journal(out) as journal:
        journal.start(OPTIONS, restart=True)
    with Journal(out) as journal:  # now only what is done after that counts
        assert (journal.entry("s"), journal.entry("a").status) == (None, "")


def test_a_journal_put_in_the_place_of_another_while_it_is_opened(out, monkeypatch):
    real, moved = folder_lock._take, []

    def take(descriptor):
        if not moved:
            moved.append(True)
            os.replace(out / NAME, out / "old")
        real(descriptor)

    monkeypatch.setattr(folder_lock, "_take", take)
    with Journal(out) as journal:
        assert journal.entry("a") is None
        assert os.path.samestat(os.fstat(journal._file), os.stat(out / NAME))


def test_where_there_are_no_locks(out, monkeypatch):
    def none(descriptor):
        raise OSError(folder_lock.errno.ENOLCK, "no locks")

    monkeypatch.setattr(folder_lock, "_take", none)
    with Journal(out) as journal:
        assert not journal.locked
        assert journal.entry("a").status == "done"


FILL = """
import resource, sys
from pathlib import Path
from mt3_runtime.batch.records.journal import Journal
from mt3_runtime.batch.records.ledger import Stamp
journal = Journal(Path(sys.argv[1]))
size = journal.path.stat().st_size + 700
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
journal.start({})
for number in range(99):
    journal.begin(str(number), Stamp(1, 2))
"""


@posix
def test_a_full_disk_leaves_no_half_a_line(out):
    ended = subprocess.run([sys.executable, "-c", FILL, str(out)], capture_output=True, check=False)
    assert b"JournalError: cannot write" in ended.stderr
    assert b". What is done is kept" in ended.stderr
    assert (out / NAME).read_bytes().endswith(b"\n")
    with Journal(out) as journal:
        assert journal.damaged == 0
        assert journal.entry("a").status == "done"


# --- shards --------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 12))
def test_every_source_belongs_to_exactly_one_shard(names, count):
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for name in names:
        if name.isprintable():
            assert sum(shard.has(name) for shard in shards) == 1


def test_shards_are_the_same_on_every_machine_and_fair():
    names = [f"{number:04}.wav" for number in range(1000)]
    counts = [sum(Shard(k, 4).has(name) for name in names) for k in (1, 2, 3, 4)]
    assert sum(counts) == 1000
    assert min(counts) > 200
    assert [Shard(k, 3).has("a/b.wav") for k in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "1/99999", "-1/2", " 1/2", ""])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match="is no shard"):
        Shard.parse(text)


def test_the_state_of_a_ledger_needs_no_clock(out):
    """Times of day are for people: they may stand still, or go back."""
    lines = (out / NAME).read_bytes().splitlines(keepends=True)
    states = []
    for time in ("1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "nonsense"):
        ledger = Ledger()
        for line in lines:
            item = json.loads(line)
            ledger.add(json.dumps(item | ({"time": time} if "time" in item else {})).encode())
        states.append((ledger.entries, ledger.digests))
    assert states[0] == states[1] == states[2]


# --- many lines ----------------------------------------------------------------------------------


def _state(ledger):
    return ledger.entries, ledger.digests, ledger.damaged, ledger.restarted, ledger.run


LINES = st.sampled_from([
    b'{"status":"begun","source":"a","size":3,"mtime_ns":5}\n',
    b'{"status":"begun","source":"b","size":3,"mtime_ns":5}\n',
    b'{"status":"writing","source":"a","outputs":{"a.mid":"01"}}\n',
    b'{"status":"failed","source":"a","size":3,"mtime_ns":5,"error":"x","attempts":1,"wall":1}\n',
    b'{"status":"ended"}\n',
    b'{"format":"x","status":"run","pid":1,"host":"h","restart":true}\n',
    b"{}\n",
    b"\n",
    b"1,2\n",
    b'{"status":"ended"},{"status":"ended"}\n',
    b'{"status":"begun","source":{"a":1}\n',
    b'{"status":[{"a":1}\n',
    b'{"status":"begun","source":"\xff"}\n',
    b'{"status":"begun","source":"a","size":NaN,"mtime_ns":5}\n',
    b'[{"status":"ended"}]\n',
])  # fmt: skip


@given(lines=st.lists(LINES, max_size=12))
def test_many_lines_say_what_each_of_them_says(lines):
    """Also where two damaged ones would be whole together."""
    at_once, one_by_one = Ledger(), Ledger()
    at_once.add_all(lines)
    for line in lines:
        one_by_one.add(line)
    assert _state(at_once) == _state(one_by_one)
