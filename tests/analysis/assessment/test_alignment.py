import numpy as np
import pytest

from mt3_analysis.assessment.alignment import align, align_best
from mt3_analysis.assessment.performance import Performance
from mt3_analysis.assessment.score import make_score
from mt3_runtime.errors import OptionError
from tests.analysis.assessment.pieces import piece, played


def pairs(score, take):
    """Which written note is which played one; `played` keeps their order but for near onsets."""
    return {(i, int(np.flatnonzero((take.pitch == p) & (abs(take.onset_s - t) < 0.1))[0]))
            for i, (p, t) in enumerate(zip(score.pitch, due(score), strict=True))}  # fmt: skip


def due(score, quarter_s=0.5):
    return (score.onset_q + 0.08 * np.sin(score.onset_q / 6.0)) * quarter_s + 0.5


def test_every_note_of_a_clean_take_is_matched():
    score = piece()
    take = played(score)
    found = align(take, score)
    assert {tuple(pair) for pair in found.matched.tolist()} == pairs(score, take)
    assert len(found.missing) == len(found.extra) == len(found.wrong) == 0
    assert found.share == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_wrong_and_missing_notes_are_told(seed):
    score = piece(seed, chords=300)
    take = played(score, seed)
    rng = np.random.default_rng(seed)
    pitch = take.pitch.copy()
    wrong = rng.random(len(take)) < 0.05
    pitch[wrong] += rng.choice([-2, -1, 1, 2], int(wrong.sum()))
    kept = rng.random(len(take)) >= 0.05
    columns = [c[kept] for c in (take.onset_s, take.offset_s, pitch)]
    damaged = Performance.from_arrays(columns[0], columns[1], pitch=columns[2])
    found = align(damaged, score)
    sure = int((kept & ~wrong).sum())
    assert len(found.matched) == pytest.approx(sure, abs=0.02 * len(take))
    assert len(found.wrong) == pytest.approx(int((kept & wrong).sum()), rel=0.35)
    right = np.abs(damaged.onset_s[found.matched[:, 1]] - due(score)[found.matched[:, 0]]) < 0.1
    assert right.mean() > 0.97


def test_a_stop_and_a_much_slower_second_half_do_not_lose_it():
    score = piece(3)
    take = played(score, 3)
    late = take.onset_s > 20.0
    onset = np.where(late, 20.0 + (take.onset_s - 20.0) * 1.8 + 3.0, take.onset_s)
    slow = Performance.from_arrays(onset, onset + 0.3, pitch=take.pitch)
    found = align(slow, score)
    assert len(found.matched) >= 0.99 * len(score)


def test_a_rolled_chord_is_one_chord():
    score = make_score(np.repeat(np.arange(40.0), 4), np.ones(160), np.tile([48, 52, 55, 60], 40))
    rolled = np.repeat(np.arange(40.0), 4) + np.tile([0, 0.06, 0.12, 0.18], 40) * (
        np.arange(160) > 80
    )
    found = align(Performance.from_arrays(rolled, rolled + 0.5, pitch=score.pitch), score)
    assert len(found.matched) == 160


def test_the_score_of_another_piece_is_refused():
    with pytest.raises(OptionError, match="another piece"):
        align_best(played(piece(1)), [piece(9)])


def test_repeats_are_played_or_not():
    short = piece(5, chords=60)
    twice = make_score(
        np.concatenate((short.onset_q, short.onset_q + 30.0)),
        np.tile(short.length_q, 2),
        np.tile(short.pitch, 2),
        repeats=True,
    )
    once = make_score(short.onset_q, short.length_q, short.pitch, repeats=False)
    for score, word in ((twice, "are played"), (once, "are not played")):
        found = align_best(played(score), [once, twice])
        assert found.score.repeats is score.repeats
        assert len(found.matched) == len(score)
        assert any(word in remark for remark in found.remarks)


def test_a_part_of_a_piece_is_judged_by_that_part():
    score = piece(6, chords=200)
    take = played(score)
    part = (take.onset_s > 15.0) & (take.onset_s < 40.0)
    columns = [column[part] for column in (take.onset_s, take.offset_s, take.pitch)]
    found = align_best(Performance.from_arrays(*columns[:2], pitch=columns[2]), [score])
    assert found.unplayed > 0
    assert len(found.missing) + len(found.extra) + len(found.wrong) <= 4
    assert "not counted" in found.remarks[0]


def test_notes_of_a_trill_are_no_mistakes():
    score = make_score(
        np.arange(40.0), np.ones(40), 60 + np.arange(40) % 5, ornament=np.arange(40) == 20
    )
    on = np.concatenate((np.arange(40.0), 20.0 + np.arange(1, 8) * 0.1))
    pitch = np.concatenate((score.pitch, np.tile([62, 60], 4)[:7]))
    found = align(Performance.from_arrays(on, on + 0.09, pitch=pitch), score)
    assert len(found.extra) == 0
    assert "ornaments" in found.remarks[0]


def test_nothing_aligns_with_nothing():
    score, none = piece(), Performance.from_arrays([], [], pitch=[])
    assert len(align(none, score).missing) == len(score)
    assert len(align(played(score), make_score([], [], [])).extra) == len(score)


def test_ten_thousand_notes_keep_to_a_band():
    rng = np.random.default_rng(1)
    on = np.cumsum(rng.choice([0.0, 0.25, 0.5], 10_000, p=[0.5, 0.3, 0.2]))
    score = make_score(on, np.full(10_000, 0.25), rng.integers(40, 90, 10_000))
    take = played(score, pedals=False)
    assert len(align(take, score).matched) >= 9_950
