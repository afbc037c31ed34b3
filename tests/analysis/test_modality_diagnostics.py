"""Diagnostics of fusion: exact values, refusals, and what shuffling shows."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_analysis.assessment_networks.modality_diagnostics import (
    attention_in_time,
    attention_summary,
    fusion_gain,
    gate_summary,
    modality_alignment,
    modality_worth,
    shuffled,
)
from mt3_runtime.errors import OptionError


def test_gates_are_counted():
    found = gate_summary([[0.0, 1.0], [0.05, 0.95], [0.5, 0.5]])
    assert found.figures["mean"] == pytest.approx(0.5)
    assert found.figures["sd_over_notes"] == pytest.approx(0.0)
    assert found.figures["share_shut"] == found.figures["share_open"] == pytest.approx(1 / 3)
    assert not found.flagged


@pytest.mark.parametrize(("around", "flagged"), [(0.5, True), (0.52, True), (0.7, False)])
def test_gates_that_stay_neutral_are_flagged(around, flagged):
    gates = around + 0.01 * np.random.default_rng(0).standard_normal((20, 8))
    assert gate_summary(gates).flagged == flagged


@pytest.mark.parametrize("gates", [[0.5], [[1.5, 0.0]], [[np.nan, 0.1]], np.zeros((0, 3))])
def test_what_is_no_gate_is_refused(gates):
    with pytest.raises(OptionError, match="gates"):
        gate_summary(gates)


def test_alignment_is_a_difference_of_cosines():
    audio = np.eye(3)
    found = modality_alignment(audio, 2 * audio)
    assert found.figures["matched"] == pytest.approx(1.0)
    assert found.figures["mismatched"] == pytest.approx(0.0)
    assert found.figures["found_first"] == 1.0
    assert not found.flagged
    assert modality_alignment(audio, audio[[1, 2, 0]]).flagged


def test_attention_has_an_entropy_and_a_mass():
    even = np.full((3, 4), 0.25)
    found = attention_summary(even, ["audio", "audio", "audio", "midi"])
    assert found.figures["entropy"] == pytest.approx(1.0)
    assert found.figures["mass_audio"] == pytest.approx(0.75)
    assert found.figures["mass_midi"] == pytest.approx(0.25)
    assert found.flagged
    sharp = attention_summary(np.eye(4), ["audio", "midi", "midi", "midi"])
    assert sharp.figures["entropy"] == 0.0
    assert not sharp.flagged


def test_attention_on_time_is_within_the_window():
    weights = [[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]
    assert attention_in_time(weights, [0.0, 2.0], [0.0, 0.25, 2.3]) == pytest.approx(1.6 / 2)
    assert attention_in_time(weights, [0.0, 2.0], [0.0, 0.25, 2.3], window=0.1) == 0.25


@pytest.mark.parametrize("weights", [[0.5, 0.5], [[0.9, 0.9]], [[-0.5, 1.5]], np.zeros((0, 2))])
def test_what_is_no_attention_is_refused(weights):
    with pytest.raises(OptionError, match="attention"):
        attention_summary(weights, ["a", "b"])
    with pytest.raises(OptionError):
        attention_in_time([[1.0]], [0.0, 1.0], [0.0])
    with pytest.raises(OptionError, match="1 keys have 2 modalities"):
        attention_summary([[1.0]], ["a", "b"])


@pytest.mark.parametrize("groups", [[0, 0, 1, 1], [2, 1, 0, 2, 1, 0, 1], list("abcabcaa")])
def test_shuffling_takes_every_recording_from_another_piece(groups):
    order = shuffled(groups, seed=3)
    assert sorted(order) == list(range(len(groups)))
    assert all(groups[i] != groups[j] for i, j in enumerate(order))


def test_a_piece_with_most_recordings_has_nobody_to_swap_with():
    with pytest.raises(OptionError, match="more than half"):
        shuffled([0, 0, 0, 1])


def test_a_modality_is_worth_what_is_lost_without_it():
    chance = np.random.default_rng(0)
    pieces = np.arange(120) % 12
    audio, midi = chance.normal(0, 1, (2, 120, 3))
    labels = 50 + 5 * midi + 5 * chance.normal(0, 0.3, (120, 3))
    order = shuffled(pieces)

    def model(heard, read):
        return 0.001 * heard + read

    found = modality_worth(
        model(audio, midi),
        {"audio": model(audio[order], midi), "midi": model(audio, midi[order])},
        labels,
        pieces,
        resamples=200,
    )
    assert found["audio"].flagged
    assert not found["midi"].flagged
    assert found["midi"].figures["loss"] > 0.8


def test_a_gain_is_judged_by_its_interval_and_by_the_rule_of_the_study():
    chance = np.random.default_rng(1)
    pieces = np.arange(200) % 20
    labels = chance.normal(50, 10, (200, 4))
    weak = labels + chance.normal(0, 15, labels.shape)
    weaker = labels + chance.normal(0, 30, labels.shape)
    single = {"audio": weak, "midi": weaker}
    better = fusion_gain(0.7 * weak + 0.3 * (labels + chance.normal(0, 15, labels.shape)), single, labels, pieces, resamples=200)  # fmt: skip  # noqa: E501
    assert not better.flagged
    assert better.figures["passes_study_rule"] == 1.0
    assert "over audio alone" in better.said
    same = fusion_gain(weak, single, labels, pieces, resamples=200)
    assert same.flagged
    assert same.figures["gain"] == 0.0
    assert "fails the study's rule" in same.said
    with pytest.raises(OptionError, match="needs a modality"):
        fusion_gain(weak, {}, labels, pieces)
