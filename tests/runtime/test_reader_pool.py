"""Reader processes: the same parts as without them, and what dies fails alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.audio.log_mel import FeatureConfig
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.errors import AudioError, AudioNotFoundError, AudioWarning, OptionError
from mt3_runtime.reading import LocalReading, ReaderPool, ReadingPlan, reader_process
from mt3_runtime.reading.reader_messages import GarbledError, Message, receive, send
from mt3_runtime.reading.reader_process import ReaderProcess
from tests.pace import until
from tests.sounds import sound

MAGENTA = ReadingPlan(16000, SegmentConfig(), FeatureConfig(), salience=True)
PLANS = {
    "magenta": MAGENTA,
    "yourmt3": ReadingPlan(
        16000, SegmentConfig.yourmt3(300), FeatureConfig.yourmt3_linear(), salience=True
    ),
    "samples": ReadingPlan(16000, SegmentConfig(), salience=True),
    "blocks": ReadingPlan(22050, salience=True),
    "blocks alone": ReadingPlan(8000),
}
KILLED = signal.SIGKILL if os.name != "nt" else signal.SIGTERM
posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits are those of POSIX")


@pytest.fixture(scope="module")
def pool():
    with ReaderPool(2) as pool:
        yield pool


@pytest.fixture
def files(tmp_path):
    """Recordings of several formats and lengths."""
    made = {"a.flac": ("flac", 5.0, 2), "b.mp3": ("mp3", 3.0, 1), "c.wav": ("wav", 0.1, 1)}
    for name, (kind, seconds, channels) in made.items():
        (tmp_path / name).write_bytes(sound(kind, seconds, channels=channels))
    return [tmp_path / name for name in made]


def essence(part):
    """Everything of a part, as plain values."""
    frames = part.salience
    heard = frames and ([(a.dtype, a.shape, a.tobytes()) for a in frames[:-1]], frames.samples)
    data = (part.data.dtype, part.data.shape, part.data.tobytes())
    return part.index, part.last, part.samples, data, heard


def long_file(folder: Path, seconds: int = 600) -> Path:
    """So long that it is not read before somebody has looked."""
    path = folder / "long.wav"
    if not path.exists():
        noise = np.random.default_rng(0).standard_normal(16000 * seconds).astype(np.float32)
        soundfile.write(path, noise * 0.1, 16000)
    return path


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_parts_are_those_that_are_read_here(pool, files, plan):
    readings = [pool.open(path, plan) for path in files]
    for path, reading in zip(files, readings, strict=True):
        local = LocalReading(path, plan)
        assert [*map(essence, reading)] == [*map(essence, local)]
        for name in ("name", "source_rate", "target_rate", "duration", "warning", "level_warnings"):
            assert getattr(reading, name) == getattr(local, name), name


def test_file_objects_and_arrays(pool, files):
    expected = [*map(essence, LocalReading(files[0], MAGENTA))]
    data = io.BytesIO(files[0].read_bytes())
    data.seek(7)
    assert [*map(essence, pool.open(data, MAGENTA))] == expected
    assert not data.closed
    array = np.random.default_rng(1).standard_normal((50000, 2)).astype(np.float32)
    local = LocalReading(array, MAGENTA, sr=22050)
    assert [*map(essence, pool.open(array, MAGENTA, sr=22050))] == [*map(essence, local)]


def test_relative_paths_lead_from_where_the_program_is_now(pool, files, monkeypatch):
    expected = [*map(essence, LocalReading(files[2]))]
    folder = files[2].parent
    for current, path in ((folder, "c.wav"), (folder.parent, f"{folder.name}/c.wav")):
        monkeypatch.chdir(current)
        reading = pool.open(path)
        assert [*map(essence, reading)] == expected
        assert reading.name == path


def test_errors_and_warnings_are_those_of_reading_here(pool, tmp_path):
    (tmp_path / "text.wav").write_text("no sound at all, but some words")
    (tmp_path / "cut.mp3").write_bytes(sound("mp3", 3.0)[:20000])
    (tmp_path / "silent.wav").write_bytes(_silence())
    cases = ["text.wav", "absent.flac", "", ".", "cut.mp3", "silent.wav"]
    for case in cases:
        path = str(tmp_path / case) if case else ""
        said = []
        for source in (lambda path=path: LocalReading(path), lambda path=path: pool.open(path)):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    reading = source()
                    list(reading)
                    told = (reading.warning, reading.level_warnings)
                except AudioError as error:
                    told = (type(error), str(error))
            said.append((told, [(w.category, str(w.message)) for w in caught]))
        assert said[0] == said[1], case
    with pytest.raises(AudioNotFoundError):
        next(pool.open(tmp_path / "absent.flac"))
    with pytest.raises(OptionError, match="contradicts"):
        next(pool.open(tmp_path / "cut.mp3", sr=8000))
    with pytest.warns(AudioWarning):
        list(pool.open(tmp_path / "cut.mp3"))


def _silence() -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16000), 16000, format="WAV")
    return buffer.getvalue()


@pytest.mark.parametrize("source", [3.5, "text"])
def test_file_objects_that_are_none(pool, source):
    class Odd:
        def read(self, count=-1):
            del count
            return source

    with pytest.raises(AudioError):
        list(pool.open(Odd()))


def test_more_recordings_than_processes_take_turns(files, tmp_path):
    with ReaderPool(2) as pool:
        long = [pool.open(long_file(tmp_path), MAGENTA) for _ in range(5)]
        for number in range(3):
            assert [next(reading).index for reading in long] == [number] * 5
        assert len(pool.pids) == 2
        for path in files:  # though five are under way
            assert len(list(pool.open(path, MAGENTA))) == len(list(LocalReading(path, MAGENTA)))
        long[1].close()
        assert [next(long[0]).index for _ in range(9)] == [*range(3, 12)]
        assert next(long[1], None) is None


def test_threads_share_a_pool(pool, files):
    expected = [[*map(essence, LocalReading(path, MAGENTA))] for path in files]
    with ThreadPoolExecutor(6) as threads:
        found = threads.map(lambda path: [*map(essence, pool.open(path, MAGENTA))], files * 4)
        assert list(found) == expected * 4


def doomed_by(monkeypatch, name):
    """A process that gets a signal in the midst of a part of a file that is called doomed."""
    original = ReaderProcess._send

    def send(self, fields, data=None):
        original(self, fields, data)
        if fields["kind"] == "open" and "doomed" in fields["name"]:
            os.kill(self.pid, signal.SIGSTOP)  # so that it does not answer before
            os.kill(self.pid, getattr(signal, name))
            os.kill(self.pid, signal.SIGCONT)

    monkeypatch.setattr(ReaderProcess, "_send", send)


@posix
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_process_that_dies_fails_its_recording_alone(files, tmp_path, name, monkeypatch):
    doomed_by(monkeypatch, name)
    (tmp_path / "doomed.flac").write_bytes(files[0].read_bytes())
    expected = [[*map(essence, LocalReading(path, MAGENTA))] for path in files]
    with ReaderPool(1) as pool:
        others = [pool.open(path, MAGENTA) for path in files]
        found = [[essence(next(reading))] for reading in others]
        (pid,) = pool.pids
        with pytest.raises(
            AudioError, match=rf"doomed\.flac was ended by {name}; other recordings"
        ):
            list(pool.open(tmp_path / "doomed.flac", MAGENTA))
        for parts, reading in zip(found, others, strict=True):
            parts.extend(map(essence, reading))
        assert found == expected
        assert pid not in pool.pids


@posix
def test_many_that_kill_their_process_do_not_fail_another(tmp_path, monkeypatch):
    doomed_by(monkeypatch, "SIGSEGV")
    (tmp_path / "doomed.wav").write_bytes(sound("wav", 1.0))
    long = long_file(tmp_path, 16)
    with ReaderPool(1) as pool:
        other = pool.open(long, MAGENTA)
        found = [essence(next(other))]
        for _ in range(5):
            with pytest.raises(AudioError, match="ended by SIGSEGV"):
                next(pool.open(tmp_path / "doomed.wav", MAGENTA))
            found.append(essence(next(other)))
        found.extend(map(essence, other))
    assert found == [*map(essence, LocalReading(long, MAGENTA))]


@posix
def test_a_process_that_dies_between_parts_costs_nothing(files, tmp_path):
    (tmp_path / "cut.mp3").write_bytes(sound("mp3", 9.0)[:50000])
    local = LocalReading(files[0], MAGENTA)
    with ReaderPool(1) as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reading, warned = pool.open(files[0], MAGENTA), pool.open(tmp_path / "cut.mp3")
        first = next(warned)
        for part in local:
            assert essence(next(reading)) == essence(part)
            os.kill(pool.pids[0], KILLED)
            until(lambda: not pool.pids)
        assert [first.samples, *(part.samples for part in warned)] == [
            part.samples for part in LocalReading(tmp_path / "cut.mp3")
        ]
    said = [str(one.message) for one in caught]
    assert len(said) == 2  # once here, once there
    assert len(set(said)) == 1


@posix
def test_processes_that_are_always_ended_from_outside(files, monkeypatch):
    with ReaderPool(1) as pool:
        reading = pool.open(files[0], MAGENTA)
        next(reading)
        take = pool._processes.take

        def taken(name, *, apart):
            process = take(name, apart=apart)
            process.kill()
            until(lambda: not process.alive)
            return process

        monkeypatch.setattr(pool._processes, "take", taken)
        os.kill(pool.pids[0], KILLED)
        until(lambda: not pool.pids)
        with pytest.raises(AudioError, match="ended from outside"):
            list(reading)


def test_a_reading_that_is_closed_frees_its_process(files, tmp_path):
    with ReaderPool(1) as pool:
        with pool.open(long_file(tmp_path), MAGENTA) as reading:
            next(reading)
            pids = pool.pids
        assert next(reading, None) is None
        reading.close()
        unread = [pool.open(long_file(tmp_path), MAGENTA) for _ in range(3)]
        for one in unread:
            one.close()
        assert len(list(pool.open(files[0], MAGENTA))) == 3
        assert pool.pids == pids
        (process,) = pool._processes._running
        assert process.recordings == 0


PART = [np.zeros((256, 512), np.float32), *[np.zeros(1)] * 5]


def test_a_process_that_talks_nonsense(files, monkeypatch):
    """What a decoder that was taken over might answer."""
    answers = [
        Message({"kind": "part"}, []),
        Message({"kind": "part", "index": 1, "last": False, "samples": 1, "heard": 0}, []),
        Message({"kind": "part", "index": 0, "last": False, "samples": 1}, [np.zeros(3)]),
        Message(
            {"kind": "part", "index": 0, "last": False, "samples": 1, "heard": 0},
            [np.zeros((2, 512), np.float32), *[np.zeros(1)] * 5],
        ),
        Message({"kind": "part", "index": 0, "last": False, "samples": 1, "heard": 1e999}, PART),
        Message({"kind": "part", "index": 0, "last": False, "samples": 99999, "heard": 1}, PART),
        Message({"kind": "end"}, []),
        Message({"kind": []}, []),
        Message({}, []),
        Message({"kind": "error", "type": "AudioError"}, []),
    ]
    original = receive
    with ReaderPool(1) as pool:
        for answer in answers:
            reading, other = pool.open(files[0], MAGENTA), pool.open(files[0], MAGENTA)
            begun = essence(next(other))

            def lie(file, answer=answer):
                message = original(file)
                return message if message.fields["kind"] == "opened" else answer

            monkeypatch.setattr(reader_process, "receive", lie)
            with pytest.raises(AudioError, match="talked nonsense"):
                next(reading)
            monkeypatch.setattr(reader_process, "receive", original)
            assert [begun, *map(essence, other)] == [*map(essence, LocalReading(files[0], MAGENTA))]


def test_closing_the_pool_ends_processes_and_readers(tmp_path):
    pool = ReaderPool(1)
    under_way, waiting = (pool.open(long_file(tmp_path), MAGENTA) for _ in range(2))
    next(under_way)
    (pid,) = pool.pids
    failures = []
    began = threading.Event()

    def take() -> None:
        try:
            for _ in waiting:
                began.set()
        except AudioError as error:
            failures.append(str(error))

    thread = threading.Thread(target=take)
    thread.start()
    began.wait()
    pool.close()
    thread.join()
    assert "its reader pool was closed" in failures[0]
    with pytest.raises(AudioError, match="its reader pool was closed"):
        list(under_way)
    assert not _alive(pid)
    with pytest.raises(OptionError, match="closed"):
        pool.open(tmp_path / "x.wav")
    pool.close()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return os.name != "nt"


@pytest.mark.parametrize("count", [0, 1.5, True, 257])
def test_pools_that_make_no_sense(count):
    with pytest.raises(OptionError, match="readers is .* up to 256"):
        ReaderPool(count)


SCRIPT = """
import sys, threading
print("top", flush=True)
threading.Thread(target=lambda: threading.Event().wait(), daemon=True).start()
from mt3_runtime.reading import ReaderPool, ReadingPlan
pool = ReaderPool(2)
reading = pool.open(sys.argv[1])
next(reading)
print("pids", *pool.pids, flush=True)
{then}
"""


def _run(folder: Path, then: str, *words: str) -> subprocess.Popen[str]:
    script = folder / "program.py"
    script.write_text(SCRIPT.format(then=then))
    command = [sys.executable, str(script), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_script_without_main_guard_is_run_once(tmp_path):
    program = _run(tmp_path, "print(len(list(reading)) + 1)", str(long_file(tmp_path, 30)))
    lines = program.communicate()[0].splitlines()
    assert program.returncode == 0
    assert [lines[0], lines[2]] == ["top", "10"]
    assert len(lines) == 3
    pids = [int(pid) for pid in lines[1].split()[1:]]
    until(lambda: not any(map(_alive, pids)))  # though nobody closed the pool


@posix
def test_no_process_outlives_a_program_that_is_killed(tmp_path):
    program = _run(tmp_path, "threading.Event().wait()", str(long_file(tmp_path)))
    assert program.stdout is not None
    assert program.stdout.readline() == "top\n"
    pids = [int(pid) for pid in program.stdout.readline().split()[1:]]
    assert all(map(_alive, pids))
    program.kill()
    program.communicate()
    until(lambda: not any(map(_alive, pids)))


FROZEN = """#!{python}
import sys
sys.path[:] = {path!r}
sys.frozen, sys.executable = True, __file__
from mt3_runtime.reading import ReaderPool, freeze_support
from mt3_runtime.errors import MT3Error
{first}
print("top", flush=True)
try:
    with ReaderPool(1) as pool:
        print(len(list(pool.open({audio!r}))))
except MT3Error as error:
    print(error)
"""


@posix
@pytest.mark.parametrize(
    ("first", "said"), [("freeze_support()", "10"), ("", "first of all")], ids=["told", "not told"]
)
def test_a_program_that_starts_itself_as_frozen_ones_do(tmp_path, first, said):
    program = tmp_path / "program"
    audio = str(long_file(tmp_path, 30))
    program.write_text(
        FROZEN.format(python=sys.executable, path=sys.path, first=first, audio=audio)
    )
    program.chmod(0o755)
    ended = subprocess.run([program], capture_output=True, text=True, check=True)
    top, answer = ended.stdout.splitlines()
    assert top == "top"
    assert said in answer


_arrays = st.lists(
    st.tuples(st.sampled_from(["float16", "float32", "float64"]), st.lists(st.integers(0, 4))),
    max_size=3,
)


@given(st.dictionaries(st.text(), st.integers() | st.text()), _arrays)
def test_messages_are_received_as_sent(fields, shapes):
    fields.pop("arrays", None)
    arrays = [np.ones(shape, kind) for kind, shape in shapes]
    file = io.BytesIO()
    send(file, fields, arrays)
    file.seek(0)
    message = receive(file)
    assert message.fields == fields
    assert [(a.dtype, a.shape, a.tobytes()) for a in message.arrays] == [
        (a.dtype, a.shape, a.tobytes()) for a in arrays
    ]


HUGE = b'{"arrays": [["float64", [99999999999]]]}\n'
MANY = b'{"arrays": [%s]}\n' % b", ".join([b'["float64", [0]]'] * 9)


@given(st.binary() | st.sampled_from([HUGE, MANY, b'{"arrays": [["O", [1]]]}\n', b"[]\n", b"{}\n"]))
def test_nonsense_is_no_message(data):
    with pytest.raises((EOFError, GarbledError)):
        receive(io.BytesIO(data))


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_fork_of_the_program_keeps_no_process_alive(tmp_path):
    """Pipes that a forked child inherits would."""
    then = "import os, time\nif os.fork() == 0: time.sleep(1000)\nthreading.Event().wait()"
    program = _run(tmp_path, then, str(long_file(tmp_path, 30)))
    assert program.stdout is not None
    program.stdout.readline()
    pids = [int(pid) for pid in program.stdout.readline().split()[1:]]
    until(lambda: len(_children(program.pid)) == len(pids) + 1)
    (forked,) = set(_children(program.pid)) - set(pids)
    program.kill()
    try:
        until(lambda: not any(map(_alive, pids)))
        assert _alive(forked)
    finally:
        os.kill(forked, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """Of all processes, those that a process has started."""
    parents = {path.parent.name: _parent(path) for path in Path("/proc").glob("[0-9]*/stat")}
    return [int(child) for child, parent in parents.items() if parent == pid]


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return None
