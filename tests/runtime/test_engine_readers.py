"""Engines and lists that read in reader processes: the same results, under limits."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_runtime.engine import Engine
from mt3_runtime.errors import AudioError, AudioNotFoundError, EngineError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.reading import ReaderLimits, reader_process
from mt3_runtime.reading.reader_process import ReaderProcess
from tests.pace import until
from tests.sounds import sound

Audio = npt.NDArray[np.float32]

posix = pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")

OPTIONS: list[dict[str, object]] = [
    {},
    {"auto_filter": False},
    {"auto_filter": "classic", "min_confidence": 0.3},
    {"exclude": "drums", "smooth": True},
]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with load_model(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    with model.engine(readers=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, audio: Audio) -> list[Callable[[], object]]:
    """Makes sources: files of several formats and rates, file objects, arrays."""
    folder = tmp_path_factory.mktemp("sources")
    soundfile.write(folder / "a.wav", audio[:70_000], 16_000)
    soundfile.write(folder / "b.flac", np.stack([audio, -audio / 2], axis=1), 44_100)
    (folder / "c.mp3").write_bytes(sound("mp3", 3.0))
    (folder / "cut.mp3").write_bytes(sound("mp3", 6.0)[:40_000])
    data = (folder / "b.flac").read_bytes()
    return [
        *(lambda path=folder / name: path for name in ("a.wav", "b.flac", "c.mp3", "cut.mp3")),
        lambda: io.BytesIO(data),
        lambda: audio[20_000:90_000],
        lambda: str(folder / "absent.wav"),
    ]


_expected: dict[tuple[int, int], object] = {}


def outcome(work: Callable[[], object]) -> object:
    """A result, or what was raised, as something to compare."""
    try:
        return work()
    except AudioError as error:
        return type(error), str(error)


def alone(model: Model, sources: list[Callable[[], object]], source: int, options: int) -> object:
    """What a single call gives, which reads in this process."""
    if (source, options) not in _expected:
        _expected[source, options] = outcome(
            lambda: model.transcribe_notes(sources[source](), **OPTIONS[options])  # type: ignore[arg-type]
        )
    return _expected[source, options]


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.AudioWarning")
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 6),
            st.integers(0, len(OPTIONS) - 1),
            st.sampled_from(["interactive", "batch"]),
            st.sampled_from([None, None, None, 0.0, 0.02]),
        ),
        min_size=1,
        max_size=7,
    )
)
def test_results_are_those_of_reading_here(
    model: Model,
    engine: Engine,
    sources: list[Callable[[], object]],
    asked: list[tuple[int, int, str, float | None]],
) -> None:
    """Tokens, notes, warnings and errors, for random mixes, with some that are cancelled."""
    expected = [alone(model, sources, source, options) for source, options, *_ in asked]
    handles = [
        engine.submit(sources[source](), priority=priority, **OPTIONS[options])  # type: ignore[arg-type]
        for source, options, priority, _ in asked
    ]
    for handle, (*_, cancelled) in zip(handles, asked, strict=True):
        if cancelled is not None:
            time.sleep(cancelled)
            handle.cancel()
    for handle, result in zip(handles, expected, strict=True):
        if not handle.cancelled():
            assert outcome(lambda handle=handle: handle.result(60.0)) == result


@pytest.mark.filterwarnings("ignore::mt3_runtime.errors.AudioWarning")
def test_lists_are_read_so_too(model: Model, sources: list[Callable[[], object]]) -> None:
    order = [1, 5, 0, 4, 6, 2, 3, 1]
    found = model.transcribe_many(
        [sources[number]() for number in order],
        readers=2,
        return_exceptions=True,
    )
    results = [(type(r), str(r)) if isinstance(r, AudioError) else r for r in found]
    assert results == [alone(model, sources, number, 0) for number in order]
    with pytest.raises(AudioNotFoundError):
        list(model.transcribe_many([sources[6]()], readers=1))


def test_processes_end_with_their_engine(model: Model, sources: list[Callable[[], object]]) -> None:
    for end in (Engine.close, lambda engine: engine.drain(60.0), lambda engine: model):
        with model.engine(readers=1) as engine:
            assert engine.submit(sources[0]()).result(60.0)
            (process,) = engine._pool._processes._running
            assert process.alive
            end(engine)
        assert process._process.returncode is not None


@posix
def test_closing_does_not_wait_for_a_file_that_hangs(model: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    engine = model.engine(readers=1)
    handle = engine.submit(tmp_path / "pipe.wav")
    until(lambda: engine._pool.pids)
    engine.close()
    with pytest.raises(EngineError):
        handle.result(0.0)
    assert engine._pool.pids == ()


@pytest.mark.parametrize("readers", [-1, 1.5, True, False, 1000, "2", np.zeros(2)])
def test_readers_that_make_no_sense(model: Model, readers: object) -> None:
    for call in (model.engine, lambda **how: model.transcribe_many([], **how)):
        with pytest.raises(OptionError, match="readers is"):
            call(readers=readers)  # type: ignore[arg-type]


def test_limits_need_processes(model: Model) -> None:
    with pytest.raises(OptionError, match="readers="):
        model.engine(limits=ReaderLimits())
    with pytest.raises(OptionError, match="readers="):
        model.transcribe_many([], limits=ReaderLimits.untrusted())
    with pytest.raises(OptionError, match="limits is"):
        model.engine(readers=1, limits={"memory_bytes": 1})  # type: ignore[arg-type]


# --- failures ------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("moment", ["open", "next"])
def test_a_process_that_is_killed_fails_one_recording(
    model: Model,
    sources: list[Callable[[], object]],
    tmp_path: Path,
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others, some of which it had open, are read to their ends elsewhere."""
    original, doomed = ReaderProcess._send, set()

    def send(self: ReaderProcess, fields: dict[str, object], data: bytes | None = None) -> None:
        if "doomed" in str(fields.get("name")):
            doomed.add(fields["number"])
        strikes = fields["number"] in doomed and fields["kind"] == moment
        if strikes:
            os.kill(self.pid, signal.SIGSTOP)
        original(self, fields, data)
        if strikes:
            os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(ReaderProcess, "_send", send)
    (tmp_path / "doomed.mp3").write_bytes(sound("mp3", 9.0))
    order = [0, 1, 1, 0]
    with model.engine(readers=1) as engine:
        handles = [engine.submit(sources[number]()) for number in order]
        failed = engine.submit(tmp_path / "doomed.mp3")
        handles += [engine.submit(sources[number]()) for number in order]
        with pytest.raises(AudioError, match=r"read .*doomed\.mp3 was ended by SIGKILL; other"):
            failed.result(60.0)
        expected = [alone(model, sources, number, 0) for number in order * 2]
        assert [handle.result(60.0) for handle in handles] == expected
        assert engine.health().healthy


HANGS = """
import sys, time
sys.path[:] = {path!r}
import mt3_runtime.reading.reader_child as reader
opened = reader.open_audio
def open_audio(source, **how):
    stream = opened(source, **how)
    if "hangs" in stream.name:
        stream._blocks = iter(lambda: time.sleep(1000), 0)
    return stream
reader.open_audio = open_audio
reader.main()
"""


def test_a_file_that_hangs_its_decoder(
    model: Model,
    sources: list[Callable[[], object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [sys.executable, "-c", HANGS.format(path=[*map(os.path.abspath, sys.path)])]
    monkeypatch.setattr(reader_process, "_command", lambda: command)
    (tmp_path / "hangs.wav").write_bytes(sound("wav", 3.0))
    limits = ReaderLimits(wait_seconds=5.0)
    with model.engine(readers=1, limits=limits) as engine:
        others = [engine.submit(sources[0]()) for _ in range(2)]
        hangs = engine.submit(tmp_path / "hangs.wav")
        behind = engine.submit(sources[1]())
        with pytest.raises(AudioError, match=r"hangs\.wav could be read within 5 s"):
            hangs.result(60.0)
        assert {other.result(60.0) for other in others} == {alone(model, sources, 0, 0)}
        assert behind.result(60.0) == alone(model, sources, 1, 0)


def test_strangers_send_files_of_known_formats(
    model: Model, sources: list[Callable[[], object]], tmp_path: Path
) -> None:
    (tmp_path / "x.wav").write_bytes(sound("au", 1.0))  # by another name
    long = tmp_path / "long.flac"
    soundfile.write(long, np.zeros(8000 * 3700, np.int16), 8000)
    with model.engine(readers=1, limits=ReaderLimits.untrusted()) as engine:
        with pytest.raises(AudioError, match="are accepted here"):
            engine.submit(tmp_path / "x.wav").result(60.0)
        with pytest.raises(AudioError, match="longer than 3600 s"):
            engine.submit(long).result(60.0)
        assert engine.submit(sources[1]()).result(60.0) == alone(model, sources, 1, 0)


def test_nothing_of_a_file_is_looked_at_in_this_process(
    model: Model, sources: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(model, sources, 1, 0)

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened here")

    monkeypatch.setattr("mt3_runtime.audio.sources.open_sound", opened)
    with model.engine(readers=1) as engine:
        assert engine.submit(sources[1]()).result(60.0) == expected
        assert engine.submit(sources[4]()).result(60.0) == expected


def test_what_is_short_does_not_wait_for_what_is_long(
    model: Model, sources: list[Callable[[], object]], tmp_path: Path, audio: Audio
) -> None:
    """One process reads all of them by turns."""
    soundfile.write(tmp_path / "long.wav", np.tile(audio, 40), 16_000)
    with model.engine(readers=1) as engine:
        long = [engine.submit(tmp_path / "long.wav", priority="batch") for _ in range(3)]
        until(lambda: long[0].progress)
        assert engine.submit(sources[0]()).result(60.0) == alone(model, sources, 0, 0)
        assert not any(handle.done() for handle in long)
        for handle in long:
            handle.cancel()


def test_warnings_reach_whoever_transcribes(
    model: Model, sources: list[Callable[[], object]]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (result,) = model.transcribe_many([sources[3]()], readers=1)
    assert result.audio_warning
    assert result.audio_warning in [str(one.message) for one in caught]
