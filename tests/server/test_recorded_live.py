"""What browsers record, over the live socket: cut anywhere, damaged, wrong, or made to harm."""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager
from random import Random

import pytest

from mt3_runtime.audio.recorder_files.opus_packets import OPUS_RATE
from mt3_runtime.notes.note_events import NoteOn
from mt3_server.live_audio import live_socket
from tests.pace import HANGS, until
from tests.recorder_streams import (
    CHROMIUM,
    block,
    decoded,
    ogg_opus,
    packets_of,
    track,
    webm,
    webm_opus,
)
from tests.server.running import running
from tests.server.test_live import opened, received

OGG = ogg_opus(3.0)
HEAD, PACKETS = packets_of(OGG)
RECORDED = CHROMIUM.read_bytes()
SILENCE = block(b"\xe7\x30")
"""Eighteen bytes, 120 ms."""


@contextmanager
def started(found, container: str):
    with opened(found) as socket:
        socket.send(json.dumps({"type": "start", "format": container}))
        ready = json.loads(socket.recv(HANGS))
        assert ready["type"] == "ready", ready
        yield socket


def no_readers_left() -> bool:
    """Whether this process has no child that decodes for a socket."""
    from mt3_runtime.reading.reader_process import _processes

    return not [process for process in list(_processes) if process.alive and process.spent]


@pytest.mark.parametrize(
    ("container", "data"),
    [("webm", RECORDED), ("ogg", OGG), ("webm", webm_opus(OGG))],
    ids=["Chromium", "Ogg", "WebM"],
)
@pytest.mark.parametrize("pieces", [1, 12])
def test_events_are_those_of_the_sound_as_a_whole(served, model, container, data, pieces):
    samples = decoded(container, data)
    expected = [*model.stream_events(iter([samples]), OPUS_RATE)]
    cuts = sorted(Random(pieces).sample(range(1, len(data)), pieces - 1))
    with started(served, container) as socket:
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            socket.send(data[begin:end])
        socket.send(json.dumps({"type": "end"}))
        *events, done, closed = received(socket)
    assert (done["type"], closed["code"]) == ("done", 1000)
    assert done["seconds"] == pytest.approx(len(samples) / OPUS_RATE, abs=1e-5)
    ons = [(e["number"], e["pitch"]) for e in events if e["type"] == "note_on"]
    assert ons == [(e.number, e.pitch) for e in expected if isinstance(e, NoteOn)]
    until(no_readers_left)


@pytest.mark.parametrize(
    ("container", "data", "kind", "words"),
    [
        ("webm", b"garbage that is no file", "format", "The recording is no WebM"),
        ("webm", OGG, "format", "no WebM"),
        ("ogg", RECORDED, "format", "no Ogg"),
        ("webm", webm(track(b"", codec=b"A_VORBIS"), []), "format", "A_VORBIS"),
        ("webm", b"\0\0\0\x1cftypmp42" + bytes(90), "format", "no WebM"),
        ("webm", RECORDED[:9000] + bytes(40) + RECORDED[9000:], "audio", "damaged"),
        ("ogg", OGG[:9000] + OGG[9100:], "audio", "damaged"),
        ("webm", RECORDED + RECORDED, "audio", "another recording"),
        ("webm", webm(track(HEAD), [SILENCE] * 300), "too_large", "more than 10 s"),
        ("webm", RECORDED[:250], "audio", "without a single sample"),  # a header, and the end
        ("ogg", b"", "audio", "without a single sample"),
    ],
)
def test_what_cannot_be_heard_is_one_error(served, container, data, kind, words):
    with started(served, container) as bad:
        bad.send(data)
        bad.send(json.dumps({"type": "end"}))
        *_, error, closed = received(bad)
    assert (error["type"], error["error"]) == ("error", kind), error
    assert words in error["message"]
    assert error["message"][0].isupper()
    assert closed["code"] == 1008
    until(no_readers_left)
    until(lambda: not served.service.keeper(None).health().live)


@pytest.mark.parametrize(
    "start",
    [
        {"format": "webm", "rate": 48000},
        {"format": "ogg", "channels": 2},
        {"format": "audio/webm"},
        {"format": "mp4"},
        {"format": ["webm"]},
    ],
)
def test_starts_that_make_no_sense_are_refused(served, start):
    with opened(served) as socket:
        socket.send(json.dumps({"type": "start", **start}))
        error, closed = received(socket)
    assert error["error"] == "option"
    assert closed["code"] == 1008


def test_a_bomb_goes_no_faster_than_it_is_played(model, tmp_path, monkeypatch):
    """Each message holds less than is refused; all of them hold nine minutes.  And it leaves."""
    monkeypatch.setattr(live_socket, "AHEAD_SECONDS", 1.0)
    with running(model, tmp_path) as found:
        with started(found, "webm") as socket:
            socket.send(webm(track(HEAD), []))
            for _ in range(60):
                socket.send(SILENCE * 75)  # 9 s
            until(lambda: found.service.keeper(None).engine._live)
            (live,) = found.service.keeper(None).engine._live
            assert live.buffered <= 11.0
            socket.socket.close()
        until(lambda: not found.service.keeper(None).health().live)
        assert found.metric('mt3_cancelled_total{why="client"}') == 1
        until(no_readers_left)


def test_a_length_is_bounded(model, tmp_path):
    with running(model, tmp_path, live_seconds=2.0) as found, started(found, "ogg") as socket:
        socket.send(OGG)
        error = received(socket)[-2]
        assert error["error"] == "too_large"
        assert "2 s" in error["message"]


def test_a_decoder_that_dies_takes_nobody_along(served):
    from mt3_runtime.reading.reader_process import _processes

    with started(served, "webm") as good:
        before = set(_processes)
        with started(served, "webm") as bad:
            (process,) = set(_processes) - before
            os.kill(process.pid, signal.SIGKILL)
            bad.send(RECORDED)
            *_, error, closed = received(bad)
            assert error["error"] == "audio"
            assert closed["code"] == 1008
        good.send(RECORDED)
        good.send(json.dumps({"type": "end"}))
        assert received(good)[-2]["type"] == "done"


def test_a_client_that_leaves_ends_its_decoder(served):
    with started(served, "webm") as socket:
        socket.send(RECORDED[:9000])
        socket.socket.close()
    until(lambda: not served.service.keeper(None).health().live)
    until(no_readers_left)


def test_files_named_as_pcm_are_told_what_to_name(served):
    with opened(served) as socket:
        socket.send(json.dumps({"type": "start", "rate": 48000}))
        assert json.loads(socket.recv(HANGS))["type"] == "ready"
        socket.send(RECORDED[:960])
        error = received(socket)[0]
    assert error["error"] == "protocol"
    assert "webm, ogg" in error["message"]
