"""Training runs, from the first step to the bundle."""

from __future__ import annotations

import csv
import json
import signal
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from mt3_runtime import cli
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.commands import calibrate_command
from mt3_runtime.errors import CheckpointError, DeviceError, MissingDependencyError, OptionError
from mt3_runtime.loading import load_model
from mt3_training.examples.tables import LOG_COLUMNS, SCORE_COLUMNS
from mt3_training.runs.checkpointing import Position, RunFolder
from mt3_training.runs.config import Stage
from mt3_training.runs.learning_rate import Schedule
from tests import needs
from tests.synthesis.sounds import tiny_bank
from tests.training.synthetic import Blips, BlipSources, tiny

torch = needs.torch()

from mt3_training import train_command  # noqa: E402
from mt3_training.networks import optimisers  # noqa: E402
from mt3_training.networks.learner import Learner  # noqa: E402
from mt3_training.runs import train  # noqa: E402
from mt3_training.runs.train import Machine, Run  # noqa: E402

CPU = Machine("cpu", threads=1, workers=0)


#: Columns that depend on the clock or the machine.
CLOCK = ("time", "seconds", "cpu_seconds", "examples_per_second", "memory_mib")


def never() -> bool:
    return False


class After:
    """Asks to stop when it was asked so often."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def begin(path, config, machine=CPU, sources=None) -> Run:
    folder = RunFolder.prepare(path, config)
    return Run(folder, sources or BlipSources(config), machine, lambda _: None)


def rows(path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def timeless(path) -> list[dict[str, str]]:
    """A table without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows(path)]


@pytest.fixture(autouse=True)
def often_logged(monkeypatch):
    monkeypatch.setattr(train, "LOG_STEPS", 3)


# --- the learner ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"optimiser": "muon"}, {"precision": "bf16"}])
def test_the_losses_fall(changes):
    config = tiny(steps=150, dropout=0.0, **changes)
    learner = Learner(Schedule(config), torch.device("cpu"))
    source = Blips(40)
    means = []
    for step in range(150):
        drawn = [source.draw(8 * step + i) for i in range(8)]
        learner.step(source.batch(drawn), step, 0.3)
        if step % 50 == 49:
            means.append(learner.losses())
    assert means[2]["loss"] < 0.5 * means[0]["loss"]
    for name in ("shift", "pitch", "tie", "eos", "auxiliary", "next_event", "guide"):
        assert means[2][name] < means[0][name], name
    assert {"drum", "program"}.isdisjoint(means[0])


def test_the_aids_can_be_left_out():
    config = tiny(auxiliary=0.0, next_event=0.0, guide=0.0)
    learner = Learner(Schedule(config), torch.device("cpu"))
    source = Blips(40)
    learner.step(source.batch([source.draw(0)]), 0, 0.0)
    found = learner.losses()
    assert found["auxiliary"] == found["next_event"] == found["guide"] == 0.0
    assert found["loss"] > 0.0


def test_a_step_depends_on_its_number_and_on_the_state_alone():
    config, source = tiny(dropout=0.3), Blips(40)
    batches = [source.batch([source.draw(8 * n + i) for i in range(4)]) for n in range(6)]
    whole = Learner(Schedule(config), torch.device("cpu"))
    for number, batch in enumerate(batches):
        whole.step(batch, number, 0.1 * number)
        if number == 2:
            kept = whole.state(Position(step=3))
            kept = replace(kept, arrays={k: v.copy() for k, v in kept.arrays.items()})
    other = Learner(Schedule(replace(config, seed=9)), torch.device("cpu"))
    other.config = config  # another initial state, nothing of which may be left
    other.restore(kept)
    for number in (3, 4, 5):
        other.step(batches[number], number, 0.1 * number)
    one, two = whole.state(Position()), other.state(Position())
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
    assert one.optimiser == two.optimiser


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_slices_add_up_to_the_batch(slices):
    """Losses and gradient of a batch do not depend on how it was cut."""
    source = Blips(40)
    batch = source.batch([source.draw(n) for n in range(6)])
    found = []
    for size in (6, -(-6 // slices)):
        learner = Learner(Schedule(tiny(slice_size=size)), torch.device("cpu"), threads=slices)
        learner.network.dropout.probability = 0.0
        learner.step(batch, 0, 0.0)
        found.append(learner.losses())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert min(found[0]["norm"], found[0]["guide"], found[0]["auxiliary"]) > 0.0


def test_threads_change_nothing():
    source = Blips(40)
    batches = [source.batch([source.draw(8 * n + i) for i in range(8)]) for n in range(5)]
    found = []
    for threads in (1, 3):
        config = tiny(dropout=0.3, slice_size=2)
        learner = Learner(Schedule(config), torch.device("cpu"), threads=threads)
        for number, batch in enumerate(batches):
            learner.step(batch, number, 0.1)
        found.append(learner.state(Position()))
    assert all(np.array_equal(found[0].arrays[k], found[1].arrays[k]) for k in found[0].arrays)


def test_a_state_of_another_network_is_refused():
    one = Learner(Schedule(tiny()), torch.device("cpu"))
    other = Learner(Schedule(tiny(shape=replace(tiny().shape, d_ff=8))), torch.device("cpu"))
    with pytest.raises(CheckpointError, match=r"beginning with average\..*mlp"):
        other.restore(one.state(Position()))
    with pytest.raises(CheckpointError, match="optimisers"):
        one.restore(replace(one.state(Position()), optimiser=b"PK"))


def test_a_run_that_diverges_says_so():
    learner = Learner(Schedule(tiny()), torch.device("cpu"))
    source = Blips(40)
    batch = source.batch([source.draw(0)])
    learner.step(batch._replace(features=batch.features * np.float32(np.inf)), 0, 0.0)
    with pytest.raises(OptionError, match="diverged"):
        learner.losses()


def test_the_average_follows_slowly():
    learner = Learner(Schedule(tiny(average=0.9)), torch.device("cpu"))
    source = Blips(40)
    batch = source.batch([source.draw(0)])
    before = {name: tensor.clone() for name, tensor in learner.average.items()}
    learner.step(batch, 1000, 0.3)
    for name, parameter in learner.network.named_parameters():
        expected = 0.9 * before[name] + 0.1 * parameter.detach()
        torch.testing.assert_close(learner.average[name], expected)
    assert learner.averaged().shape == tiny().shape


def test_muon_is_for_the_matrices_inside_the_layers(monkeypatch):
    learner = Learner(Schedule(tiny(optimiser="muon")), torch.device("cpu"))
    adam, *muons = learner._optimisers._optimisers
    count = sum(len(group["params"]) for muon in muons for group in muon.param_groups)
    assert count == 7 + 11  # an encoder and a decoder layer
    rest = sum(len(group["params"]) for group in adam.param_groups)
    assert rest + count == len(list(learner.network.parameters())) + 4
    monkeypatch.delattr(optimisers.torch.optim, "Muon")
    with pytest.raises(MissingDependencyError, match="no Muon"):
        Learner(Schedule(tiny(optimiser="muon")), torch.device("cpu"))


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(tmp_path):
    with begin(tmp_path / "run", tiny()) as run:
        assert run.train(never)
        assert run.position.step == 12
        assert run.position.examples == 48
        assert run.position.stage == 1
    path = tmp_path / "run"
    log, scores = rows(path / "log.csv"), rows(path / "scores.csv")
    assert tuple(log[0]) == LOG_COLUMNS
    assert tuple(scores[0]) == SCORE_COLUMNS
    assert [row["step"] for row in log] == ["3", "6", "9", "12"]
    assert [row["stage"] for row in log] == ["short", "short", "long", "long"]
    assert [row["step"] for row in scores] == ["0", "6", "12"]
    assert float(log[0]["shift"]) > 0.0
    assert float(log[-1]["rate"]) == pytest.approx(3e-3 * (1 / 12) / 0.4, rel=1e-4)
    assert float(log[-1]["cpu_seconds"]) > 0.0
    assert RunFolder.existing(path).best().stage == 1
    assert all((path / name).is_file() for name in ("best.npz", "progress.svg"))
    assert not list(path.glob(".mt3-*"))
    with begin(path, None, sources=BlipSources(tiny())) as again:
        assert again.train(never)
        assert again.position.step == 12
    assert rows(path / "scores.csv") == scores


@pytest.mark.parametrize("stops", [(1,), (5,), (6,), (2, 9)])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path, stops):
    config = tiny(dropout=0.2)
    with begin(tmp_path / "whole", config) as run:
        assert run.train(never)
    done = 0
    for stop in stops:
        with begin(tmp_path / "cut", config) as run:
            assert not run.train(After(stop - done))
            assert run.position.step == stop
        done = stop
    # What was done after the last state is lost, and done again.
    with (tmp_path / "cut" / "log.csv").open("a") as file:
        if not file.tell():  # nothing was logged yet; the header comes with the first row
            file.write(",".join(LOG_COLUMNS) + "\n")
        file.write("2026-01-01,99,0.5,short,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1\n2026-01-0")
    with begin(tmp_path / "cut", config) as run:
        assert run.train(never)
    whole, cut = (RunFolder.existing(tmp_path / name) for name in ("whole", "cut"))
    one, other = whole.load(), cut.load()
    assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert one.optimiser == other.optimiser
    assert whole.best() == cut.best()
    for name in ("log.csv", "scores.csv"):
        assert timeless(whole.path / name) == timeless(cut.path / name)


def test_processes_and_saved_states_change_nothing(tmp_path, monkeypatch):
    with begin(tmp_path / "one", tiny()) as run:
        run.train(never)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    with begin(tmp_path / "two", tiny(), replace(CPU, workers=2)) as run:
        run.train(never)
    one, two = (RunFolder.existing(tmp_path / name).load() for name in ("one", "two"))
    assert all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)


def test_a_budget_in_hours_is_kept(tmp_path):
    config = tiny(steps=None, hours=2.0 / 3600.0, evaluations=1)
    with begin(tmp_path / "run", config) as run:
        assert run.train(never)
    assert 2.0 <= run.position.seconds < 2.0 + 2 * train.STALL_SECONDS


def test_a_stopped_process_does_not_use_up_its_budget(tmp_path, monkeypatch):
    """Every lap seems to take 5000 s, as it would if the computer slept meanwhile."""
    laps = iter(range(10**6))
    monkeypatch.setattr(train.time, "monotonic", lambda: 5000.0 * next(laps))
    with begin(tmp_path / "run", tiny()) as run:
        assert run.train(never)
    count = 12 + 3  # steps and evaluations
    limit = train.STALL_SECONDS * count + train.STALL_FACTOR * run.position.cpu_seconds
    assert run.position.seconds == pytest.approx(limit)


def test_files_stop_and_pause_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "POLL", 0.01)
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    pause = folder.path / "pause"
    pause.touch()
    said = []

    def say(line: str) -> None:
        said.append(line)
        if "paused until" in line:
            pause.unlink()

    with Run(folder, BlipSources(tiny()), CPU, say) as run:
        assert run.train(never)
    assert any("paused until" in line for line in said)
    (folder.path / "stop").touch()
    other = begin(tmp_path / "other", tiny())
    (tmp_path / "other" / "stop").touch()
    assert not other.train(never)
    assert other.position.step == 0
    assert not (tmp_path / "other" / "stop").exists()


def test_a_run_without_matplotlib_says_so_once(tmp_path, monkeypatch):
    def missing(_):
        raise MissingDependencyError("no pictures")

    monkeypatch.setattr(train, "save_picture", missing)
    said = []
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    with Run(folder, BlipSources(tiny()), CPU, said.append) as run:
        assert run.train(never)
    assert said.count("no pictures") == 1


def test_a_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="no GPU"):
        begin(tmp_path / "run", tiny(), Machine("cuda"))
    assert Machine().torch_device() == torch.device("cpu")


def test_a_gpu_trains(tmp_path):
    if not torch.cuda.is_available():
        needs.missing("gpu", "PyTorch sees none")
    with begin(tmp_path / "run", tiny(precision="bf16"), Machine("cuda", workers=0)) as run:
        assert run.train(never)
    assert float(rows(tmp_path / "run" / "log.csv")[-1]["loss"]) > 0.0


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path):
    """A run of four steps with a bank of sines."""
    bank = tmp_path / "tones.npz"
    tiny_bank().save(bank)
    stages = (Stage("piano", 40, 1.0, 2, "piano"),)
    config = tiny(
        stages=stages, steps=4, held_out=2, sounds=(str(bank),), held_out_sounds=(str(bank),)
    )
    path = tmp_path / "run.json"
    path.write_text(config.to_json())
    return path


HERE = train_command.__name__


def calibrate(monkeypatch, *words: object) -> int:
    """Runs the command, whether it is registered in this environment or not."""
    group = calibrate_command.VERB_GROUP
    verbs = {
        name: cli.Listing(f"calibrate {name}", "", "", EntryPoint(name, f"{HERE}:{made}", group))
        for name, made in (("train", "TrainVerb"), ("export", "ExportVerb"))
    }
    monkeypatch.setattr(calibrate_command, "verbs", lambda: verbs)
    return cli.main(["calibrate", *map(str, words)])


def test_train_and_export(tmp_path, config_file, monkeypatch, capsys):
    run, out = tmp_path / "run", tmp_path / "model.mt3"
    options = ("--config", config_file, "--device", "cpu", "--threads", 1, "--workers", 0)
    assert calibrate(monkeypatch, "train", run, *options, "--nice", 0) == 0
    assert capsys.readouterr().out == f"{run}\n"
    sounds = json.loads((run / "sounds.json").read_text())
    assert [(bank["bank"], bank["held_out"]) for bank in sounds] == [
        ("tiny", False),
        ("tiny", True),
    ]
    assert calibrate(monkeypatch, "export", run, "-o", out, "--name", "mine") == 0
    assert capsys.readouterr().out == f"{out}\n"
    manifest = Bundle(out).manifest
    assert (manifest.name, manifest.variant, manifest.precision.weights) == (
        "mine",
        "default",
        "fp16",
    )
    assert manifest.licence.startswith("Apache-2.0")
    assert manifest.source["sounds"] == "tiny (none; made of sines)"
    assert set(manifest.source) == {"layout", "digest", "step", "held_out_onset_f1", "sounds"}
    with load_model(out, threads=1) as model:
        result = model.transcribe_notes(np.zeros(16000, np.float32), sr=16000)
    assert len(result.segments) == 1
    last = ("--state", "last", "--weights", "fp32", "-o", tmp_path / "last")
    assert calibrate(monkeypatch, "export", run, *last) == 0
    manifest = Bundle(tmp_path / "last").manifest
    assert (manifest.precision.weights, manifest.source["step"]) == ("fp32", "4")


def test_a_run_is_resumed_without_options_and_not_changed(
    tmp_path, config_file, monkeypatch, capsys
):
    run = tmp_path / "run"
    plain = ("--device", "cpu", "--threads", 1, "--workers", 0)
    assert calibrate(monkeypatch, "train", run, "--config", config_file, *plain) == 0
    assert calibrate(monkeypatch, "train", run, *plain) == 0
    assert "complete" in capsys.readouterr().err
    assert calibrate(monkeypatch, "train", run, "--steps", 4, *plain) == 0
    assert calibrate(monkeypatch, "train", run, "--hours", 1, *plain) == 2
    assert "steps: 4, not None" in capsys.readouterr().err
    assert calibrate(monkeypatch, "train", run, "--config", "tiny", *plain) == 2
    assert "stages[0].name" in capsys.readouterr().err
    tiny_bank("other").save(tmp_path / "tones.npz")
    assert calibrate(monkeypatch, "train", run, *plain) == 2
    assert "the sounds of the run are not those" in capsys.readouterr().err


@pytest.fixture
def interruptible():
    """Obeys Ctrl-C, as a program at a terminal does and one in the background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_ends_a_run_after_a_saved_step(tmp_path, config_file, monkeypatch, capsys):
    step = Run._step

    def interrupted(self, progress):
        step(self, progress)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    options = ("--config", config_file, "--device", "cpu", "--threads", 1, "--workers", 0)
    assert calibrate(monkeypatch, "train", tmp_path / "run", *options) == cli.ExitCode.INTERRUPTED
    assert "saved at step 1" in capsys.readouterr().err
    assert RunFolder.existing(tmp_path / "run").load().position.step == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_is_obeyed_at_once():
    with train_command.deferred_signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "RUN", "--threads", "0"), "--threads is 0"),
        (("train", "RUN", "--workers", "-1"), "--workers is -1"),
        (("train", "RUN", "--nice", "20"), "--nice is 20"),
        (("train", "RUN", "--device", "tpu"), "'tpu'"),
        (("train", "RUN", "--config", "huge"), "neither a file"),
        (("export", "RUN", "-o", "b"), "no folder of a run"),
    ],
)
def test_wrong_words(tmp_path, monkeypatch, capsys, words, message):
    words = [str(tmp_path / "run") if word == "RUN" else word for word in words]
    assert calibrate(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_export_yet(tmp_path, monkeypatch, capsys):
    RunFolder.prepare(tmp_path / "run", tiny())
    for which in ("best", "last"):
        words = ("export", tmp_path / "run", "-o", tmp_path / "b", "--state", which)
        assert calibrate(monkeypatch, *words) == cli.ExitCode.UNUSABLE
        assert "train on" in capsys.readouterr().err


def test_without_torch_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "mt3_training.runs.train", raising=False)
    assert calibrate(monkeypatch, "train", tmp_path / "run") == cli.ExitCode.UNUSABLE
    assert "the extra [cpu,calibration,torch,viz]: pip install" in capsys.readouterr().err
