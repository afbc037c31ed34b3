"""Configurations, schedules, and the folder that a run lives in; nothing here needs PyTorch."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mt3_runtime.errors import CheckpointError, OptionError, OutputError
from mt3_training.examples.tables import LOG_COLUMNS, Table
from mt3_training.runs import checkpointing
from mt3_training.runs.checkpointing import Best, Position, RunFolder, State
from mt3_training.runs.config import PRESETS, Stage, TrainConfig
from mt3_training.runs.learning_rate import Schedule
from tests.pace import HANGS
from tests.training.synthetic import SHAPE, tiny
from tests.trees import snapshot

# --- configuration -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_survives_its_file(name):
    config = PRESETS[name]
    assert TrainConfig.from_json(config.to_json(), "config.json") == config
    assert not config.differences(TrainConfig.from_json(config.to_json(), "config.json"))


def test_a_configuration_of_version_1_is_read_as_it_was_meant():
    document = json.loads(tiny().to_json())
    for name in ("stem", "start", "index", "policy"):
        del document[name]
    old = TrainConfig.from_json(json.dumps({**document, "version": 1}), "config.json")
    assert old == tiny()
    assert not old.differences(tiny())
    with pytest.raises(OptionError, match=r"missing are \['index', 'policy', 'start', 'stem'\]"):
        TrainConfig.from_json(json.dumps(document), "config.json")


def test_no_steps_are_for_weights_that_are_there():
    assert Schedule(tiny(steps=0, start="0" * 64)).progress(0, 0.0) == 1.0
    with pytest.raises(OptionError, match="steps is 0"):
        tiny(steps=0)


def test_a_log_of_an_earlier_version_goes_on_with_its_columns(tmp_path):
    path, earlier = tmp_path / "log.csv", LOG_COLUMNS[:-2]
    path.write_text(",".join(earlier) + "\n" + ",".join("7" for _ in earlier) + "\n")
    table = Table(path, LOG_COLUMNS)
    table.append(dict.fromkeys(LOG_COLUMNS, 8))
    assert [row["step"] for row in table.rows()] == ["7", "8"]
    assert tuple(table.rows()[1]) == earlier
    table.cut(7)
    assert [row["step"] for row in Table(path, LOG_COLUMNS).rows()] == ["7"]


def test_starting_weights_are_kept_with_the_run(tmp_path):
    weights = {"a.b": np.arange(6, dtype=np.float32).reshape(2, 3)}
    config = tiny(start="0" * 64)
    folder = RunFolder.prepare(tmp_path / "run", config, weights)
    assert np.array_equal(folder.start_weights()["a.b"], weights["a.b"])
    assert folder.origins() == {}
    folder.remember(start="default")
    folder.remember(index="/data/dataset_bass.json")
    assert RunFolder.existing(tmp_path / "run").origins() == {
        "start": "default",
        "index": "/data/dataset_bass.json",
    }
    # A beginning that was cut short is begun anew; what somebody else put there is left alone.
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "origins.json").unlink()
    RunFolder.prepare(tmp_path / "run", config, weights)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "start.npz").symlink_to(tmp_path / "run" / "start.npz")
    with pytest.raises(OptionError, match="holds something else"):
        RunFolder.prepare(tmp_path / "other", config, weights)
    with pytest.raises(CheckpointError, match="cannot be read"):
        RunFolder.prepare(tmp_path / "new", tiny()).start_weights()


def test_differences_are_named():
    config = tiny()
    other = replace(config, seed=1, stages=(replace(config.stages[0], batch=9), config.stages[1]))
    assert config.differences(other) == ["stages[0].batch: 4, not 9", "seed: 0, not 1"]
    longer = replace(config, stages=config.stages[:1])
    assert "stages[1].frames: 40, not None" in config.differences(longer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "a budget, in hours or in steps"),
        ({"hours": 1.0}, "a budget, in hours or in steps"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": None, "hours": 0.0}, "hours is 0.0"),
        ({"steps": None, "hours": float("nan")}, "hours is nan"),
        ({"stages": ()}, "0 stages"),
        ({"shape": replace(SHAPE, head_dim=48)}, "width 48"),
        ({"shape": replace(SHAPE, d_ff=0)}, "d_ff of the shape is 0"),
        ({"optimiser": "sgd"}, "'sgd'"),
        ({"precision": "fp8"}, "'fp8'"),
        ({"bucket": 0}, "bucket is 0"),
        ({"rate": -1.0}, "rate is -1.0"),
        ({"average": 1.0}, "average is 1.0"),
        ({"aids_fade": (0.9, 0.5)}, "aids_fade"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [((300, 1.0, 4), "300 frames"), ((0, 1.0, 4), "frames of stage x"), ((9, 0.0, 4), "share"),
     ((9, 1.0, 0), "batch of stage x")],
)  # fmt: skip
def test_stages_are_checked(values, message):
    with pytest.raises(OptionError, match=message):
        Stage("x", *values, "band")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=3), "version 3"),
        (lambda d: d.update(version=True), "version True"),
        (lambda d: d.update(stem="tuba"), "Unknown stem 'tuba'"),
        (lambda d: d.update(start="abc"), "start is 'abc'; expected a SHA-256"),
        (lambda d: d.update(index="0" * 63 + "g"), "index is '0+g'; expected a SHA-256"),
        (lambda d: d.update(policy=[]), r"policy: expected an object, found \[\]"),
        (lambda d: d.update(policy={"name": "x"}), "policy: augment: expected an object"),
        (lambda d: d.update(format="x"), "no configuration"),
        (lambda d: d.pop("rate"), r"missing are \['rate'\]"),
        (lambda d: d.update(speed=1), r"unknown \['speed'\]"),
        (lambda d: d.update(rate="fast"), "rate is 'fast', expected float"),
        (lambda d: d.update(seed=True), "seed is True, expected int"),
        (lambda d: d.update(hours=float("inf")), "hours is inf"),
        (lambda d: d.update(stages={}), "stages must be a list"),
        (lambda d: d.update(shape=7), "expected an object, found 7"),
        (lambda d: d.update(aids_fade=[0.5]), "expected two numbers"),
        (lambda d: d.update(aids_fade=0.5), "aids_fade is 0.5"),
        (lambda d: d.update(sounds=[1]), r"sounds is \(1,\)"),
        (lambda d: d.update(programs=["piano"]), r"programs is \('piano',\)"),
    ],
)
def test_damaged_files_are_refused(change, message):
    document = json.loads(tiny().to_json())
    change(document)
    with pytest.raises(OptionError, match=message):
        TrainConfig.from_json(json.dumps(document), "config.json")


@pytest.mark.parametrize("text", ["", "[1]", "{", b"\xff"])
def test_files_that_are_none_are_refused(text):
    with pytest.raises(OptionError, match="config.json"):
        TrainConfig.from_json(text, "config.json")


# --- schedule ------------------------------------------------------------------------------------


def test_stages_follow_their_shares():
    stages = tuple(Stage(str(n), 8, share, 1, "band") for n, share in enumerate((1.0, 3.0, 6.0)))
    schedule = Schedule(tiny(stages=stages))
    found = [schedule.stage(p) for p in (0.0, 0.099, 0.1, 0.399, 0.4, 1.0)]
    assert found == [0, 0, 1, 1, 2, 2]
    assert Schedule(tiny(stages=stages[:1])).stage(1.0) == 0


def test_progress_follows_steps_or_the_clock():
    assert Schedule(tiny(steps=8)).progress(2, 1e9) == 0.25
    clock = Schedule(tiny(steps=None, hours=2.0))
    assert clock.progress(10**9, 3600.0) == 0.5
    assert clock.progress(0, 1e9) == 1.0


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_the_learning_rate_rises_once_and_falls_once(one, other):
    schedule = Schedule(tiny(warmup=100, decay_from=0.6))
    low, high = sorted((one, other))
    late = [schedule.rate_factor(1000, p) for p in (low, high)]
    assert 0.0 <= late[1] <= late[0] <= 1.0
    early = [schedule.rate_factor(int(200 * p), 0.3) for p in (low, high)]
    assert 0.01 <= early[0] <= early[1] <= 1.0


def test_the_learning_rate_at_its_corners():
    schedule = Schedule(tiny(warmup=100, decay_from=0.6))
    assert schedule.rate_factor(0, 0.0) == 0.01
    assert schedule.rate_factor(99, 0.6) == pytest.approx(1.0)
    assert schedule.rate_factor(500, 0.8) == pytest.approx(0.5)
    assert schedule.rate_factor(500, 1.0) == 0.0


def test_the_aids_fade():
    schedule = Schedule(tiny(aids_fade=(0.5, 0.9)))
    factors = [schedule.aid_factor(p) for p in (0.0, 0.49, 0.5, 0.7, 0.9, 1.0)]
    assert factors == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert Schedule(tiny(aids_fade=(0.5, 0.5))).aid_factor(0.5) == 0.0


def test_evaluations_are_spread_evenly_and_begin_at_once():
    schedule = Schedule(tiny(evaluations=4))
    assert [schedule.evaluations_due(n / 8) for n in range(9)] == [1, 1, 2, 2, 3, 3, 4, 4, 5]


# --- folder --------------------------------------------------------------------------------------


def state(step: int) -> State:
    arrays = {"weights.a": np.full((2, 3), step, np.float32), "file": np.zeros(0, np.float32)}
    return State(Position(step, 1, 2, 3, 4.5, 6.5, 7), arrays, b"optimiser %d" % step)


def test_a_state_survives(tmp_path):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    assert folder.load() is None
    assert folder.best() is None
    folder.save(state(4))
    folder.save(state(5))
    found = RunFolder.existing(tmp_path / "run").load()
    assert found.position == state(5).position
    assert found.optimiser == b"optimiser 5"
    assert found.arrays.keys() == state(5).arrays.keys()
    assert np.array_equal(found.arrays["weights.a"], np.full((2, 3), 5.0))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.json", "state.json", "state-00000005.npz", "state-00000005.pt"}


@pytest.mark.parametrize("fails_at", range(3))
def test_an_interrupted_save_leaves_the_state_before(tmp_path, monkeypatch, fails_at):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    folder.save(state(4))
    write, calls = checkpointing.write_atomic, []

    def failing(path, data):
        calls.append(path)
        if len(calls) > fails_at:
            raise OutputError("the disk is full")
        write(path, data)

    monkeypatch.setattr(checkpointing, "write_atomic", failing)
    with pytest.raises(OutputError, match="full"):
        folder.save(state(5))
    monkeypatch.undo()
    assert folder.load().position.step == 4
    folder.save(state(6))
    assert folder.load().position.step == 6
    assert not list((tmp_path / "run").glob("state-00000005*"))


@pytest.mark.parametrize("name", ["state.json", "state-00000004.npz", "state-00000004.pt"])
def test_damage_is_reported(tmp_path, name):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    folder.save(state(4))
    if name.endswith(".pt"):
        (folder.path / name).unlink()
    else:
        (folder.path / name).write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.load()


@pytest.mark.parametrize("text", ["[]", '{"files": "state-00000004", "step": 1, "mood": 2}'])
def test_a_state_of_another_kind_is_reported(tmp_path, text):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    folder.save(state(4))
    (folder.path / "state.json").write_text(text)
    with pytest.raises(CheckpointError):
        folder.load()


def test_the_best_weights(tmp_path):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    with pytest.raises(CheckpointError, match="cannot be read"):
        folder.best_weights()
    folder.save_best(Best(7, 1, 0.25), state(7).arrays)
    assert folder.best() == Best(7, 1, 0.25)
    assert np.array_equal(folder.best_weights()["weights.a"], np.full((2, 3), 7.0))


def test_later_stages_count_more():
    assert Best(1, 0, 0.0).beats(None)
    assert Best(2, 0, 0.5).beats(Best(1, 0, 0.4))
    assert not Best(2, 0, 0.4).beats(Best(1, 0, 0.4))
    assert Best(2, 1, 0.1).beats(Best(1, 0, 0.9))
    assert not Best(2, 0, 0.9).beats(Best(1, 1, 0.1))


def test_a_folder_is_made_or_found(tmp_path):
    made = RunFolder.prepare(tmp_path / "deep" / "run", tiny())
    assert RunFolder.prepare(made.path, None).config == tiny()
    assert RunFolder.prepare(made.path, tiny()).config == tiny()
    with pytest.raises(OptionError, match="another configuration: seed: 0, not 5"):
        RunFolder.prepare(made.path, tiny(seed=5))
    with pytest.raises(OptionError, match="name a configuration"):
        RunFolder.prepare(tmp_path / "none", None)
    with pytest.raises(OptionError, match="holds something else"):
        RunFolder.prepare(tmp_path / "deep", tiny())
    (tmp_path / "file").write_text("x")
    with pytest.raises(OptionError, match="holds something else"):
        RunFolder.prepare(tmp_path / "file", tiny())
    with pytest.raises(OptionError, match="no folder of a run"):
        RunFolder.existing(tmp_path / "none")


def _lock(path, result):
    try:
        with RunFolder.existing(path).locked():
            result.put("locked")
    except OptionError as error:
        result.put(str(error))


def test_one_program_at_a_time(tmp_path):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    result = multiprocessing.get_context("spawn").Queue()

    def elsewhere():
        process = multiprocessing.get_context("spawn").Process(
            target=_lock, args=(folder.path, result)
        )
        process.start()
        process.join()
        return result.get(timeout=HANGS)

    with folder.locked():
        assert "another program is training" in elsewhere()
    assert elsewhere() == "locked"


def test_requests(tmp_path):
    folder = RunFolder.prepare(tmp_path / "run", tiny())
    assert not folder.asked_to_stop()
    assert folder.pause_file() is None
    (folder.path / "stop").touch()
    (folder.path / "pause").touch()
    assert folder.asked_to_stop()
    assert not folder.asked_to_stop()
    assert folder.pause_file() is not None
    assert folder.pause_file() is not None


# --- tables --------------------------------------------------------------------------------------


def test_a_table_grows_and_is_cut(tmp_path):
    table = Table(tmp_path / "t.csv", ("step", "loss", "name"))
    assert table.rows() == []
    table.cut(3)
    assert not (tmp_path / "t.csv").exists()
    for step in (1, 2, 3):
        table.append({"step": step, "loss": step / 3.0, "name": "a, b"})
    table.append({"step": 4, "loss": None})
    assert (tmp_path / "t.csv").read_text() == (
        'step,loss,name\n1,0.333333,"a, b"\n2,0.666667,"a, b"\n3,1,"a, b"\n4,,\n'
    )
    with (tmp_path / "t.csv").open("a") as file:
        file.write("5,0.1")  # the power went
    table.cut(3)
    assert [row["step"] for row in table.rows()] == ["1", "2", "3"]
    table.append({"step": 4})
    assert table.rows()[-1] == {"step": "4", "loss": "", "name": ""}


def test_tables_of_other_columns_are_refused(tmp_path):
    Table(tmp_path / "t.csv", ("step", "loss")).append({"step": 1})
    other = Table(tmp_path / "t.csv", ("step", "gain"))
    with pytest.raises(CheckpointError, match="other columns"):
        other.rows()
    with pytest.raises(ValueError, match="mood"):
        other.append({"step": 1, "mood": 2})
    with pytest.raises(OutputError, match="cannot write"):
        Table(tmp_path / "no" / "t.csv", ("step",)).append({"step": 1})


# --- files of others -----------------------------------------------------------------------------


def a_state(step: int) -> State:
    return State(Position(step=step), {"a": np.zeros(2, np.float32)}, b"optimiser")


def test_saving_removes_older_states_and_nothing_else(tmp_path):
    run = RunFolder.prepare(tmp_path / "run", tiny())
    (run.path / "state-00000001.npz").symlink_to(tmp_path / "elsewhere.npz")
    (run.path / "state-00000002.pt").mkdir()
    mine = ("state-of-the-art.txt", "state-1.npz", "state-00000003.npz.bak", "state-x.pt")
    for name in mine:
        (run.path / name).write_text("mine")
    before = snapshot(run.path)
    run.save(a_state(4))
    run.save(a_state(5))
    after = snapshot(run.path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"state.json", "state-00000005.npz", "state-00000005.pt"}


@settings(max_examples=50, deadline=None)
@given(
    names=st.sets(
        st.from_regex(r"(state|best|log|mine)-?[a-z0-9]{0,7}(\.npz|\.pt|\.txt)?", fullmatch=True)
    )
)
def test_whatever_is_beside_a_run_stays(tmp_path_factory, names):
    run = RunFolder.prepare(tmp_path_factory.mktemp("runs") / "run", tiny())
    for name in names - {"state", "best.npz"}:
        (run.path / name).write_text("mine")
    before = snapshot(run.path)
    run.save(a_state(1))
    run.save(a_state(2))
    run.save_best(Best(1, 1, 0.5), {"a": np.zeros(2, np.float32)})
    assert not run.asked_to_stop()
    assert {name: snapshot(run.path)[name] for name in before} == before


def test_a_lock_that_was_something_else_keeps_its_content(tmp_path):
    run = RunFolder.prepare(tmp_path / "run", tiny())
    (run.path / "lock").write_text("mine")
    with run.locked():
        pass
    assert (run.path / "lock").read_text() == "mine"


def test_only_a_file_asks_to_stop(tmp_path):
    run = RunFolder.prepare(tmp_path / "run", tiny())
    (run.path / "stop").mkdir()
    assert not run.asked_to_stop()
    (run.path / "stop").rmdir()
    (run.path / "stop").touch()
    assert run.asked_to_stop()
    assert not run.asked_to_stop()


@pytest.mark.parametrize("content", ["step,gain\n1,2\n", "my diary\n", "my diary"])
def test_a_file_that_is_another_table_is_not_touched(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    table = Table(tmp_path / "t.csv", ("step", "loss"))
    with pytest.raises(CheckpointError, match="other columns"):
        table.append({"step": 1})
    with pytest.raises(CheckpointError, match="other columns"):
        table.cut(1)
    assert (tmp_path / "t.csv").read_text() == content


@pytest.mark.parametrize("name", ["config.json", "notes.txt", "state.json"])
def test_a_foreign_folder_does_not_become_a_run(tmp_path, name):
    (tmp_path / name).write_text('{"name": "webapp"}')
    before = snapshot(tmp_path)
    with pytest.raises(OptionError):
        RunFolder.prepare(tmp_path, tiny())
    assert snapshot(tmp_path) == before
