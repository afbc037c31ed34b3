"""How parts sound, and that a varied sound keeps its label."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from mt3_synthesis.bank import Bank
from mt3_synthesis.mixer import Palette, perform, render
from mt3_synthesis.music import Part, Piece
from mt3_synthesis.rendering import DRUM_KIT, SAMPLE_RATE
from mt3_synthesis.timbres import DRUM_CENTS_LIMIT, FAMILIES, SHADE, Timbre, varied
from tests.synthesis.sounds import drum, hertz_of, note, tiny_bank

PLAIN = Timbre(0, 0, cents=0.0, gain=1.0, release=0.1)


@functools.cache
def two_kits() -> Palette:
    bank = tiny_bank()
    index = bank.index[bank.index[:, 0] == DRUM_KIT].copy()
    index[:, 0] += 8
    return Palette([bank, Bank("room", bank.audio, index)])


def hits(*keys: int) -> Part:
    notes = tuple(drum(0.1 * place, key) for place, key in enumerate(keys))
    return Part("drums", 0, is_drum=True, notes=notes)


def test_every_hit_is_played_once_and_families_stay_together():
    part = hits(36, 38, 42, 49, 36, 70)
    kits, cents = set(), set()
    for seed in range(40):
        sounds = list(varied(part, PLAIN, two_kits(), np.random.default_rng(seed)))
        played = [note for player, _ in sounds for note in player.notes]
        assert sorted(played) == sorted(part.notes)
        for player, timbre in sounds:
            kits.add((timbre.bank, timbre.instrument))
            cents.add(timbre.cents)
            keys = {note.pitch for note in player.notes}
            assert any(keys <= set(family) for family in FAMILIES) or keys == {70}
            assert abs(timbre.cents) <= DRUM_CENTS_LIMIT
    assert kits == {(0, DRUM_KIT), (1, DRUM_KIT + 8)}
    assert len(cents) > 100


def test_instruments_borrow_from_other_registers():
    part = Part("keys", 0, is_drum=False, notes=(note(0.0, 0.5, 60),))
    rng = np.random.default_rng(1)
    shades = [next(varied(part, PLAIN, two_kits(), rng))[1].shade for _ in range(200)]
    assert set(shades) == set(range(-SHADE, SHADE + 1))
    assert 0.4 < np.mean(np.array(shades) == 0) < 0.7


def test_a_borrowed_sound_has_the_pitch_of_the_note():
    palette = Palette([tiny_bank()])
    part = Part("keys", 0, is_drum=False, notes=(note(0.0, 0.9, 60),))
    piece = Piece(1.0, (part,))
    pitches = {}
    for seed in range(30):
        voices, notes = perform(
            piece, palette, np.random.default_rng(seed), samples=SAMPLE_RATE, vary=True
        )
        assert [(n.onset, n.pitch) for n in notes] == [(0.0, 60)]
        sound = render(voices, palette, samples=SAMPLE_RATE)
        pitches[int(voices.shot[0])] = hertz_of(sound[:12000])
    assert len(pitches) > 1, "no sound was borrowed"
    assert list(pitches.values()) == pytest.approx([261.63] * len(pitches), rel=0.03)


def test_a_damped_drum_fades_and_keeps_its_label():
    palette = two_kits()
    loud = []
    for seed in range(30):
        voices, notes = perform(
            Piece(1.0, (hits(38),)), palette, np.random.default_rng(seed), samples=8000, vary=True
        )
        assert notes == list(hits(38).notes)
        sound = render(voices, palette, samples=8000)
        loud.append(float(np.abs(sound[2400:]).max() / np.abs(sound[:800]).max()))
    assert min(loud) < 0.01 < max(loud)
