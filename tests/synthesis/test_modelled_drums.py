"""Modelled drums."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_synthesis.modelled_drums import CROSS_STICK, SKINS, drum, live_bank, membrane_bank
from mt3_synthesis.rendering import DRUM_KIT
from tests.synthesis.sounds import hertz_of, tiny_bank


@pytest.mark.parametrize("hertz", [90.0, 200.0, 500.0])
def test_a_drum_rings_at_its_pitch_and_fades(hertz):
    rng = np.random.default_rng(0)
    sound = drum(rng, hertz, ring=0.6, airy=1.0, rattle=0.0)
    assert sound.dtype == np.float32
    assert np.abs(sound).max() == pytest.approx(0.3)
    settled = sound[1600:8000]
    nearest = min(abs(hertz_of(settled) / (hertz * ratio) - 1.0) for ratio in (1.0, 1.5, 2.0))
    assert nearest < 0.02
    assert np.abs(sound[-4000:]).max() < 0.01


def test_a_snare_rattles():
    def noise(rattle):
        sound = drum(np.random.default_rng(1), 200.0, ring=0.3, airy=0.5, rattle=rattle)
        return float(np.sum(np.abs(np.fft.rfft(sound))[8000:] ** 2))

    assert noise(1.0) > 5 * noise(0.0)


def test_a_kit_keeps_everything_but_its_skins():
    kit = tiny_bank()
    bank = membrane_bank("skins", kit, 3)
    skins = {key for keys in SKINS for key in keys}
    kept = {shot.pitch for shot in kit.shots(DRUM_KIT)} - skins
    assert bank.instruments == [DRUM_KIT]
    assert {shot.pitch for shot in bank.shots(DRUM_KIT)} == kept | skins
    again, other = membrane_bank("skins", kit, 3), membrane_bank("skins", kit, 4)
    assert np.array_equal(bank.audio, again.audio)
    assert not np.array_equal(bank.index, other.index) or not np.array_equal(
        bank.audio, other.audio
    )


def test_a_live_kit_rings_along():
    kit = tiny_bank()
    bank, skins = live_bank("live", kit, 3), membrane_bank("skins", kit, 3)
    assert bank.instruments == [DRUM_KIT]
    keys = {shot.pitch for shot in skins.shots(DRUM_KIT)}
    assert {shot.pitch for shot in bank.shots(DRUM_KIT)} == keys
    assert np.array_equal(bank.audio, live_bank("live", kit, 3).audio)
    for one, other in zip(bank.shots(DRUM_KIT), skins.shots(DRUM_KIT), strict=True):
        size = min(one.length, other.length)
        new, old = (b.audio[s.start : s.start + size] for b, s in ((bank, one), (skins, other)))
        assert one.pitch == CROSS_STICK or size > 1000
        assert not np.array_equal(new, old)
