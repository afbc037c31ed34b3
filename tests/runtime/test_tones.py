"""Which tones set in, and whose harmonics they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt3_runtime.leakage.harmonics import (
    HIGH_PITCH,
    HIGHEST_HZ,
    LOW_PITCH,
    Harmonics,
    setting_in,
    surroundings,
)

SPACING, USED = 7.8125, 384
HARMONICS = Harmonics(SPACING, USED)


def spectrum(*hertz: float, floor: float = -4.0, level: float = 0.0) -> np.ndarray:
    """log10 of amplitudes with peaks of one frequency each."""
    made = np.full(USED, floor, np.float32)
    made[[round(one / SPACING) for one in hertz]] = level
    return made


def series(pitch: int, *numbers: int) -> np.ndarray:
    base = 440.0 * 2.0 ** ((pitch - 69) / 12)
    return spectrum(*(base * number for number in numbers))


SILENCE = spectrum()


def test_only_what_is_new_sets_in():
    held = spectrum(500.0)
    both = np.maximum(held, spectrum(800.0))
    tones = setting_in(both, held)
    assert tones.argmax() == round(800 / SPACING)
    assert tones[round(500 / SPACING)] == 0.0
    assert np.linalg.norm(tones) == pytest.approx(1.0)
    assert not setting_in(held, held).any()
    assert not setting_in(SILENCE + 1.0, SILENCE).any()  # louder, but no tone
    louder = setting_in(held + np.float32(0.29), held)
    assert not louder.any()
    assert setting_in(held + np.float32(0.31), held).any()


def test_what_is_lower_than_all_music_counts_for_nothing():
    assert not setting_in(spectrum(30.0), SILENCE).any()


def test_like_sounds_are_alike():
    one, other = (setting_in(spectrum(*hertz), SILENCE) for hertz in ((330, 495), (330, 800)))
    assert one @ one == pytest.approx(1.0)
    assert 0.4 < one @ other < 0.6


@pytest.mark.parametrize("pitch", [60, 64, 72, 80])
def test_harmonics_belong_to_their_pitch(pitch: int):
    tones = setting_in(series(pitch, 1, 2, 3), SILENCE)
    assert HARMONICS.share(tones, [pitch]) == pytest.approx(1.0)
    assert HARMONICS.share(tones, [pitch + 1]) < 0.1
    assert HARMONICS.share(tones, [pitch, pitch + 1]) == pytest.approx(1.0)


def test_the_modes_of_a_skin_belong_to_no_pitch():
    skin = setting_in(spectrum(330, 495, 652, 676, 788, 849), SILENCE)
    shares = [HARMONICS.share(skin, [pitch]) for pitch in range(LOW_PITCH, 90)]
    assert max(shares) < 0.6
    assert np.mean(shares) < 0.15


def test_the_fundamental_of_a_low_pitch_does_not_count():
    kick = setting_in(spectrum(440.0 * 2.0 ** ((31 - 69) / 12)), SILENCE)
    assert HARMONICS.share(kick, [31]) < 0.0
    bass = setting_in(series(43, 1, 2, 3, 4), SILENCE)
    assert 0.5 < HARMONICS.share(bass, [43]) < 0.9


def test_pitches_that_are_not_high_have_two_harmonics():
    assert 2 * 440.0 * 2.0 ** ((HIGH_PITCH - 69) / 12) < HIGHEST_HZ
    assert 2 * 440.0 * 2.0 ** ((HIGH_PITCH + 1 - 69) / 12) > HIGHEST_HZ


@given(st.sets(st.integers(0, 127), min_size=1, max_size=8), st.integers(0, 99))
def test_noise_belongs_to_all_pitches_by_chance(pitches: set[int], seed: int):
    flat = np.full(USED, USED**-0.5, np.float32)
    assert HARMONICS.share(flat, pitches) == pytest.approx(0.0, abs=1e-5)
    assert HARMONICS.share(np.zeros(USED, np.float16), pitches) <= 0.0
    tones = np.random.default_rng(seed).random(USED)
    assert HARMONICS.share(tones / np.linalg.norm(tones), pitches) <= 1.0


def test_surroundings_are_means():
    level = np.arange(100, dtype=np.float32)[np.newaxis]
    assert surroundings(level)[0, 50] == pytest.approx(50.0)
    assert surroundings(level)[0, 0] == pytest.approx(np.arange(3, 15).mean())
