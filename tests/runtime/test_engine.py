"""The engine of the small network: submitting, bounds, failures, live input, health."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.live_blocks import LiveBlocks
from mt3_runtime.backends.ort_cpu import InPlaceLane
from mt3_runtime.diagnostics.work_totals import STAGES, WorkTotals
from mt3_runtime.engine import LIVE_BUFFER, Engine, LiveInput
from mt3_runtime.errors import (
    AudioError,
    AudioNotFoundError,
    DeadlineError,
    EngineBusyError,
    EngineError,
    OptionError,
)
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note import Note
from mt3_runtime.notes.note_events import NoteEvent, NoteEvents, NoteOff, NoteOn
from tests.pace import HANGS, until

Audio = npt.NDArray[np.float32]

OPTIONS: list[dict[str, object]] = [
    {},
    {"decoding": "t5x"},
    {"exclude": "drums"},
    {"grammar": True, "instruments": "bass, drums"},
    {"auto_filter": "classic", "min_confidence": 0.3},
    {"auto_filter": False, "smooth": True},
]


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with load_model(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    before = threading.active_count()
    with model.engine() as opened:
        yield opened
    assert threading.active_count() <= before


#: Offsets and lengths in the recording of the tests, of which all takes are cut.
CUTS = [(0, 40_000), (20_000, 60_000), (90_000, 144_000), (1_000, 3_000)]
_expected: dict[tuple[int, int], object] = {}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, len(CUTS) - 1),
            st.integers(0, len(OPTIONS) - 1),
            st.sampled_from(["interactive", "batch"]),
            st.sampled_from(["", "a", "b"]),
            st.sampled_from([None, None, None, 0.0, 0.05]),
        ),
        min_size=1,
        max_size=8,
    ),
    beside=st.sampled_from(["nothing", "many", "stream"]),
)
def test_results_are_those_of_single_calls(
    model: Model, audio: Audio, asked: list[tuple[int, int, str, str, float | None]], beside: str
) -> None:
    """Whatever else runs: options, classes, clients, cancellations, other calls of the model."""
    for cut, options, *_ in asked:
        if (cut, options) not in _expected:
            _expected[cut, options] = model.transcribe_notes(
                audio[slice(*CUTS[cut])], **OPTIONS[options]
            )
    with model.engine() as engine:
        other = threading.Thread(target=_use, args=(model, audio, beside))
        other.start()
        handles = [
            engine.submit(
                audio[slice(*CUTS[cut])], priority=priority, client=client, **OPTIONS[options]
            )  # type: ignore[arg-type]
            for cut, options, priority, client, _ in asked
        ]
        for handle, (*_, cancelled) in zip(handles, asked, strict=True):
            if cancelled is not None:
                time.sleep(cancelled)
                handle.cancel()
        for handle, (cut, options, *_) in zip(handles, asked, strict=True):
            if not handle.cancelled():
                assert handle.result(60.0) == _expected[cut, options]
        assert engine.health().recordings == 0
        other.join()


def _use(model: Model, audio: Audio, how: str) -> None:
    if how == "many":
        list(model.transcribe_many([audio[:5000]] * 3, grammar=True))
    if how == "stream":
        list(model.stream(iter([audio[:40000]]), sr=16000))


# --- futures -------------------------------------------------------------------------------------


def test_handles_are_futures(engine: Engine, audio: Audio) -> None:
    handles = [engine.submit(audio[:40000]) for _ in range(3)]
    seen: list[object] = []
    handles[0].add_done_callback(seen.append)
    done = list(concurrent.futures.as_completed(handles, timeout=60.0))
    assert sorted(map(id, done)) == sorted(map(id, handles))
    assert seen == [handles[0]]
    progress = handles[0].progress
    assert progress is not None
    assert progress.seconds_done == progress.seconds_total == pytest.approx(2.5)
    assert not handles[0].cancel()


def test_handles_can_be_awaited_and_cancelled_from_asyncio(engine: Engine, audio: Audio) -> None:
    async def both() -> int:
        first, second = engine.submit(audio[:40000]), engine.submit(np.tile(audio, 40))
        waiting = asyncio.ensure_future(_result(second))
        found = await first
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert second.cancelled()
        return len(found.segments)

    async def _result(handle: object) -> object:
        return await handle  # type: ignore[misc]

    assert asyncio.run(both()) == 2
    until(lambda: engine.health().decoding == 0)


def test_cancelling_frees_the_slots(engine: Engine, audio: Audio) -> None:
    long = engine.submit(np.tile(audio, 200))
    until(lambda: engine.health().decoding > 0)
    assert long.cancel()
    assert long.cancel()
    until(lambda: engine.health().decoding == 0)
    assert engine.health().recordings == 0
    with pytest.raises(concurrent.futures.CancelledError):
        long.result(1.0)
    assert engine.submit(audio[:5000]).result(30.0).segments


# --- bounds --------------------------------------------------------------------------------------


def test_what_there_is_no_room_for_is_refused_at_once(model: Model, audio: Audio) -> None:
    with model.engine(max_recordings=2, max_seconds=5000.0) as engine:
        long = [engine.submit(np.tile(audio, 200)) for _ in range(2)]
        with pytest.raises(EngineBusyError, match="2 recordings are under way"):
            engine.submit(audio)
        long[0].cancel()
        third = engine.submit(audio[:5000])
        long[1].cancel()
        assert third.result(30.0).segments


def test_audio_counts_in_seconds_and_not_in_files(model: Model, audio: Audio) -> None:
    with model.engine(max_seconds=20.0) as engine:
        first = engine.submit(audio)
        second = engine.submit(audio)
        with pytest.raises(EngineBusyError, match="this recording has 9 s; this engine takes 20 s"):
            engine.submit(audio)
        for handle in (first, second):
            handle.result(60.0)
        assert engine.submit(audio).result(60.0).duration == pytest.approx(9.0)
        with pytest.raises(EngineBusyError):
            engine.submit(np.tile(audio, 3))


@pytest.mark.parametrize(("limit", "fits"), [(59.0, 0), (130.0, 2), (200.0, 3)])
def test_a_length_that_is_not_known_counts_as_a_minute(
    model: Model, limit: float, fits: int
) -> None:
    """Of pipes, until they end; they are as many as there may be, and no more."""
    pipes = [os.pipe() for _ in range(fits + 1)]
    inputs = [os.fdopen(read, "rb") for read, _ in pipes]
    with model.engine(max_seconds=limit) as engine:
        handles = [engine.submit(pipe) for pipe in inputs[:fits]]
        with pytest.raises(EngineBusyError, match="unknown length, which counts as 60 s"):
            engine.submit(inputs[fits])
        for _, write in pipes:
            os.close(write)
        for handle in handles:
            assert isinstance(handle.exception(60.0), AudioError)
    for pipe in inputs:
        pipe.close()


def test_a_length_that_a_process_finds_out_counts_from_then_on(
    model: Model, audio: Audio, tmp_path: Path
) -> None:
    """Nine minutes, as soon as the first segment is there."""
    path = tmp_path / "nine_minutes.wav"
    soundfile.write(path, np.tile(audio, 60), 16000)
    with model.engine(max_seconds=100.0, readers=1) as engine:
        handle = engine.submit(path, deadline=HANGS)
        until(lambda: handle.length_known)
        with pytest.raises(EngineBusyError, match=r"[1-5][0-9][0-9] s of audio are under way"):
            engine.submit(path)
        handle.cancel()


def test_a_deadline_ends_a_recording(engine: Engine, audio: Audio) -> None:
    late, other = engine.submit(np.tile(audio, 200), deadline=0.2), engine.submit(audio[:5000])
    with pytest.raises(DeadlineError, match="deadline"):
        late.result(30.0)
    assert other.result(30.0).segments
    assert engine.submit(audio[:5000], deadline=60.0).result().segments


@pytest.mark.parametrize(
    "options",
    [
        {"priority": "live"},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"deadline": "1"},
        {"instruments": "vioiln"},
        {"min_confidence": 2},
    ],
)
def test_options_are_checked_at_the_door(
    engine: Engine, audio: Audio, options: dict[str, object]
) -> None:
    with pytest.raises(OptionError):
        engine.submit(audio, **options)  # type: ignore[arg-type]
    assert engine.health().recordings == 0


@pytest.mark.parametrize(
    "limits",
    [{"max_recordings": -1}, {"max_seconds": 0}, {"max_live": 1.5}, {"max_seconds": float("nan")}],
)
def test_limits_are_checked(model: Model, limits: dict[str, object]) -> None:
    before = threading.active_count()
    with pytest.raises(OptionError, match=next(iter(limits))):
        model.engine(**limits)  # type: ignore[arg-type]
    assert threading.active_count() <= before


# --- failures ------------------------------------------------------------------------------------


def test_a_recording_that_cannot_be_read_fails_alone(
    engine: Engine, model: Model, audio: Audio, tmp_path: Path
) -> None:
    torn = audio.copy()
    torn[70_000] = np.nan
    sources = [tmp_path / "missing.wav", torn, np.zeros(0, np.float32), audio]
    handles = [engine.submit(source) for source in sources]
    errors = [handle.exception(60.0) for handle in handles]
    assert [type(error) for error in errors] == [
        AudioNotFoundError, AudioError, AudioError, type(None)
    ]  # fmt: skip
    assert handles[3].result() == model.transcribe_notes(audio)
    assert engine.health().healthy


def test_notes_that_cannot_be_assembled_fail_alone(
    engine: Engine, model: Model, audio: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.transcribe_notes(audio[:40000])
    real = NoteAssembler.add

    def fails(self: NoteAssembler, *args: object, **how: object) -> object:
        if self._quirks or self._segments == 1:
            raise ArithmeticError("no notes")
        return real(self, *args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(NoteAssembler, "add", fails)
    broken, whole = engine.submit(np.tile(audio, 20)), engine.submit(audio[:30000])
    assert str(broken.exception(60.0)) == "no notes"
    assert len(whole.result(60.0).segments) == 1
    found = list(model.transcribe_many([audio, audio[:30000]], return_exceptions=True))
    assert str(found[0]) == "no notes"
    monkeypatch.undo()
    assert engine.submit(audio[:40000]).result(60.0) == expected


def test_a_device_that_fails_ends_all_and_another_engine_works(
    tiny_bundle: Path, audio: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    with load_model(tiny_bundle, threads=2) as model:
        engine = model.engine()
        live = engine.open_live()
        steps = iter(range(30))
        real = InPlaceLane.step

        def fails(lane: InPlaceLane, rows: int) -> None:
            if next(steps, None) is None:
                raise MemoryError("the device is gone")
            real(lane, rows)

        monkeypatch.setattr(InPlaceLane, "step", fails)
        handles = [engine.submit(audio) for _ in range(4)]
        for handle in handles:
            with pytest.raises(EngineError, match="the device is gone"):
                handle.result(30.0)
        with pytest.raises(MemoryError):
            list(live.events())
        health = engine.health()
        assert (health.healthy, health.ready) == (False, False)
        assert health.error == "the device is gone"
        with pytest.raises(EngineError, match="Open another engine"):
            engine.submit(audio)
        assert engine.drain(5.0)
        monkeypatch.undo()
        with model.engine() as another:
            assert another.submit(audio).result(60.0).segments
            assert another.health().ready
        engine.close()
    assert threading.active_count() <= before


def test_closing_the_model_ends_its_engine(tiny_bundle: Path, audio: Audio) -> None:
    before = threading.active_count()
    model = load_model(tiny_bundle)
    engine = model.engine()
    handle = engine.submit(np.tile(audio, 100))
    model.close()
    with pytest.raises(EngineError, match="was closed"):
        handle.result(10.0)
    with pytest.raises(OptionError, match="was closed"):
        model.engine()
    engine.close()
    assert threading.active_count() <= before


def test_draining_takes_nothing_more_and_finishes(model: Model, audio: Audio) -> None:
    with model.engine() as engine:
        handles = [engine.submit(audio) for _ in range(3)]
        assert not engine.drain(0.001)
        with pytest.raises(EngineError, match="being drained"):
            engine.submit(audio)
        assert not engine.health().ready
        assert engine.health().healthy
        assert engine.drain(60.0)
        assert all(handle.done() for handle in handles)


def test_closing_says_what_was_not_done(model: Model, audio: Audio) -> None:
    before = threading.active_count()
    engine = model.engine()
    handle = engine.submit(np.tile(audio, 100))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed before"):
        handle.result(5.0)
    with pytest.raises(EngineError):
        engine.open_live()
    assert threading.active_count() <= before


@pytest.mark.skipif(os.name != "posix", reason="no fork here")
def test_a_forked_child_begins_anew(model: Model, engine: Engine, audio: Audio) -> None:
    """Its parent's threads are not there: calls have new ones, and the engine says what it is."""
    take = audio[:60000]
    expected = model.transcribe_notes(take).token_digest
    handle = engine.submit(np.tile(audio, 50))
    until(lambda: engine.health().decoding > 0)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            refused = False
            try:
                engine.submit(take)
            except EngineError:
                refused = True
            same = model.transcribe_notes(take).token_digest == expected
            status = 0 if refused and same and not engine.health().healthy else 2
        finally:
            os._exit(status)
    for _ in range(600):
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(code) == 0
    assert handle.cancel()


# --- live input ----------------------------------------------------------------------------------


def _feed(live: LiveInput, audio: Audio, size: int = 1600) -> None:
    for at in range(0, len(audio), size):
        while not live.feed(audio[at : at + size]):
            time.sleep(0.005)
    live.end()


def _check(events: list[NoteEvent]) -> list[Note]:
    """Every note begins once, and ends once; returns the notes."""
    on: dict[int, NoteOn] = {}
    off: dict[int, NoteOff] = {}
    for event in events:
        if isinstance(event, NoteOn):
            assert event.number not in on
            on[event.number] = event
        else:
            assert event.number in on
            assert event.number not in off
            off[event.number] = event
            if event.note is not None:
                assert event.note.onset == on[event.number].time
                assert event.note.offset == event.time
    assert on.keys() == off.keys()
    return [event.note for event in events if isinstance(event, NoteOff) and event.note]


@pytest.mark.parametrize("options", [o for o in OPTIONS if "smooth" not in o])
def test_live_events_are_the_notes_of_a_stream(
    engine: Engine, model: Model, audio: Audio, options: dict[str, object]
) -> None:
    with engine.open_live(16000, **options) as live:  # type: ignore[arg-type]
        feeding = threading.Thread(target=_feed, args=(live, audio))
        feeding.start()
        events = list(live.events())
        feeding.join()
    expected = sorted(model.stream(iter([audio]), sr=16000, **options))  # type: ignore[arg-type]
    assert sorted(_check(events)) == expected
    assert _check(list(model.stream_events(audio, **options))) is not None  # type: ignore[arg-type]
    assert engine.health().live == 0


def test_live_inputs_beside_a_file_of_three_hours(
    engine: Engine, model: Model, audio: Audio, tmp_path: Path
) -> None:
    """They get what they get alone, and the file goes on meanwhile."""
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 3 * 3600 * 16000, "NONE", ""))
        file.writeframesraw((audio * 32767).astype("<i2").tobytes())
        file._datawritten = file._datalength  # type: ignore[attr-defined]  the rest is a hole
    os.truncate(path, 44 + 3 * 3600 * 16000 * 2)
    long = engine.submit(path, priority="batch", deadline=HANGS)
    until(lambda: engine.health().decoding > 0)
    found: list[list[NoteEvent]] = []

    def listen() -> None:
        with engine.open_live(16000) as live:
            feeding = threading.Thread(target=_feed, args=(live, audio))
            feeding.start()
            found.append(list(live.events()))
            feeding.join()

    listeners = [threading.Thread(target=listen) for _ in range(2)]
    for thread in listeners:
        thread.start()
    for thread in listeners:
        thread.join(HANGS)
    expected = sorted(model.stream(iter([audio]), sr=16000))
    assert [sorted(_check(events)) for events in found] == [expected] * 2
    until(lambda: long.progress is not None and long.progress.seconds_done > 20.0)
    assert long.progress is not None
    assert long.progress.seconds_total == 3 * 3600.0
    assert long.cancel()


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=6), max_size=4))
def test_numbers_of_note_events_follow_times(segments: list[list[tuple[int, bool]]]) -> None:
    """Whether a note ends in its segment or sounds on, and in whatever order they are told."""
    made, events, sounding = NoteEvents(), [], []
    for index, starts in enumerate([*segments, []]):
        end = 10.0 * (index + 1)
        drawn = [(Note(end - 10.0 + start, end, 60 + place, 100, 0), held)
                 for place, (start, held) in enumerate(starts)]  # fmt: skip
        ended = [*sounding, *(note for note, held in drawn if not held)]
        sounding = [note for note, held in drawn if held]
        events += made.add([(note, note) for note in ended], sounding, end)
    begun = [event for event in events if isinstance(event, NoteOn)]
    assert [event.number for event in begun] == list(range(len(begun)))
    assert [event.time for event in begun] == sorted(event.time for event in begun)
    heard = {event.number: (event.time, event.pitch) for event in begun}
    offs = [event for event in events if isinstance(event, NoteOff)]
    assert sorted(event.number for event in offs) == sorted(heard)
    assert all(heard[off.number] == (off.note.onset, off.note.pitch) for off in offs)


def test_a_note_is_said_to_begin_before_it_ends() -> None:
    """A chord held over three segments, one note of which is none in the end."""
    held = [Note(1.0, 1.0, pitch, 100, 0) for pitch in (60, 64)]
    made, ended = NoteEvents(), [Note(1.0, 5.0, pitch, 100, 0) for pitch in (60, 64)]
    assert [type(event) for event in made.add([], held, 2.0)] == [NoteOn, NoteOn]
    assert made.add([], held, 4.0) == []
    last = made.add([(ended[0], ended[0]), (ended[1], None)], [], 6.0)
    assert last == [NoteOff(0, 5.0, ended[0]), NoteOff(1, 5.0, None)]
    drum = Note(6.5, 6.51, 38, 100, 0, is_drum=True)
    lost = Note(6.6, 6.6, 70, 100, 3)
    begun = made.add([(drum, drum)], [lost], 8.0)
    assert [event.time for event in begun] == [6.5, 6.51, 6.6]
    assert made.add([], [], 9.0) == [NoteOff(3, 9.0, None)]


def test_live_input_is_bounded(engine: Engine, audio: Audio) -> None:
    """If nobody takes the events, what was fed waits, and then no more is taken."""
    with engine.open_live() as live:
        fed = 0.0
        refused = 0
        while refused < 20:
            if live.feed(audio[:8000]):
                fed, refused = fed + 0.5, 0
            else:
                refused += 1
                time.sleep(0.02)
        assert refused == 20
        assert live.buffered <= LIVE_BUFFER
        assert fed < 60.0


def test_live_inputs_are_counted_and_can_be_cancelled(model: Model, audio: Audio) -> None:
    with model.engine(max_live=1) as engine:
        live = engine.open_live()
        with pytest.raises(EngineBusyError, match="1 live inputs"):
            engine.open_live()
        assert live.feed(audio)
        taken: list[NoteEvent] = []
        taking = threading.Thread(target=lambda: taken.extend(live.events()))
        taking.start()
        until(lambda: bool(taken))
        live.cancel()
        taking.join(HANGS)
        assert not taking.is_alive()
        _check(taken)
        with pytest.raises(OptionError, match="once only"):
            live.events()
        with pytest.raises(OptionError, match="has ended"):
            live.feed(audio)
        engine.open_live().cancel()


def test_bad_live_input_is_refused_where_it_is_fed(engine: Engine) -> None:
    live = engine.open_live()
    with pytest.raises(AudioError, match="type"):
        live.feed(np.zeros(5, np.complex64))
    live.feed(np.array([0.0, np.nan], np.float32))
    with pytest.raises(AudioError, match="NaN"):
        list(live.events())
    with pytest.raises(OptionError, match="has ended"):
        live.feed(np.zeros(5, np.float32))
    silent = engine.open_live()
    silent.end()
    with pytest.raises(AudioError, match="without a single sample"):
        list(silent.events())
    with pytest.raises(TypeError, match="smooth"):
        engine.open_live(smooth=True)  # type: ignore[call-arg]


def test_blocks_are_copied_and_bounded() -> None:
    blocks, block = LiveBlocks(100.0, 2.0), np.zeros((100, 2), np.float32)
    assert blocks.put(block)
    block[:] = 1.0
    assert blocks.put(block)
    assert not blocks.put(block[:1])
    assert blocks.seconds == 2.0
    blocks.end()
    found = list(blocks)
    assert [float(one.max()) for one in found] == [0.0, 1.0]
    assert LiveBlocks(100.0, 2.0).put(np.zeros(1000))


def test_events_of_a_recording_are_told_while_it_runs(engine: Engine, model: Model, audio: Audio):
    """They are those of the model, so without the filter their notes are the result's."""
    told: list[tuple[list[NoteEvent], float]] = []
    handle = engine.submit(
        audio, auto_filter=False, events=lambda found, now: told.append((found, now.seconds_done))
    )
    result = handle.result()
    events = [event for found, _ in told for event in found]
    assert [now for _, now in told] == sorted(now for _, now in told)
    assert len(told) == len(result.segments) + 1
    ended = [event.note for event in events if isinstance(event, NoteOff)]
    assert sorted(ended) == sorted(result.notes)
    assert result == model.transcribe_notes(audio, auto_filter=False)


def test_a_callback_that_raises_fails_its_recording_alone(engine: Engine, audio: Audio):
    def tell(_events: list[NoteEvent], _progress: object) -> None:
        raise ValueError("no")

    other = engine.submit(audio)
    with pytest.raises(ValueError, match="no"):
        engine.submit(audio, events=tell).result()
    assert other.result().segments


def test_what_the_loop_does_is_counted(tiny_bundle: Path, audio: Audio) -> None:
    with load_model(tiny_bundle, threads=2) as model, model.engine() as engine:
        assert engine.health().work == WorkTotals()
        results = [handle.result(HANGS) for handle in [engine.submit(audio) for _ in range(3)]]
        work = engine.health().work
        reports = [one for result in results for one in result.segments]
        tokens = sum(one.token_count + (not one.truncated) for one in reports)  # with the end's
        assert (work.begun, work.tokens) == (3, tokens)
        assert work.step_rows == tokens >= work.steps > 0  # a row gives a token a step
        assert 0.0 < work.waited < HANGS
        assert set(work.seconds) == set(STAGES)
        assert all(seconds > 0.0 for seconds in work.seconds.values())
        model.transcribe_notes(audio)
        assert engine.health().work.begun == 4, "it is the model's loop, whoever uses it"
