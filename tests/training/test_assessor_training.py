"""Training assessing networks: losses by their formulas, resuming bit by bit, export and parity."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mt3_analysis import open_assessor_networks
from mt3_analysis.assessment_networks.piece_bootstrap import correlations
from mt3_export.assessors.assessor_writer import export_assessors
from mt3_runtime.errors import CheckpointError, OptionError
from mt3_training.assessing.assessor_config import TINY, LossWeights, for_fusion
from mt3_training.assessing.assessor_examples import collate
from tests import needs
from tests.training.assessment_examples import DIMENSIONS, make_set

torch = needs.torch()
torch.set_num_threads(1)

from mt3_training.assessing import assessor_losses as losses  # noqa: E402
from mt3_training.assessing.assessor_learner import AssessorLearner  # noqa: E402
from mt3_training.assessing.assessor_modules import AssessorModule  # noqa: E402
from mt3_training.assessing.midi_pretraining import MaskedPretraining  # noqa: E402

FUSIONS = ("gated", "concat", "cross", "audio", "midi")


def tensors(batch):
    return {
        "frames": torch.from_numpy(batch.frames),
        "tokens": torch.from_numpy(batch.tokens),
        "spans": torch.from_numpy(batch.spans),
        "frame_mask": torch.from_numpy(batch.frame_mask),
        "note_mask": torch.from_numpy(batch.note_mask),
    }


def test_regression_is_huber_weighted_by_a_learned_variance():
    scores, labels = torch.tensor([[50.0, 60.0]]), torch.tensor([[50.5, 70.0]])
    plain = LossWeights(uncertainty=False, smoothing=False, bootstrap=1.0)
    even = torch.ones(1, 2)
    found = losses.regression(scores, labels, torch.zeros(2), plain, even)
    assert float(found) == pytest.approx((0.125 + 9.5) / 2)
    variance = torch.tensor([math.log(4.0), 0.0])
    weighted = losses.regression(scores, labels, variance, replace(plain, uncertainty=True), even)
    assert float(weighted) == pytest.approx((0.125 / 8 + math.log(2.0) + 9.5 / 2) / 2)
    rare = torch.tensor([[2.0, 0.5]])
    smoothed = losses.regression(
        scores, labels, torch.zeros(2), replace(plain, smoothing=True), rare
    )
    assert float(smoothed) == pytest.approx((0.25 + 4.75) / 2)


def test_bootstrap_does_no_more_than_scale_the_residual():
    scores = torch.tensor([[50.0]], requires_grad=True)
    plain = LossWeights(uncertainty=False, smoothing=False, bootstrap=0.8)
    losses.regression(
        scores, torch.tensor([[50.5]]), torch.zeros(1), plain, torch.ones(1, 1)
    ).backward()
    assert float(scores.grad) == pytest.approx(-0.8 * 0.5, rel=1e-4)


def test_weights_and_uncertainty_reach_the_gradient():
    variance = torch.zeros(1, requires_grad=True)
    scores = torch.tensor([[50.0]], requires_grad=True)
    rare = torch.full((1, 1), 3.0)
    losses.regression(scores, torch.tensor([[60.0]]), variance, LossWeights(), rare).backward()
    assert float(variance.grad) != 0.0
    assert float(scores.grad) == pytest.approx(-1.5)  # 3 (rare) / 2 (Kendall and Gal), clipped


def test_ranking_wants_a_margin():
    scores, labels = torch.tensor([[10.0], [8.0], [0.0]]), torch.tensor([[3.0], [2.0], [1.0]])
    assert float(losses.ranking(scores, labels, 5.0)) == pytest.approx(3.0 / 3)
    assert float(losses.ranking(scores, torch.ones(3, 1), 5.0)) == 0.0


def test_contrastive_is_least_where_both_agree():
    unit = torch.eye(4)
    agreed = losses.contrastive(unit, unit, 0.07)
    assert float(agreed) == pytest.approx(math.log(1 + 3 * math.exp(-1 / 0.07)), abs=1e-6)
    assert float(losses.contrastive(unit, unit[[1, 2, 3, 0]], 0.07)) > 10


def test_ordinal_asks_for_each_threshold():
    labels = torch.tensor([[30.0, 50.0]])  # mean 40: above 25, not above 50 and 75
    right = losses.ordinal(torch.tensor([[9.0, -9.0, -9.0]]), labels)
    wrong = losses.ordinal(torch.tensor([[-9.0, 9.0, 9.0]]), labels)
    assert float(right) == pytest.approx(math.log1p(math.exp(-9)), rel=1e-2)
    assert float(wrong) == pytest.approx(9.0, abs=0.01)


def test_rare_labels_weigh_more():
    labels = np.concatenate([np.full((50, 1), 20.5), np.full((2, 1), 80.5)])
    weights = losses.rarity(labels)
    assert weights[80, 0] > 5 * weights[20, 0]
    assert losses.label_bins(np.array([0.0, 99.9, 100.0])).tolist() == [0, 99, 99]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_row_gets_what_it_gets_alone(fusion):
    """Masks: filling up to the longest recording changes nothing."""
    config, examples = for_fusion(TINY, fusion), make_set()
    network = config.network(DIMENSIONS)
    torch.manual_seed(1)
    module = AssessorModule(network, config.shape).eval().double()

    def run(items):
        given = tensors(collate(items, network, examples.frame_seconds))
        given["frames"] = given["frames"].double()
        return module(**given)

    with torch.no_grad():
        whole = run(examples.items[:4])
        for row in range(4):
            alone = run(examples.items[row : row + 1])
            assert torch.allclose(whole.scores[row], alone.scores[0], atol=1e-9)
            for side, x in alone.embeddings.items():
                assert torch.allclose(whole.embeddings[side][row], x[0], atol=1e-9)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_that_was_stopped_gives_the_same_weights(tmp_path, fusion):
    examples, config = make_set(), for_fusion(TINY, fusion)
    whole = AssessorLearner(tmp_path / "whole", config, examples)
    assert whole.train()
    calls = iter(range(100))
    cut = AssessorLearner(tmp_path / "cut", config, examples)
    assert not cut.train(lambda: next(calls) >= 4)
    assert cut.step == 4
    again = AssessorLearner(tmp_path / "cut", config, examples)
    assert again.step == 4
    assert again.train()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "cut")]
    assert logs[0].splitlines()[0] == logs[1].splitlines()[0]
    assert len(logs[0].splitlines()) == len(logs[1].splitlines()) == 3
    head, *rows = (line.split(",") for line in logs[0].splitlines())
    logged = {name for name, value in zip(head, rows[-1], strict=True) if value}
    assert ("gate_mean" in logged) == (fusion == "gated")
    assert ("midi_to_audio_entropy" in logged) == (fusion == "cross")
    assert ("alignment" in logged) == (fusion in ("gated", "concat", "cross"))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_was_trained_is_exported_and_says_the_same(tmp_path, fusion):
    examples, config = make_set(), for_fusion(TINY, fusion)
    run = AssessorLearner(tmp_path / "run", config, examples)
    run.train()
    folder = tmp_path / "run" / "network"
    export_assessors(folder, tmp_path / "b", name="x", storage="fp32")
    networks = open_assessor_networks(tmp_path / "b", threads=1)
    module = AssessorModule(run.network, config.shape).eval()
    module.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    (spec,) = networks.manifest.networks
    batch = collate(examples.items[:1], run.network, examples.frame_seconds)
    with torch.no_grad():
        expected = module.double()(
            frames=torch.from_numpy(batch.frames).double(),
            tokens=torch.from_numpy(batch.tokens),
            spans=torch.from_numpy(batch.spans),
        )
    fed = {}
    if spec.reads:
        fed = networks._run(fusion, "midi_encoder", {"tokens": batch.tokens})
    if spec.hears:
        fed["frames"] = batch.frames
    if spec.alignment == "note":
        fed["spans"] = batch.spans
    inside = networks._run(fusion, "fusion", fed)
    said = networks._run(fusion, "head", {"pooled": inside["pooled"]})
    assert np.abs(said["scores"] - expected.scores.numpy()).max() <= 2e-3  # of 100
    assert np.abs(inside["pooled"] - expected.pooled.numpy()).max() <= 2e-5


def test_a_network_learns_what_lies_in_its_examples(tmp_path):
    config = replace(
        for_fusion(TINY, "gated"), steps=160, evaluate_every=40, patience=9, batch=10, accumulate=1,
        head_rate=3e-3, backbone_rate=3e-3, warmup=10, mixup=0.0, modality_dropout=0.0,
        losses=LossWeights(ranking=0.05, ordinal=0.05, bootstrap=1.0, smoothing=False),
    )  # fmt: skip
    run = AssessorLearner(tmp_path / "run", config, make_set(pieces=10))
    run.train()
    judged = make_set(pieces=10).part(judged=True)
    assert correlations(run.predictions(judged), judged.labels)[1] > 0.8  # of unseen pieces
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert rows[0].startswith("step,loss,regression")
    assert (
        json.loads((tmp_path / "run" / "network" / "config.json").read_text())["fusion"] == "gated"
    )


def test_pretraining_guesses_better_and_is_taken_over(tmp_path):
    examples, config = make_set(), replace(TINY, batch=8)
    notes = [item.notes for item in examples.items]
    run = MaskedPretraining(tmp_path / "run", config, notes)
    run.train(80)
    assert np.mean(run.losses[-10:]) < np.mean(run.losses[:10]) - 0.3
    learner = AssessorLearner(tmp_path / "run", config, examples)
    own = learner.module.midi_encoder.state_dict()
    for name, tensor in run.encoder.state_dict().items():
        assert torch.equal(tensor, own[name]), name


def test_pretraining_goes_on_where_it_was(tmp_path):
    notes = [item.notes for item in make_set().items]
    whole = MaskedPretraining(tmp_path / "a", TINY, notes)
    whole.train(6)
    MaskedPretraining(tmp_path / "b", TINY, notes).train(3)
    again = MaskedPretraining(tmp_path / "b", TINY, notes)
    assert again.step == 3
    again.train(6)
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(tensor, again.encoder.state_dict()[name]), name
    with pytest.raises(OptionError, match="recordings with notes"):
        MaskedPretraining(tmp_path / "c", TINY, [])


def test_a_folder_of_another_run_is_refused(tmp_path):
    examples = make_set()
    AssessorLearner(tmp_path / "run", TINY, examples)
    with pytest.raises(OptionError, match="another configuration: seed is 0, not 5"):
        AssessorLearner(tmp_path / "run", replace(TINY, seed=5), examples)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(OptionError, match="holds something else"):
        AssessorLearner(tmp_path / "other", TINY, examples)


@pytest.mark.parametrize("name", ["state.pt", "pretrained.pt"])
def test_a_damaged_state_is_one_error(tmp_path, name):
    examples = make_set()
    AssessorLearner(tmp_path / "run", TINY, examples)
    (tmp_path / "run" / name).write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match=name):
        AssessorLearner(tmp_path / "run", TINY, examples)


def test_examples_that_do_not_fit_are_refused(tmp_path):
    examples = make_set()
    with pytest.raises(OptionError, match="0 judged"):
        AssessorLearner(tmp_path / "a", TINY, examples.part(judged=False))
    wide = replace(TINY, shape=replace(TINY.shape, audio_width=9))
    with pytest.raises(OptionError, match="frames have 8 numbers, the network reads 9"):
        AssessorLearner(tmp_path / "b", wide, examples)


def test_a_run_that_diverges_says_so(tmp_path):
    run = AssessorLearner(tmp_path / "run", TINY, make_set())
    with torch.no_grad():
        run.module.mtl_head.log_vars.fill_(float("nan"))
    with pytest.raises(OptionError, match="diverged"):
        run.train()


def test_the_verb_pretrains_and_trains(tmp_path, capsys):
    import argparse

    from mt3_training.assessing.assessor_command import AssessorVerb
    from mt3_training.assessing.assessor_examples import write_examples

    made = make_set()
    write_examples(tmp_path / "e", made.dimensions, made.items, frame_seconds=made.frame_seconds)
    verb, parser = AssessorVerb(), argparse.ArgumentParser()
    verb.add_arguments(parser)
    for action in ("pretrain", "train"):
        words = [action, str(tmp_path / "e"), "-o", str(tmp_path / "run"), "--config", "tiny", "--fusion", "cross", "--steps", "4"]  # fmt: skip  # noqa: E501
        assert verb.run(parser.parse_args(words)) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "run"), str(tmp_path / "run/network")]
