"""What is heard of tones and of drums."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from mt3_runtime.leakage.salience import CLOSED_HAT, KICK, LOW_TOM, SNARE, SalienceAnalyser
from mt3_runtime.notes.note import Note

RATE = 16000
Audio = npt.NDArray[np.float32]


def tone(pitch: int, seconds: float, *, partials: int = 10, decay: float = 0.0) -> Audio:
    time = np.arange(round(seconds * RATE)) / RATE
    hertz = 440.0 * 2.0 ** ((pitch - 69) / 12)
    wave = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in range(1, partials + 1))
    return (0.2 * wave * np.exp(-decay * time)).astype(np.float32)


def hit(seconds: float, *, low: float, high: float, seed: int = 0) -> Audio:
    """Noise between two frequencies that fades within a tenth of a second."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * RATE)))
    hertz = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
    spectrum[(hertz < low) | (hertz > high)] = 0.0
    noise = np.fft.irfft(spectrum, round(seconds * RATE))
    noise *= np.exp(-np.arange(len(noise)) / (0.04 * RATE))
    return (0.5 * noise / np.abs(noise).max()).astype(np.float32)


def silence(seconds: float) -> Audio:
    return np.zeros(round(seconds * RATE), np.float32)


def listen(*parts: Audio, block: int = 4096) -> SalienceAnalyser:
    audio = np.concatenate(parts)
    ear = SalienceAnalyser(RATE)
    for start in range(0, len(audio), block):
        ear.hear(audio[start : start + block])
    return ear


def note(onset: float, pitch: int) -> Note:
    return Note(onset, onset + 0.3, pitch, 100)


@pytest.mark.parametrize("pitch", [28, 33, 40, 48, 60, 72, 84, 96, 105])
def test_a_tone_is_clear_at_its_pitch(pitch):
    ear = listen(silence(0.5), tone(pitch, 1.0), silence(0.5))
    assert ear.note(note(0.5, pitch)).clarity > 1.0
    assert ear.note(note(0.5, pitch)).rise > 20.0


@pytest.mark.parametrize("pitch", [63, 72, 84])
def test_it_is_clear_under_noise_and_not_at_other_pitches(pitch):
    """But at pitches that share partials with it, and at its neighbours if it is low."""
    noise = 0.02 * np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    ear = listen(tone(pitch, 1.0) + noise)
    assert ear.note(note(0.3, pitch)).clarity > 1.0
    for other in (pitch - 6, pitch - 3, pitch - 2, pitch + 2, pitch + 3, pitch + 6):
        assert ear.note(note(0.3, other)).clarity < 1.0


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_clear_pitch(seed):
    ear = listen(silence(0.5), hit(0.5, low=30.0, high=8000.0, seed=seed))
    clear = [ear.note(note(0.5, pitch)).clarity >= 1.0 for pitch in range(21, 109)]
    assert sum(clear) <= 3  # by chance


@pytest.mark.parametrize(
    ("low", "high", "key"),
    [(35, 90, KICK), (110, 350, LOW_TOM), (300, 5000, SNARE), (4000, 8000, CLOSED_HAT)],
)
def test_hits_are_told_apart(low, high, key):
    ear = listen(silence(0.5), hit(0.5, low=low, high=high))
    heard = ear.note(note(0.5, 40))
    assert heard.drum_key == key
    assert heard.rise > 20.0


def test_a_tone_that_is_held_is_heard_once_the_drums_have_faded():
    mix = np.concatenate([hit(0.3, low=30, high=8000), silence(0.7)]) + 0.03 * tone(50, 1.0)
    ear = listen(silence(0.5), mix)
    assert ear.note(Note(0.5, 0.6, 50, 100)).clarity < 1.0
    assert ear.note(Note(0.5, 1.4, 50, 100)).clarity > 1.0


def test_no_rise_without_a_hit():
    ear = listen(tone(60, 2.0))
    assert abs(ear.note(note(1.0, 60)).rise) < 1.0


def test_what_sets_in_is_the_new_tone():
    ear = listen(tone(72, 1.0), tone(72, 1.0) + tone(76, 1.0))
    new = ear.tones(1.0)
    assert np.linalg.norm(new.astype(float)) == pytest.approx(1.0, abs=1e-2)
    assert ear.harmonics.share(new, [76]) > 0.9
    assert ear.harmonics.share(new, [72]) < 0.3
    assert not ear.tones(0.5).any()  # nothing is new there
    assert ear.harmonics.share(ear.tones(0.0), [72]) > 0.9  # before the beginning is silence


@pytest.mark.parametrize("until", [1.1, 1.2, 1.5])
def test_tones_that_come_later_do_not_matter(until):
    audio = np.concatenate([silence(1.0), tone(72, 0.4), tone(79, 0.6)])
    ahead, behind = listen(audio), listen(audio[: round(until * RATE)])
    for onset in (0.95, 1.0, 1.05, 1.39):
        assert np.array_equal(ahead.tones(onset, until=until), behind.tones(onset, until=until))


def test_tones_that_were_not_heard_or_are_forgotten_are_none():
    assert not SalienceAnalyser(RATE).tones(0.0).any()
    ear = listen(silence(1.0), tone(72, 3.0))
    assert ear.tones(1.0).any()
    ear.forget(3.0)
    assert not ear.tones(1.0).any()


def test_like_hits_sound_alike():
    one, other = tone(50, 0.5, decay=8.0), tone(57, 0.5, decay=8.0)
    ear = listen(silence(0.5), one, other, one)
    first, second, third = (ear.tones(onset).astype(float) for onset in (0.5, 1.0, 1.5))
    assert first @ third > 0.8
    assert first @ second < 0.5


def test_share_of_tones():
    ear = listen(tone(60, 2.0), hit(2.0, low=30, high=8000))
    assert ear.tonal_share(0.0, 1.5) > 0.9
    assert ear.tonal_share(2.5, 3.5) < 0.1
    assert 0.0 < ear.tonal_share(-3.0, 99.0) < 1.0
    assert listen(silence(1.0)).tonal_share(0.0, 1.0) == 0.0
    assert SalienceAnalyser(RATE).tonal_share(0.0, 1.0) == 0.0


@pytest.mark.parametrize("block", [100, 1000, 33333, 10**9])
def test_blocks_do_not_matter(block):
    audio = [tone(57, 0.7), hit(0.8, low=30, high=8000), tone(40, 0.6)]
    whole, parts = listen(*audio), listen(*audio, block=block)
    for onset in (0.0, 0.31, 0.7, 1.5, 1.99, 2.09):
        assert parts.note(note(onset, 57)) == whole.note(note(onset, 57))
        assert parts.tonal_share(0.0, onset) == pytest.approx(whole.tonal_share(0.0, onset))
    assert parts.seconds == whole.seconds == pytest.approx(2.1)


@pytest.mark.parametrize("until", [0.5, 0.6, 0.9, 1.3])
def test_what_comes_later_does_not_matter(until):
    audio = np.concatenate([tone(57, 0.7), hit(0.8, low=30, high=8000), tone(40, 0.6)])
    ahead, behind = listen(audio), listen(audio[: round(until * RATE)])
    for onset in (0.1, 0.45, 0.5, 0.9):
        assert ahead.note(note(onset, 57), until=until) == behind.note(note(onset, 57), until=until)
    assert ahead.tonal_share(0.0, until) == behind.tonal_share(0.0, until)


def test_the_past_is_forgotten_and_counts_as_clear():
    ear = listen(hit(4.0, low=30, high=8000))
    assert ear.note(note(0.1, 60)).clarity < 1.0
    before = ear.tonal_share(0.0, 4.0)
    ear.forget(3.0)
    assert ear.note(note(0.1, 60)).clarity == math.inf
    assert ear.note(note(3.2, 60)).clarity < 1.0
    assert ear.tonal_share(0.0, 4.0) == before
    ear.forget(99.0)


def test_nothing_heard_is_nothing_clear():
    assert SalienceAnalyser(RATE).note(note(0.0, 60)) == (0.0, 0.0, SNARE)
    short = listen(silence(0.05))
    assert short.note(note(0.0, 60)).clarity == 0.0


def test_pitches_outside_a_piano_count_as_its_last():
    ear = listen(tone(105, 1.0, partials=1))
    assert ear.note(note(0.3, 120)) == ear.note(note(0.3, 108))
    assert ear.note(note(0.3, 0)) == ear.note(note(0.3, 21))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates(rate):
    time = np.arange(rate) / rate
    wave = sum(np.sin(2 * np.pi * 440.0 * k * time) / k for k in range(1, 5))
    ear = SalienceAnalyser(rate)
    ear.hear((0.2 * wave).astype(np.float32))
    assert ear.note(note(0.3, 69)).clarity > 1.0
    assert ear.note(note(0.3, 66)).clarity < 1.0
