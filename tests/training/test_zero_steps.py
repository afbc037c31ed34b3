"""Training that goes on from a bundle: for no step at all it gives the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_runtime.errors import CheckpointError
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from mt3_training.runs.checkpointing import RunFolder
from mt3_training.runs.config import PRESETS
from mt3_training.runs.starting_weights import read_start
from mt3_training.shipping.small_model import digest
from mt3_training.shipping.trained import export_run
from tests import needs
from tests.seeded import seeded_weights
from tests.training.synthetic import SHAPE, BlipSources, tiny

torch = needs.torch()

from dataclasses import replace  # noqa: E402

from mt3_training.networks.learner import Learner  # noqa: E402
from mt3_training.runs.learning_rate import Schedule  # noqa: E402
from mt3_training.runs.train import Machine, Run  # noqa: E402

CPU = Machine("cpu", threads=1, workers=0)


def test_no_step_from_the_default_model_gives_its_tokens(tmp_path):
    if "default" not in shipped_models():
        needs.missing("default-model", "it is not in this package")
    start = read_start("default")
    blips = tiny().stages[0]
    stage = replace(PRESETS["stem"].stages[0], frames=blips.frames, batch=4)
    config = replace(
        PRESETS["stem"],
        stages=(stage,),
        steps=0,
        start=digest(start.weights),
        held_out=2,
        stem="bass",
    )
    folder = RunFolder.prepare(tmp_path / "run", config, start.weights.tensors)
    with Run(folder, BlipSources(config), CPU, lambda _: None) as run:
        assert run.train(lambda: False)
    assert run.position.step == 0
    assert digest(read_start(tmp_path / "run").weights) == digest(start.weights)
    export_run(folder, tmp_path / "same.mt3")
    song = needs.ROOT / "calibration" / "demo" / "demo.flac"
    found = []
    for path in (shipped_models()["default"], tmp_path / "same.mt3"):
        with load_model(path, device="cpu", threads=1) as model:
            found.append(model.transcribe_notes(str(song)))
    assert found[0].token_digest == found[1].token_digest
    one, other = ([(n.onset, n.offset, n.pitch, n.program) for n in f.notes] for f in found)
    assert one == other
    assert len(one) > 40


def test_a_learner_begins_with_what_it_was_given():
    weights = seeded_weights(SHAPE, seed=5)
    learner = Learner(Schedule(tiny()), torch.device("cpu"), start=weights)
    assert digest(learner.averaged()) == digest(weights)
    larger = seeded_weights(replace(SHAPE, d_ff=64), seed=5)
    with pytest.raises(CheckpointError, match="d_ff=64"):
        Learner(Schedule(tiny()), torch.device("cpu"), start=larger)


def test_weights_that_were_exchanged_are_noticed(tmp_path):
    weights, other = (seeded_weights(SHAPE, seed=seed) for seed in (5, 6))
    config = tiny(start=digest(weights))
    folder = RunFolder.prepare(tmp_path / "run", config, other.tensors)
    with pytest.raises(CheckpointError, match="other weights than the run began with"):
        Run(folder, BlipSources(config), CPU, lambda _: None)


def test_an_interrupted_run_from_other_weights_gives_the_same_bits(tmp_path):
    weights = seeded_weights(SHAPE, seed=5)
    config = tiny(start=digest(weights), dropout=0.2)
    for name, stops in (("whole", ()), ("cut", (0, 4, 7))):
        folder = RunFolder.prepare(tmp_path / name, config, weights.tensors)
        for stop in stops:
            with Run(folder, BlipSources(config), CPU, lambda _: None) as run:
                run.train(lambda run=run, stop=stop: run.position.step >= stop)
        (folder.path / "start.npz").rename(folder.path / "gone") if stops else None
        with Run(folder, BlipSources(config), CPU, lambda _: None) as run:
            assert run.train(lambda: False)
    one, two = (RunFolder.existing(tmp_path / name).load() for name in ("whole", "cut"))
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
    assert one.optimiser == two.optimiser
