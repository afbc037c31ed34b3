"""Spliced and mutated audio files: no crash, no hang, and nothing lost without a word."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import AudioError, AudioWarning
from tests.sounds import ID3V1, ape, id3, junk, lyrics, sound, uncounted

SOUNDS = {
    f"{kind} {seconds}": sound(kind, seconds)
    for kind in ("mp3", "vorbis", "opus", "flac", "wav", "aiff", "au", "w64", "caf", "rf64")
    for seconds in (0.5, 1.0)
} | {"bare mp3 1.0": uncounted(sound("mp3", 1.0))}
TAGS = {"id3": id3(333), "id3v1": ID3V1, "ape": ape(100), "zeros": bytes(1000), "nothing": b""}


def read(data: bytes) -> tuple[float, list[str]]:
    """Seconds of audio and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        samples = load_audio(io.BytesIO(data), containers=False)
    assert np.isfinite(samples).all()
    assert all(issubclass(item.category, AudioWarning) for item in caught)
    return len(samples) / 16000, [str(item.message) for item in caught]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(SOUNDS)), st.sampled_from(sorted(TAGS))),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["nothing", "id3", "ape"]),
)
def test_any_sounds_in_a_row_are_read_whole(row, front):
    data = TAGS[front] + b"".join(SOUNDS[name] + TAGS[tag] for name, tag in row)
    seconds, told = read(data)
    expected = sum(float(name.rpartition(" ")[2]) for name, _ in row)
    assert told == []
    assert abs(seconds - expected) < 0.1 * len(row)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SOUNDS)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=4),
    st.floats(0, 1),
    st.sampled_from([b"", junk(3000), lyrics(50), bytes(500)]),
)
def test_mutated_files_end_in_audio_or_in_one_error(name, changes, cut, tail):
    data = bytearray(SOUNDS[name])
    for place, value in changes:
        at = int(place**3 * len(data))  # more often in the header
        data[at : at + len(value)] = value
    whole = bytes(data) if cut < 0.5 else bytes(data[: int(len(data) * cut)]) + tail
    with contextlib.suppress(AudioError):
        read(whole)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(SOUNDS)), st.floats(0.2, 0.98))
def test_cut_files_are_reported_unless_little_is_missing(name, cut):
    data = SOUNDS[name]
    told = []
    try:
        seconds, told = read(data[: int(len(data) * cut)])
    except AudioError:
        return
    expected = float(name.rpartition(" ")[2])
    counted = not name.startswith("bare")
    assert told or expected - seconds < 0.11 or not counted
