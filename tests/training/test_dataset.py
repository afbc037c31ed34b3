"""Training examples: always the same, and with labels that fit their audio."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.audio.log_mel import FeatureExtractor
from mt3_runtime.errors import OptionError
from mt3_runtime.notes.magenta_assembler import NoteAssembler
from mt3_runtime.notes.note_rules import NoteRules
from mt3_runtime.notes.vocabulary import EventKind, Vocabulary
from mt3_synthesis.augment import AugmentConfig
from mt3_synthesis.corpora import as_piece
from mt3_synthesis.mixer import Palette, playable
from mt3_synthesis.music import MusicConfig
from mt3_synthesis.rendering import DRUM_KIT
from mt3_training.examples.dataset import (
    HOP,
    NO_FRAME,
    RECIPE,
    DatasetConfig,
    Examples,
    dense_rolls,
    spans,
)
from mt3_training.examples.tokens import LabelRules
from tests.synthesis.sounds import PROGRAMS, drum, note, tiny_bank, tiny_palette

SECONDS_PER_FRAME = HOP / 16000


def examples(**options) -> Examples:
    return Examples(DatasetConfig(**options), tiny_palette())


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_example_depends_on_its_index_alone():
    made = examples(frames=65)
    backwards = [made.example(index) for index in (9, 4, 3)]
    again = examples(frames=65)
    assert same(again.example(3), backwards[2])
    assert same(again.example(9), backwards[0])
    assert not same(again.example(4), backwards[2])
    assert not np.array_equal(examples(frames=65, seed=1).example(3).audio, backwards[2].audio)


@pytest.mark.parametrize("frames", [1, 65, 130, 256])
def test_shapes_and_types(frames):
    made = examples(frames=frames)
    one = made.example(11)
    assert one.audio.shape == (frames * HOP,)
    assert one.audio.dtype == np.float32
    assert one.rolls.shape == (4, frames, 128)
    assert one.tokens.dtype == np.int32
    assert one.tokens.shape == one.token_frames.shape
    assert one.token_frames.max() < frames
    assert one.tokens[-1] == Vocabulary.mt3().eos
    assert FeatureExtractor()(one.audio).shape == (256, 512)


@pytest.mark.parametrize("index", range(12))
def test_tokens_rolls_and_frames_tell_the_same_story(index):
    made = examples(frames=128, augment=None, labels=LabelRules("full"))
    one = made.example(index)
    vocabulary = Vocabulary.mt3()
    events = vocabulary.decode(one.tokens)
    velocity, held = None, True
    onsets, drums = set(), set()
    for event, frame in zip(events, one.token_frames.tolist(), strict=True):
        if event is None:
            assert frame == NO_FRAME
        elif event.kind is EventKind.TIE:
            held = False
        elif event.kind is EventKind.VELOCITY:
            velocity = event.value
        elif held:
            assert frame == NO_FRAME
        elif event.kind is EventKind.DRUM:
            drums.add((frame, event.value))
        elif event.kind is EventKind.PITCH and velocity:
            onsets.add((frame, event.value))
    for roll, found in ((one.rolls[0], onsets), (one.rolls[2], drums)):
        rolled = set(zip(*(axis.tolist() for axis in np.nonzero(roll)), strict=True))
        for frame, pitch in found:
            near = [other for other, key in rolled if key == pitch and abs(other - frame) <= 1]
            # An event of the last step may begin behind the window, or of the first ahead of it.
            assert near or frame <= 1 or frame >= 126
        for frame, pitch in rolled:
            near = [other for other, key in found if key == pitch and abs(other - frame) <= 4]
            assert near or frame <= 1 or frame >= 126
    assert (one.rolls[1] >= one.rolls[0]).all()


def test_labels_are_where_the_sound_is():
    """Single tones: silence ahead of each onset's frame, sound behind it."""
    tones = MusicConfig((0, 0), drums=0.0, chaos=1.0, programs=(0,))
    made = examples(recipe=((1.0, tones),), augment=None, frames=256)
    checked = 0
    for index in range(40):
        one = made.example(index)
        sounding = one.rolls[1].any(axis=1)
        for frame in np.flatnonzero(one.rolls[0].any(axis=1)):
            if frame < 50 or frame > 250 or sounding[frame - 50 : frame].any():
                continue
            sample = frame * HOP
            before = np.abs(one.audio[sample - 200 : sample]).max()
            after = np.abs(one.audio[sample + HOP : sample + 3 * HOP]).max()
            assert after > 20 * before
            checked += 1
    assert checked >= 3


def test_a_model_that_reads_the_tokens_hears_the_rolls():
    made = examples(frames=256)
    for index in range(20):
        one = made.example(index)
        assembler = NoteAssembler(Vocabulary.mt3(), NoteRules.mt3())
        closed, report = assembler.add(one.tokens, None, 0.0, None)
        notes = closed + assembler.finish()
        held = int(np.count_nonzero(one.tokens == Vocabulary.mt3().id_range(EventKind.TIE)[0]))
        assert held == 1
        assert not report.missing_tie
        assert bool(notes) >= bool(one.rolls[2].any())


def test_the_clock_of_a_window_is_that_of_the_model():
    """Windows begin on frames (8 ms), the clock counts whole steps (10 ms): 0 to 9.99 ms behind."""
    line = MusicConfig((1, 1), drums=1.0, chaos=0.0)
    made = examples(recipe=((1.0, line),), augment=None, corpus=0.0)
    offsets = set()
    for index in range(60):
        one = made.draw(index)
        events = Vocabulary.mt3().decode(one.tokens)
        shifts = [e.value for e in events if e is not None and e.kind is EventKind.SHIFT]
        frames = [
            f
            for f, e in zip(one.token_frames.tolist(), events, strict=True)
            if e is not None and e.kind is EventKind.SHIFT
        ]
        for shift, frame in zip(shifts, frames, strict=True):
            if 0 < frame < 255:
                offsets.add(shift * 10 - frame * 8)
    assert min(offsets) >= 0
    assert max(offsets) <= 17


def test_long_token_lists_are_cut_without_an_end():
    made = examples(max_tokens=12, recipe=((1.0, MusicConfig.band()),))
    cut = [made.example(index) for index in range(20)]
    assert max(len(one.tokens) for one in cut) == 12
    full = examples(recipe=((1.0, MusicConfig.band()),))
    for one in cut:
        np.testing.assert_array_equal(one.tokens, full.draw(one.number).tokens[:12])


def test_written_music_is_used_as_often_as_asked():
    song = as_piece([note(k * 0.1, k * 0.1 + 0.1, 77, program=73) for k in range(900)])
    made = Examples(DatasetConfig(corpus=0.5, frames=64), tiny_palette(), corpus=[song])
    high = 0
    for index in range(60):
        one = made.draw(index)
        pitches = {pitch for roll, _, _, pitch in one.spans.tolist() if roll == 0}
        high += len(pitches) == 1 and len(one.spans) > 5
    assert 15 <= high <= 45


def test_some_windows_are_silent_begin_late_or_end_early():
    made = examples(frames=128, augment=None)
    active = [made.example(index).rolls[1:].any(axis=(0, 2)) for index in range(150)]
    assert any(not one.any() for one in active)
    assert any(one.any() and not one[:60].any() for one in active)
    assert any(one.any() and not one[-60:].any() for one in active)


def test_where_only_the_room_rings_there_is_sound_and_no_note(monkeypatch):
    monkeypatch.setattr("mt3_training.examples.dataset.BEGINNINGS", 0.0)
    monkeypatch.setattr("mt3_training.examples.dataset.ENDINGS", 1.0)
    made = examples(frames=128)
    found = [made.example(index) for index in range(60)]
    begun = [bool(one.rolls[[0, 2]].any()) for one in found]
    assert 15 <= begun.count(False) <= 45  # a third begins behind the end
    assert any(np.abs(one.audio).max() > 0.01 and not one.rolls.any() for one in found)


def test_a_window_may_be_silent(monkeypatch):
    monkeypatch.setattr("mt3_training.examples.dataset.SILENCE", 1.0)
    one = examples(frames=64).example(0)
    assert not one.rolls.any()
    assert len(one.tokens) == 2
    assert np.isfinite(one.audio).all()


def test_augmentation_changes_the_audio_and_not_the_labels():
    loud, bare = examples(frames=64), examples(frames=64, augment=None)
    one, other = loud.example(2), bare.example(2)
    assert not np.array_equal(one.audio, other.audio)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert loud.draw(2).colour is not None
    assert bare.draw(2).colour is None


def test_spans_of_a_window():
    notes = [
        note(0.0, 0.5, 60),  # held from before
        note(0.0, 0.39, 61),  # over before
        note(0.5, 9.0, 62, program=41),  # goes on
        note(0.9, 1.0, 63),  # later
        drum(0.39, 36),
        drum(0.402, 38),
    ]
    found = spans(notes, first=50, frames=50)  # 0.4 to 0.8 s
    assert found.tolist() == [
        [1, 0, 12, 60],
        [3, 0, 12, 0],
        [0, 12, 12, 62],
        [1, 12, 49, 62],
        [3, 12, 49, 5],
        [2, 0, 0, 38],
    ]
    rolls = dense_rolls(found, frames=50)
    assert rolls[1, :13, 60].all()
    assert not rolls[1, 13:, 60].any()
    assert rolls.sum() == 2 * 13 + 1 + 2 * 38 + 1
    assert spans([], first=0, frames=9).shape == (0, 4)


def test_music_is_limited_to_what_the_palette_has():
    assert set(playable(MusicConfig.band(), tiny_palette()).programs) <= set(PROGRAMS)
    bank = tiny_bank()
    drumless = type(bank)("x", bank.audio, bank.index[bank.index[:, 0] != DRUM_KIT])
    assert playable(MusicConfig.band(), Palette([drumless])).drums == 0.0


def test_the_recipe_is_a_distribution():
    assert sum(weight for weight, _ in RECIPE) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"max_tokens": 0},
        {"seed": -1},
        {"corpus": 1.5},
        {"recipe": ()},
        {"recipe": ((0.0, MusicConfig()),)},
    ],
)
def test_impossible_configurations_are_refused(wrong):
    with pytest.raises(OptionError):
        DatasetConfig(**wrong)


def test_augment_config_is_used():
    quiet = AugmentConfig(0.0, 0.0, 0.0, 0.0, 0.0, level=(-30.0, -30.0))
    made = examples(frames=64, augment=quiet)
    peaks = [np.abs(made.example(index).audio).max() for index in range(10)]
    assert max(peaks) <= 10 ** (-30 / 20) + 1e-3
