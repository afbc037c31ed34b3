"""Anything at all sent to every path: no 5xx but 503 and 507, nothing leaks, nothing is left."""

from __future__ import annotations

import io
from collections import Counter
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server import fuzzing
from tests.server.fuzzing import (
    ask,
    ask_many,
    combined,
    corpora,
    files_open,
    resident,
    settle,
    talk,
    talk_many,
)
from tests.server.running import running

CORPORA = 20
"""Examples that hypothesis draws at a time; it keeps them, and that is not what is measured."""

OVER_SOCKETS = 25
"""Requests of an example that go over connections."""

FEW, MANY = 10, 400
"""Examples: 250 requests over connections in the ordinary tests; in the nightly ones 10,000, and
100,000 straight to the application."""

STRAIGHT_FEW, STRAIGHT_MANY = 25, 250
"""Requests of an example that go straight to the application."""

MOST_GROWN = 64 * 1024
"""KiB that memory may grow over all requests once the first ones were answered."""


def sound() -> bytes:
    held = io.BytesIO()
    tone = np.sin(np.arange(3200) * 0.2).astype(np.float32) * 0.3
    soundfile.write(held, tone, 16000, format="FLAC")
    return held.getvalue()


AUDIO = sound()
LIVE = (np.sin(np.arange(3200) * 0.2) * 9000).astype("<i2").tobytes()


def storm(model, folder, examples: int, straight: int) -> Counter:
    """Sends so many examples, and checks what is left."""
    answered: Counter = Counter()
    fit = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck],
           "phases": (Phase.generate,), "derandomize": False}  # fmt: skip
    options = {"rate": 1e9, "burst": 10**9, "body_bytes": 1_000_000, "jobs_per_client": 20,
               "patience": 5.0, "live_per_client": 8}  # fmt: skip
    with running(model, folder / "spool", **options) as found:

        @settings(**fit, max_examples=min(examples, CORPORA))
        @given(corpora(AUDIO, LIVE), st.integers(0, 2**32))
        def send(corpus, seed):
            random = Random(seed)
            for _ in range(OVER_SOCKETS):
                answered.update([ask(found.port, combined(corpus, random))])
            answered.update([f"socket {talk(found.port, corpus.sessions[0])}"])
            several = [combined(corpus, random) for _ in range(straight)]
            answered.update(f"straight {code}" for code in ask_many(found, several, random))
            codes = talk_many(found, corpus.sessions)
            answered.update(f"straight socket {code}" for code in codes)
            settle(found)

        ask(found.port, fuzzing.Asked("POST", "/v1/transcriptions", {}, AUDIO))
        talk(found.port, [LIVE])
        settle(found)
        opened, held = files_open(), [resident()]
        with fuzzing.writes_elsewhere(found.service.spool.folder) as elsewhere:
            for _ in range(max(1, examples // CORPORA)):
                send()
                settle(found)
                held.append(resident())
        assert elsewhere == []
        assert found.service.health()["tiny"].healthy
        assert ask(found.port, fuzzing.Asked("POST", "/v1/transcriptions", {}, AUDIO)) == 200
        settle(found)
        assert files_open() <= opened + 8
        # Lanes, threads and pools grow with the first crowd; a leak goes on growing.
        first = held[1] if len(held) > 2 else held[0]
        assert resident() - first < MOST_GROWN, [kib // 1024 for kib in held]
        assert not list(found.service.spool.jobs.iterdir())
        assert found.service.spool.used == 0
    assert answered[200]
    assert answered[400] + answered[415]
    assert answered[422]
    return answered


def test_a_few_hundred_requests(model, tmp_path):
    storm(model, tmp_path, FEW, STRAIGHT_FEW)


@pytest.mark.nightly(part="serve")
def test_a_hundred_thousand_requests(model, tmp_path, record_property):
    answered = storm(model, tmp_path, MANY, STRAIGHT_MANY)
    sockets = sum(n for code, n in answered.items() if "socket" in str(code))
    record_property("sockets", sockets)
    record_property("requests", answered.total() - sockets)
    record_property("statuses", ", ".join(f"{code}: {n}" for code, n in sorted(
        answered.items(), key=str)))  # fmt: skip
