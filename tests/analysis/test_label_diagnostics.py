"""Diagnostics of labels and predictions: exact values, and experiments sound or not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mt3_analysis.assessment_networks.artefact_probe import (
    NUISANCES,
    artefact_probe,
    nuisances,
    ridge_predictions,
)
from mt3_analysis.assessment_networks.label_diagnostics import (
    ceiling_of,
    collapse,
    constant_confidence,
    effective_dimensions,
    label_ceiling,
    label_rank,
    mean_absolute_r,
    piece_or_playing,
    rerendering,
)
from mt3_analysis.assessment_networks.network_report import build_report, pairs_right
from mt3_analysis.assessment_networks.piece_bootstrap import (
    bootstrap,
    correlations,
    mean_correlation,
    within,
)
from mt3_runtime.errors import OptionError

TIERS = (0.975, 0.875, 0.725, 0.575)
SHARES = (0.30, 0.30, 0.25, 0.15)
SIGNAL_TO_NOISE = (None, 35.0, 25.0, 20.0)
RATE = 24000


def a_recording(chance, snr=None, *, floor=-60.0, low_pass=False, seconds=1.0):
    """Decaying tones over a noise floor of their own [dB], degraded as audio alone."""
    time = np.arange(int(RATE * seconds)) / RATE
    samples = np.zeros_like(time)
    for onset in chance.uniform(0, seconds, 6):
        pitch = 110 * 2 ** (chance.integers(0, 36) / 12)
        tone = sum(np.sin(2 * np.pi * k * pitch * time) / k**2 for k in range(1, 5))
        samples += np.where(time >= onset, 0.1 * tone * np.exp(-6 * (time - onset)), 0.0)
    samples += chance.standard_normal(len(time)) * 10 ** (floor / 20)
    if snr is not None:
        power = (samples**2).mean() / 10 ** (snr / 10)
        samples += chance.standard_normal(len(time)) * np.sqrt(power)
    if low_pass:
        spectrum = np.fft.rfft(samples)
        spectrum[np.fft.rfftfreq(len(samples), 1 / RATE) > 6000] = 0
        samples = np.fft.irfft(spectrum, len(samples))
    return samples


@pytest.fixture(scope="module")
def study():
    """200 recordings, their tiers, labels made of these, and numbers about the audio."""
    chance = np.random.default_rng(3)
    tiers = chance.choice(4, 200, p=SHARES)
    labels = chance.uniform(85, 100, (200, 8)) * np.array(TIERS)[tiers, None]
    about = np.array(
        [
            nuisances(
                a_recording(
                    chance, SIGNAL_TO_NOISE[t], floor=chance.uniform(-65, -45), low_pass=t == 3
                ),
                RATE,
                notes=6,
            )
            for t in tiers
        ]
    )
    pieces = np.arange(200) % 40
    predictions = np.array(TIERS)[tiers, None] * 92.5 + chance.normal(0, 0.8, (200, 8))
    return tiers, labels, about, pieces, predictions


def test_the_study_is_caught_by_ceiling_rank_and_probe(study):
    tiers, labels, about, pieces, predictions = study
    report = build_report(
        {"audio": predictions},
        labels,
        [f"d{i}" for i in range(8)],
        pieces,
        conditions=tiers,
        about_recordings=about,
        resamples=50,
    )
    assert {"label ceiling", "label rank", "artefact probe"} <= set(report.flagged)
    assert mean_correlation(predictions, labels) > 0.94


def test_the_ceiling_of_the_study_is_arithmetic():
    """r of the tier alone: from the variances of a uniform number and of the tiers' factors."""
    factors, shares = np.array(TIERS), np.array(SHARES)
    mean, spread = 92.5, 15 / np.sqrt(12)
    between = mean**2 * (shares @ factors**2 - (shares @ factors) ** 2)
    inside = spread**2 * (shares @ factors**2)
    expected = math.sqrt(between / (between + inside))
    assert expected == pytest.approx(0.963, abs=0.0005)
    chance = np.random.default_rng(1)
    tiers = chance.choice(4, 20000, p=shares)
    labels = chance.uniform(85, 100, (20000, 8)) * factors[tiers, None]
    assert ceiling_of(labels, tiers).mean() == pytest.approx(expected, abs=0.001)
    assert mean_absolute_r(labels) == pytest.approx(expected**2, abs=0.003)  # shared tier only


def independent_kinds(chance):
    """Every kind of degradation has a level of its own in every recording."""
    labels = 100 - 60 * chance.random((200, 4))
    return labels, chance.integers(0, 3, 200)


def one_kind_at_a_time(chance):
    """One kind is degraded in each recording; labels of the others stay whole."""
    kinds = chance.integers(0, 4, 200)
    labels = np.full((200, 4), 100.0) - chance.uniform(0, 4, (200, 4))
    labels[np.arange(200), kinds] -= chance.uniform(5, 60, 200)
    return labels, kinds


def experts(chance):
    """Raters who agree in part, on pieces that differ."""
    pieces = np.arange(200) % 20
    shared = chance.normal(0, 1, (200, 1))
    piece = chance.normal(0, 1, (20, 5))[pieces]
    labels = 50 + 8 * (0.8 * shared + piece + chance.normal(0, 1, (200, 5)))
    return np.clip(labels, 0, 100), pieces


@pytest.mark.parametrize("design", [independent_kinds, one_kind_at_a_time, experts])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sound_designs_raise_no_flag(design, seed):
    chance = np.random.default_rng(seed)
    labels, conditions = design(chance)
    predictions = labels + chance.normal(0, 0.4 * labels.std(axis=0), labels.shape)
    about = np.array([[chance.uniform(*b) for b in ((-65, -45), (4e3, 9e3), (-30, -20), (5, 9), (2, 8), (44e3, 48e3))] for _ in labels])  # fmt: skip  # noqa: E501
    report = build_report(
        {"gated": predictions, "audio": labels + chance.normal(0, 12, labels.shape)},
        labels,
        [f"d{i}" for i in range(labels.shape[1])],
        np.arange(200) % 20,
        single=("audio",),
        conditions=conditions,
        about_recordings=about,
        resamples=100,
    )
    assert report.flagged == ()


def test_a_ceiling_is_that_of_group_means():
    labels = np.array([[10.0, 1], [12, 2], [20, 1], [22, 2], [30, 1], [32, 2]])
    conditions = [0, 0, 1, 1, 2, 2]
    # between: 2 * (100 + 0 + 100) = 400; within: 6 * 1; rest 6/406, 5/3 for three groups of six
    assert ceiling_of(labels, conditions)[0] == pytest.approx(math.sqrt(1 - 6 / 406 * 5 / 3))
    assert ceiling_of(labels, conditions)[1] == 0.0
    with pytest.raises(OptionError, match="a condition of its own"):
        ceiling_of(labels, range(6))


def test_a_model_that_knows_more_than_the_condition_is_not_flagged():
    chance = np.random.default_rng(0)
    conditions = chance.integers(0, 3, 300)
    labels = conditions[:, None] * 10 + chance.normal(0, 5, (300, 2))
    knows = label_ceiling(labels + chance.normal(0, 2, (300, 2)), labels, conditions)
    guesses = label_ceiling(conditions[:, None] * 10.0 + np.zeros((1, 2)), labels, conditions)
    assert not knows.flagged
    assert knows.figures["r_within"] > 0.8
    assert guesses.flagged
    assert guesses.figures["r_within"] == 0.0


def test_rank_of_copies_and_of_strangers():
    column = np.arange(10.0)
    copies = np.stack([column, 2 * column, 5 - column], axis=1)
    assert mean_absolute_r(copies) == pytest.approx(1.0)
    assert effective_dimensions(copies) == pytest.approx(1.0)
    assert label_rank(copies).flagged
    strangers = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert effective_dimensions(strangers) == pytest.approx(2.0)
    assert not label_rank(strangers).flagged
    assert mean_absolute_r(column) == 0.0


def test_collapse_is_more_likeness_than_in_the_labels():
    labels = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    merged = np.repeat(labels[:, :1], 2, axis=1)
    assert collapse(merged, labels).figures["difference"] == pytest.approx(1.0)
    assert collapse(merged, labels).flagged
    assert not collapse(labels, labels).flagged


def test_a_model_that_knows_the_piece_is_not_one_that_hears_playing():
    pieces = np.repeat([0, 1, 2], 4)
    playing = np.tile([-1.0, 1, -2, 2], 3)
    labels = 10.0 * pieces + playing
    knows = piece_or_playing(10.0 * pieces, labels, pieces)
    assert knows.flagged
    assert knows.figures["share_between_pieces"] == pytest.approx(1.0)
    assert not piece_or_playing(labels, labels, pieces).flagged
    assert piece_or_playing(playing, labels, pieces).figures["r_within_pieces"] == pytest.approx(1)


def test_scores_that_move_with_the_piano_are_flagged():
    scores = np.array([[0.0], [10.0]])  # deviation 5
    assert rerendering(scores, scores + 0.9).figures["moved"] == pytest.approx(0.18)
    assert not rerendering(scores, scores + 0.9).flagged
    assert rerendering(scores, scores + 1.1).flagged


def test_an_uncertainty_that_is_a_constant_is_none():
    assert constant_confidence(np.zeros((5, 8))).flagged
    assert constant_confidence(np.full((5, 8), -3.7)).flagged
    assert not constant_confidence(np.arange(10.0).reshape(5, 2)).flagged


def test_correlations_of_what_does_not_vary_are_zero():
    labels = np.array([[1.0, 3], [2, 3], [3, 3]])
    assert correlations(labels * 2, labels).tolist() == [1.0, 0.0]
    assert correlations(-labels, labels)[0] == -1.0
    assert within([1.0, 3, 10, 10], [0, 0, 1, 1])[:, 0].tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_the_bootstrap_draws_pieces():
    values = np.array([0.0, 0, 0, 1, 1, 1])
    found = bootstrap(lambda rows: float(values[rows].mean()), [0, 0, 0, 1, 1, 1], 6)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    with pytest.raises(OptionError, match="two pieces"):
        bootstrap(lambda _: 0.0, [0, 0], 2)


def test_a_probe_never_sees_the_piece_it_predicts():
    chance = np.random.default_rng(2)
    features = chance.normal(0, 1, (60, 2))
    pieces = np.arange(60) % 6
    exact = ridge_predictions(features, features @ [[2.0], [-1.0]] + 3, pieces)
    assert correlations(exact, features @ [[2.0], [-1.0]])[0] > 0.999
    names = np.eye(6)[pieces]  # tells the piece, and nothing of an unseen one
    labels = chance.normal(0, 1, 6)[pieces]
    assert abs(correlations(ridge_predictions(names, labels, pieces), labels)[0]) < 1.0
    found = artefact_probe(features, labels, labels, pieces)
    assert not found.flagged


def test_nuisances_are_in_their_units():
    chance = np.random.default_rng(0)
    time = np.arange(RATE * 2) / RATE
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    found = dict(zip(NUISANCES, nuisances(tone, RATE, notes=5, file_rate=44100), strict=True))
    assert found["level"] == pytest.approx(10 * np.log10(0.125), abs=0.01)
    assert (found["length"], found["note_rate"], found["file_rate"]) == (2.0, 2.5, 44100)
    assert found["bandwidth"] < 600
    noisy = nuisances(tone + 0.05 * chance.standard_normal(len(tone)), RATE)
    assert noisy[0] > found["noise_floor"] + 20
    loud = nuisances(2 * (tone + 0.05 * chance.standard_normal(len(tone))), RATE)
    assert loud[0] == pytest.approx(noisy[0], abs=0.5)  # relative to the signal


@pytest.mark.parametrize("samples", [np.zeros(3), np.full(2000, np.nan), np.zeros((2, 2000))])
def test_what_is_no_recording_is_refused(samples):
    with pytest.raises(OptionError, match="samples must be"):
        nuisances(samples, RATE)


def test_pairs_count_within_a_piece():
    labels, pieces = [1.0, 2, 3, 9, 9], [0, 0, 0, 1, 1]
    assert pairs_right([1.0, 2, 3, 0, 0], labels, pieces) == 1.0
    assert pairs_right([3.0, 2, 1, 0, 0], labels, pieces) == 0.0
    assert pairs_right([1.0, 1, 3, 0, 0], labels, pieces) == pytest.approx(2.5 / 3)
    assert math.isnan(pairs_right([1.0, 2], [1.0, 2], [0, 1]))


@pytest.mark.parametrize(
    ("labels", "predictions", "said"),
    [
        ([[1.0]], [[1.0]], "two or more rows"),
        ([1.0, 2], [1.0, 2, 3], "3 rows; expected 2"),
        ([1.0, 2], [[1.0, 2], [1, 2]], "2 dimensions, labels 1"),
        ([1.0, np.nan], [1.0, 2], "finite numbers"),
        (["a", "b"], [1.0, 2], "finite numbers"),
    ],
)
def test_tables_that_do_not_fit_are_refused(labels, predictions, said):
    with pytest.raises(OptionError, match=said):
        collapse(predictions, labels)


def test_a_report_prints_the_tables_of_the_study(study):
    _, labels, _, pieces, predictions = study
    chance = np.random.default_rng(4)
    models = {
        "audio": predictions,
        "midi": labels + chance.normal(0, 20, labels.shape),
        "gated": predictions + chance.normal(0, 0.1, labels.shape),
    }
    names = [f"d{i}" for i in range(8)]
    report = build_report(models, labels, names, pieces, single=("audio", "midi"), resamples=50)
    text = report.text()
    assert "fails the study's rule of 10%" in text
    assert [row.model for row in report.models] == ["audio", "midi", "gated"]
    assert report.tests[0].against == "audio"
    assert report.by_dimension["gated"]["d3"] == pytest.approx(
        correlations(models["gated"], labels)[3]
    )
    document = report.to_dict()
    assert document["version"] == 1
    assert document["findings"][""][0]["check"] == "label rank"
    assert (report.recordings, report.pieces) == (200, 40)


def test_a_paired_test_is_students():
    labels = np.array([10.0, 20, 30, 40])
    models = {"a": labels + 3, "b": labels + np.array([1.0, 2, 1, 2])}
    report = build_report(models, labels, ["x"], range(4), single=("a",), resamples=10)
    ((test,),) = (each.by_dimension for each in report.tests)
    assert test.t == pytest.approx(1.5 / (np.std([2, 1, 2, 1], ddof=1) / 2))
    assert test.p == pytest.approx(math.erfc(test.t / math.sqrt(2)))
    assert test.winner == "b"
    again = build_report({"a": models["b"], "b": labels + 3}, labels, ["x"], range(4), single=("a",), resamples=10)  # fmt: skip  # noqa: E501
    assert again.tests[0].by_dimension[0].winner == "a"
    tie = build_report({"a": labels + 1, "b": labels - 1}, labels, ["x"], range(4), single=("a",), resamples=10)  # fmt: skip  # noqa: E501
    assert (tie.tests[0].by_dimension[0].t, tie.tests[0].by_dimension[0].winner) == (0.0, "")
    assert "tie" in tie.text()


def test_a_report_needs_models_and_names():
    with pytest.raises(OptionError, match="predictions by model"):
        build_report({}, [1.0, 2], ["x"], [0, 1])
    with pytest.raises(OptionError, match="1 columns of labels have 2 names"):
        build_report({"a": [1.0, 2]}, [1.0, 2], ["x", "y"], [0, 1])
