"""Rooms and microphones: what each part of a colour does, and that onsets stay."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.errors import OptionError
from mt3_synthesis.augment import (
    NOISES,
    PREROLL,
    ROOMS,
    AugmentConfig,
    Augmenter,
    Colour,
    amplitude,
    draw,
    fft_length,
    tables,
)
from mt3_synthesis.rendering import SAMPLE_RATE
from tests.synthesis.sounds import tone

SAMPLES = 16000
BARE = Colour(
    room=0, early=0.0, tail=0.0, decay_low=0.5, decay_high=0.3, tilt=0.0, hz_1=200.0, db_1=0.0,
    hz_2=2000.0, db_2=0.0, octaves=1.0, low_cut=1e-3, high_cut=1e6, level=0.0, drive=0.0,
    noise=-200.0, pink=0.0, offset=0,
)  # fmt: skip


def window(*, onset: int = 4000) -> np.ndarray:
    """A chord that begins ``onset`` samples into the window."""
    mix = np.zeros(PREROLL + SAMPLES, np.float32)
    chord = sum(tone(pitch, 0.5, decay=3.0) for pitch in (45, 60, 76, 100))
    mix[PREROLL + onset : PREROLL + onset + 8000] = chord * 0.2
    return mix


def db(ratio: float) -> float:
    return float(20 * np.log10(ratio))


def level_at(audio: np.ndarray, pitch: float) -> float:
    """Level of one tone of the chord, in dB."""
    time = np.arange(8000) / SAMPLE_RATE
    wave = np.exp(-2j * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time) * np.hanning(8000)
    return db(abs(np.sum(audio[4000:12000] * wave)))


def test_nothing_asked_nothing_done():
    mix = window()
    audio = Augmenter(SAMPLES)(mix, BARE)
    assert audio.dtype == np.float32
    np.testing.assert_allclose(audio, mix[PREROLL:] / np.abs(mix).max(), atol=2e-6)


@pytest.mark.parametrize("level", [-20.0, -6.0, -0.5])
def test_the_level_is_that_of_the_peak(level):
    audio = Augmenter(SAMPLES)(window(), BARE._replace(level=level))
    assert np.abs(audio).max() == pytest.approx(amplitude(level), rel=1e-4)


def test_near_silence_is_not_blown_up():
    audio = Augmenter(SAMPLES)(window() * 1e-3, BARE)
    assert np.abs(audio).max() < 0.03


def test_silence_becomes_noise_of_the_right_level():
    for pink in (0.0, 1.0):
        colour = BARE._replace(noise=-50.0, pink=pink, offset=NOISES - 100)
        audio = Augmenter(SAMPLES)(np.zeros(PREROLL + SAMPLES, np.float32), colour)
        assert db(np.sqrt(np.mean(audio**2))) == pytest.approx(-50.0, abs=1.5)


def test_pink_noise_is_dark():
    spectrum = np.abs(np.fft.rfft(tables().pink)) ** 2
    hertz = np.fft.rfftfreq(NOISES, 1 / SAMPLE_RATE)
    octaves = [spectrum[(hertz > low) & (hertz < 2 * low)].sum() for low in (100, 400, 1600)]
    assert max(octaves) / min(octaves) < 1.2  # equal energy in every octave


@pytest.mark.parametrize(
    ("change", "louder", "quieter"),
    [
        ({"tilt": -3.0}, 45, 100),
        ({"tilt": 1.5}, 100, 45),
        ({"db_1": 8.0, "hz_1": 110.0}, 45, 100),
        ({"db_2": -8.0, "hz_2": 2637.0}, 45, 100),
        ({"low_cut": 300.0}, 100, 45),
        ({"high_cut": 1500.0}, 45, 100),
    ],
)
def test_the_equaliser_moves_the_balance(change, louder, quieter):
    bare = Augmenter(SAMPLES)(window(), BARE)
    audio = Augmenter(SAMPLES)(window(), BARE._replace(**change))
    moved = {p: level_at(audio, p) - level_at(bare, p) for p in (louder, quieter)}
    assert moved[louder] - moved[quieter] > 4.0


def test_a_band_has_the_gain_that_is_asked_for():
    bare = Augmenter(SAMPLES)(window(), BARE)
    audio = Augmenter(SAMPLES)(window(), BARE._replace(db_2=-7.0, hz_2=2637.0, octaves=0.4))
    moved = {p: level_at(audio, p) - level_at(bare, p) for p in (60, 100)}
    assert moved[100] - moved[60] == pytest.approx(-7.0, abs=0.3)


def test_a_room_rings_after_the_sound_and_never_before():
    mix = np.zeros(PREROLL + SAMPLES, np.float32)
    mix[PREROLL + 4000 : PREROLL + 4016] = 0.5
    dry = Augmenter(SAMPLES)(mix, BARE)
    wet = Augmenter(SAMPLES)(mix, BARE._replace(early=0.4, tail=0.7))
    assert np.abs(wet[:4000]).max() < 1e-4
    assert not np.any(np.abs(dry[4100:]) > 1e-4)
    assert np.sqrt(np.mean(wet[4500:6000] ** 2)) > 1e-3
    assert np.argmax(np.abs(wet)) - 4000 < 16


def test_a_longer_room_rings_longer():
    mix = np.zeros(PREROLL + SAMPLES, np.float32)
    mix[PREROLL + 1000] = 1.0
    rings = [
        np.sqrt(
            np.mean(
                Augmenter(SAMPLES)(mix, BARE._replace(tail=0.5, decay_low=decay, decay_high=decay))[
                    5000:7000
                ]
                ** 2
            )
        )
        for decay in (0.15, 0.4, 1.0)
    ]
    assert rings == sorted(rings)
    assert rings[2] > 20 * rings[0]


def test_the_room_still_rings_from_before_the_window():
    mix = window()
    mix[PREROLL - 1600 : PREROLL] = tone(70, 0.1)
    audio = Augmenter(SAMPLES)(mix, BARE._replace(tail=0.8))
    assert np.sqrt(np.mean(audio[:1000] ** 2)) > 0.01


def test_what_wraps_around_is_cut_off():
    """The end of a window must not be heard at its beginning."""
    mix = np.zeros(PREROLL + SAMPLES, np.float32)
    mix[-3000:] = 0.5
    audio = Augmenter(SAMPLES)(mix, BARE._replace(early=0.5, tail=0.8, decay_low=1.2))
    assert np.abs(audio[:9000]).max() < 1e-5


def test_saturation_keeps_the_peak_and_raises_the_rest():
    clean = Augmenter(SAMPLES)(window(), BARE)
    driven = Augmenter(SAMPLES)(window(), BARE._replace(drive=3.0))
    assert np.abs(driven).max() == pytest.approx(1.0, abs=1e-4)
    assert np.sqrt(np.mean(driven**2)) > 1.3 * np.sqrt(np.mean(clean**2))


def test_equal_seeds_draw_equal_colours_and_all_stay_in_range():
    config = AugmentConfig()
    drawn = [draw(config, np.random.default_rng(seed)) for seed in range(300)]
    assert drawn[7] == draw(config, np.random.default_rng(7))
    assert len(set(drawn)) == 300
    for colour in drawn:
        assert 0 <= colour.room < ROOMS
        assert 0 <= colour.offset < NOISES
        assert -24.0 <= colour.level <= -0.5
    share = np.mean([colour.tail > 0 for colour in drawn])
    assert share == pytest.approx(config.room, abs=0.1)
    audio = Augmenter(SAMPLES)
    for colour in drawn[:20]:
        assert np.abs(audio(window(), colour)).max() <= 1.0


def test_probability_zero_means_never():
    never = AugmentConfig(0.0, 0.0, 0.0, 0.0, 0.0)
    for seed in range(50):
        colour = draw(never, np.random.default_rng(seed))
        assert colour.early == colour.tail == colour.tilt == colour.db_1 == colour.drive == 0.0
        assert colour.noise == -90.0


@pytest.mark.parametrize("wrong", [{"room": 1.5}, {"level": (-3.0, -6.0)}, {"level": (-3.0, 1.0)}])
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(OptionError, match="expected|ascending"):
        AugmentConfig(**wrong)


@pytest.mark.parametrize("samples", [1, 128, 7777, 8320, 16640, 32768, 192000])
def test_transforms_have_small_factors_and_hold_the_window(samples):
    length = rest = fft_length(samples)
    for factor in (2, 3, 5):
        while rest % factor == 0:
            rest //= factor
    assert rest == 1
    assert samples + PREROLL <= length < 1.08 * (samples + PREROLL)
