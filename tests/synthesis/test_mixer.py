"""Mixing: the right sound, at the right time, pitch and level."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.errors import OptionError
from mt3_synthesis.bank import assemble
from mt3_synthesis.mixer import (
    OVERSAMPLING,
    Palette,
    Voices,
    doubled,
    perform,
    play,
    render,
)
from mt3_synthesis.music import MusicConfig, Part, Piece, compose
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE, Sound
from mt3_synthesis.timbres import Timbre, choose_timbre
from tests.synthesis.sounds import drum, hertz_of, note, tiny_bank, tiny_palette, tone

PLAIN = Timbre(bank=0, instrument=0, cents=0.0, gain=1.0, release=0.1)


def part(*notes, program=0):
    return Part("keys", program, is_drum=notes[0].is_drum, notes=tuple(notes))


def heard(one, timbre=PLAIN, *, start=0, samples=SAMPLE_RATE):
    voices, notes = play(one, tiny_palette(), timbre, start=start, samples=samples)
    return render(voices, tiny_palette(), samples=samples), notes


@pytest.mark.parametrize("pitch", range(58, 67))
def test_notes_have_their_pitch(pitch):
    audio, _ = heard(part(note(0.0, 0.9, pitch)))
    assert hertz_of(audio[:12000]) == pytest.approx(440 * 2 ** ((pitch - 69) / 12), rel=5e-4)


def test_detuning_is_in_cents():
    audio, _ = heard(part(note(0.0, 0.9, 69)), PLAIN._replace(cents=50.0))
    assert hertz_of(audio[:12000]) == pytest.approx(440 * 2 ** (0.5 / 12), rel=5e-4)


def test_a_note_lasts_until_its_release_ends():
    audio, notes = heard(part(note(0.25, 0.5, 60)))
    assert not audio[: SAMPLE_RATE // 4].any()
    assert audio[SAMPLE_RATE // 4 :][:100].any()
    assert np.abs(audio[7000:8000]).max() > 0.1
    assert 0.01 < np.abs(audio[8600:8800]).max() < 0.06
    assert not audio[9600:].any()
    assert notes == [note(0.25, 0.5, 60)]


def test_a_sound_that_ends_early_ends_its_label():
    audio, notes = heard(part(note(0.1, 5.0, 60)), samples=3 * SAMPLE_RATE)
    end = np.flatnonzero(audio)[-1] / SAMPLE_RATE
    assert end == pytest.approx(1.1, abs=0.02)
    assert notes[0].offset == pytest.approx(end - 0.1, abs=0.01)


def test_loudness_follows_velocity_between_and_at_the_recorded_ones():
    levels = []
    for velocity in (30, 50, 70, 80, 100, 127):
        audio, _ = heard(part(note(0.0, 0.9, 60, velocity=velocity)))
        levels.append(float(np.abs(audio[:4000]).max()))
    assert levels == sorted(levels)
    assert levels[4] / levels[1] == pytest.approx(2.0, rel=0.02)
    assert levels[0] / levels[1] == pytest.approx((30 / 50) ** 1.2, rel=0.01)


def test_drums_ring_on_at_their_own_pitch():
    timbre = PLAIN._replace(instrument=DRUM_KIT, release=0.0)
    audio, notes = heard(part(drum(0.1, 38)), timbre)
    (shot,) = tiny_bank().shots(DRUM_KIT)[1:2]
    assert shot.pitch == 38
    recorded = tiny_bank().audio[shot.start : shot.start + shot.length] / 32768
    np.testing.assert_allclose(audio[1600 : 1600 + shot.length], recorded, atol=1e-6)
    assert notes == [drum(0.1, 38)]


def test_percussion_that_the_kit_lacks_is_neither_heard_nor_labelled():
    timbre = PLAIN._replace(instrument=DRUM_KIT, release=0.0)
    audio, notes = heard(part(drum(0.1, 37), drum(0.2, 77)), timbre)
    assert not audio.any()
    assert notes == []


@pytest.mark.parametrize("cut", [100, 3000, 4001, 12000])
def test_windows_fit_together(cut):
    one = part(note(0.05, 0.6, 61), note(0.2, 0.9, 66), note(0.55, 1.4, 50))
    whole, labels = heard(one, samples=20000)
    first, _ = heard(one, samples=cut)
    second, same = heard(one, start=cut, samples=20000 - cut)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, atol=1e-6)
    assert labels == same


def test_a_window_may_begin_before_the_piece():
    whole, _ = heard(part(note(0.1, 0.6, 61)))
    later, _ = heard(part(note(0.1, 0.6, 61)), start=-500)
    np.testing.assert_array_equal(later[500:], whole[:-500])


def test_the_sum_of_parts_is_the_mix():
    one, other = part(note(0.05, 0.6, 61)), part(note(0.2, 0.9, 66))
    plans = [play(p, tiny_palette(), PLAIN, start=0, samples=16000)[0] for p in (one, other)]
    both = render(Voices.join(plans), tiny_palette(), samples=16000)
    single = [render(plan, tiny_palette(), samples=16000) for plan in plans]
    np.testing.assert_allclose(both, single[0] + single[1], atol=1e-6)
    assert not render(Voices.none(), tiny_palette(), samples=16000).any()


def test_images_of_high_tones_stay_low():
    """What linear interpolation adds; at the rate of the bank it would be -6 dB and more."""
    palette = Palette([assemble("high", [Sound(0, 60, 100, tone(114, 1.0))])])  # 5.9 kHz
    voices, _ = play(
        part(note(0.0, 0.9, 61)), palette, PLAIN._replace(cents=-30.0), start=0, samples=12000
    )
    spectrum = np.abs(np.fft.rfft(render(voices, palette, samples=12000) * np.hanning(12000))) ** 2
    peak = int(np.argmax(spectrum))
    aside = spectrum.copy()
    aside[peak - 20 : peak + 20] = 0
    assert 10 * np.log10(aside.sum() / spectrum.sum()) < -22


def test_doubling_the_rate_keeps_the_samples_and_the_tone():
    audio = np.rint(tone(100, 0.5) * 20000).astype(np.int16)
    twice = doubled(audio)
    np.testing.assert_array_equal(twice[::2], audio)
    time = np.arange(len(twice)) / (OVERSAMPLING * SAMPLE_RATE)
    exact = np.sin(2 * np.pi * 440 * 2 ** (31 / 12) * time) * 20000
    assert np.abs(twice - exact)[100:-100].max() < 60


def test_doubling_works_in_blocks(monkeypatch):
    audio = np.random.default_rng(0).integers(-9000, 9000, 5000).astype(np.int16)
    whole = doubled(audio)
    monkeypatch.setattr("mt3_synthesis.mixer._BLOCK", 777)
    np.testing.assert_array_equal(doubled(audio), whole)


def test_a_palette_knows_its_instruments():
    palette = tiny_palette()
    assert palette.names == ("tiny", "other")
    assert palette.instruments == [0, 25, 33, 40, 48, 73, DRUM_KIT]
    assert palette.banks_with(40) == [0, 1]
    assert palette.banks_with(41) == []
    with pytest.raises(OptionError, match="build one"):
        Palette([])


def test_the_second_bank_is_where_it_should_be():
    timbre = PLAIN._replace(bank=1, instrument=73)
    audio, _ = heard(part(note(0.0, 0.9, 71), program=73), timbre)
    assert hertz_of(audio[:12000]) == pytest.approx(440 * 2 ** (2 / 12), rel=5e-4)


def test_layers_that_lack_a_drum_borrow_it():
    noise = np.random.default_rng(0).standard_normal(2000).astype(np.float32) * 0.1
    hits = ((36, 50), (36, 100), (38, 50), (42, 100), (44, 75))
    palette = Palette([assemble("kit", [Sound(DRUM_KIT, key, v, noise) for key, v in hits])])
    timbre = PLAIN._replace(instrument=DRUM_KIT)
    keys = np.array([36, 36, 38, 38, 42, 42, 44, 45])
    velocities = np.array([40, 110, 40, 110, 40, 110, 75, 75])
    rows = palette.find(timbre, keys, velocities)
    played = [tuple(palette.shots[row, 1:3].tolist()) for row in rows[:-1]]
    assert played == [(36, 50), (36, 100), (38, 50), (38, 50), (42, 100), (42, 100), (44, 75)]
    assert rows[-1] == -1


def test_timbres_are_drawn_from_all_banks_and_vary():
    rng = np.random.default_rng(0)
    drawn = [choose_timbre(part(note(0, 1, 60)), tiny_palette(), rng) for _ in range(50)]
    assert {timbre.bank for timbre in drawn} == {0, 1}
    assert len({timbre.gain for timbre in drawn}) == len({t.cents for t in drawn}) == 50
    assert all(0.03 <= timbre.release <= 0.25 for timbre in drawn)


def test_absent_instruments_are_replaced_within_their_class_or_silent():
    rng = np.random.default_rng(0)
    near = choose_timbre(part(note(0, 1, 60), program=42), tiny_palette(), rng)
    assert near.instrument == 40
    assert choose_timbre(part(note(0, 1, 60), program=100), tiny_palette(), rng) is None
    piece = Piece(
        1.0,
        (
            part(note(0.0, 0.5, 60, program=42), program=42),
            part(note(0.0, 0.5, 60, program=100), program=100),
        ),
    )
    _, notes = perform(piece, tiny_palette(), rng, samples=16000)
    assert [n.program for n in notes] == [40]


def test_a_kit_is_needed_for_drums():
    palette = Palette([assemble("tone", [Sound(0, 60, 100, tone(60, 0.5))])])
    piece = Piece(1.0, (Part("drums", 0, is_drum=True, notes=(drum(0.1, 36),)),))
    voices, notes = perform(piece, palette, np.random.default_rng(0), samples=16000)
    assert not len(voices.shot)
    assert notes == []


def test_performances_of_equal_seeds_are_equal():
    piece = compose(MusicConfig.band(), 4, seconds=3.0)
    one, same = (
        perform(piece, tiny_palette(), np.random.default_rng(5), samples=40000) for _ in range(2)
    )
    for column, other in zip(one[0], same[0], strict=True):
        np.testing.assert_array_equal(column, other)
    assert one[1] == same[1]


def test_no_position_leaves_its_sound():
    """Over all of a sound, at any shift: the last sample read is in the guard."""
    palette = tiny_palette()
    for pitch in range(20, 112):
        for cents in (-40.0, 0.0, 40.0):
            timbre = PLAIN._replace(cents=cents, release=0.25)
            voices, _ = play(part(note(0.0, 9.0, pitch)), palette, timbre, start=0, samples=99999)
            (row,) = palette.find(timbre, np.array([pitch]), np.array([100]))
            last = (int(voices.length[0]) - 1) * int(voices.ratio[0]) >> 24
            assert last + 1 <= palette.shots[row, 4] + 2 * OVERSAMPLING - 1
