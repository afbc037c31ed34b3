"""Anything at all sent to every path: no 5xx but 503 and 507, nothing leaks, nothing is left."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server import fuzzing
from tests.server.fuzzing import ask, files_open, requests, resident, sessions, settle, talk
from tests.server.running import running

EACH = 10
"""Requests of an example."""

FEW, MANY = 40, 1_000
"""Examples: 400 requests in the ordinary tests, 10,000 in the nightly ones."""

BURST = 40
"""Examples that hypothesis draws as one; it keeps them all, and that is not what is measured."""

MOST_GROWN = 64 * 1024
"""KiB that memory may grow over all requests once the first ones were answered."""


def sound() -> bytes:
    held = io.BytesIO()
    tone = np.sin(np.arange(3200) * 0.2).astype(np.float32) * 0.3
    soundfile.write(held, tone, 16000, format="FLAC")
    return held.getvalue()


AUDIO = sound()
LIVE = (np.sin(np.arange(3200) * 0.2) * 9000).astype("<i2").tobytes()


def storm(model, folder, examples: int) -> Counter:
    """Sends so many examples, and checks what is left."""
    answered: Counter = Counter()
    fit = {"deadline": None, "database": None, "suppress_health_check": [*HealthCheck]}
    options = {"rate": 1e9, "burst": 10**9, "body_bytes": 1_000_000, "jobs_per_client": 20,
               "patience": 5.0, "live_per_client": 8}  # fmt: skip
    with running(model, folder / "spool", **options) as found:

        def burst() -> None:
            @settings(**fit, max_examples=BURST)
            @given(st.lists(requests(AUDIO), min_size=EACH, max_size=EACH))
            def send(several):
                answered.update(ask(found.port, asked) for asked in several)

            @settings(**fit, max_examples=BURST // 4)
            @given(sessions(LIVE))
            def speak(messages):
                answered.update([f"socket {talk(found.port, messages)}"])

            send()
            speak()

        ask(found.port, fuzzing.Asked("POST", "/v1/transcriptions", {}, AUDIO))
        talk(found.port, [LIVE])
        settle(found)
        before = files_open(), resident()
        with fuzzing.writes_elsewhere(found.service.spool.folder) as elsewhere:
            for _ in range(examples // BURST):
                burst()
            settle(found)
        assert elsewhere == []
        assert found.service.health()["tiny"].healthy
        assert ask(found.port, fuzzing.Asked("POST", "/v1/transcriptions", {}, AUDIO)) == 200
        settle(found)
        assert files_open() <= before[0] + 8
        assert resident() - before[1] < MOST_GROWN
        assert not list(found.service.spool.jobs.iterdir())
        assert found.service.spool.used == 0
    assert answered[200]
    assert answered[400] + answered[415]
    assert answered[422]
    return answered


def test_a_few_hundred_requests(model, tmp_path):
    storm(model, tmp_path, FEW)


@pytest.mark.nightly(part="serve")
def test_ten_thousand_requests(model, tmp_path, record_property):
    answered = storm(model, tmp_path, MANY)
    record_property("requests", sum(n for code, n in answered.items() if isinstance(code, int)))
    record_property("statuses", ", ".join(f"{code}: {n}" for code, n in sorted(
        answered.items(), key=str)))  # fmt: skip
