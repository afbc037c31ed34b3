"""`mt3 calibrate BUNDLE --precision`: made, judged, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mt3_evaluation.scoreboards.testsets import wav
from mt3_quantisation import precision_command
from mt3_quantisation.forms import recipes
from mt3_quantisation.forms.recipes import Product, recipe_named
from mt3_quantisation.forms.step_graphs import plain
from mt3_quantisation.forms.stored_halves import halved
from mt3_quantisation.gates.exact_bundle import Source
from mt3_quantisation.gates.gate import GateName
from mt3_quantisation.gates.material import Material, in_takes, installed, make_excerpts
from mt3_quantisation.gates.measure import compared, drift, scored
from mt3_quantisation.gates.teacher_forcing import forced, segments_of
from mt3_runtime import cli
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.bundles.precision import Precision
from mt3_runtime.errors import MissingDependencyError, OptionError
from mt3_runtime.loading import load_model
from mt3_synthesis.soundfonts import Role
from tests.quantisation.tiny_material import BANKS, PARTS, known_material, plain_material


@pytest.fixture(scope="module")
def material(tiny_bundle: Path) -> Material:
    return known_material(tiny_bundle)


@pytest.fixture
def source(tiny_bundle: Path) -> Source:
    return Source(Bundle(tiny_bundle), threads=1)


class Ruined:
    """A recipe whose decoder always says the same."""

    name = "ruined"
    gate: GateName = "relaxed"

    def apply(self, source: Source, material: Material, talk) -> Product:
        graphs = {(role, "cpu"): source.graph(role, "cpu") for role in ("encoder", "decoder")}
        for tensor in graphs["decoder", "cpu"].graph.initializer:
            if "logits_dense" in tensor.name:
                nothing = np.zeros(list(tensor.dims), np.float32)
                tensor.CopyFrom(numpy_helper.from_array(nothing, tensor.name))
        return Product(graphs, Precision("ruined"), files={"ranges.json": b"{}"})


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, material: Material):
    """The command with small material, and with a recipe that fails."""
    monkeypatch.setitem(recipes.RECIPES, "ruined", __name__ + ".none")
    real = recipe_named
    monkeypatch.setattr(
        precision_command, "recipe_named", lambda n: Ruined() if n == "ruined" else real(n)
    )
    monkeypatch.setattr(precision_command, "Material", lambda: material)
    return lambda *words: cli.main(["calibrate", *map(str, words), "--threads", "1"])


def test_the_parts_have_nothing_in_common():
    material = plain_material()
    assert [e.name for e in material.calibration] == ["calibration-000", "calibration-001"]
    assert [e.name for e in material.check] == ["check-000", "check-001"]
    assert [e.audio.shape for e in material.check] == [(64000,)] * 2
    assert all(e.labels.notes for e in (*material.calibration, *material.check))
    pieces = {tuple(e.labels.notes) for e in (*material.calibration, *material.check)}
    assert len(pieces) == 4


def test_equal_sounds_give_equal_material():
    again = make_excerpts(PARTS[1], BANKS["check"])
    for one, two in zip(plain_material().check, again, strict=True):
        assert np.array_equal(one.audio, two.audio)
        assert one.labels == two.labels


def test_takes_differ_by_what_nobody_hears(material: Material):
    (first, second) = material.check
    found = in_takes((first, second), 3)
    assert [(e.name, e.take) for e in found] == [
        (e.name, k) for e in (first, second) for k in range(3)
    ]
    assert found[0] is first
    for take in (found[1], found[2]):
        assert np.array_equal(take.audio * 32768, np.round(take.audio * 32768))
        assert 0 < np.abs(take.audio - first.audio).max() <= 1.5 / 32768
        assert take.labels is first.labels
    assert not np.array_equal(found[1].audio, found[2].audio)
    assert np.array_equal(in_takes((first,), 3)[2].audio, found[2].audio)


def test_a_piece_is_judged_by_all_of_its_takes(source: Source, material: Material):
    """The labels are the exact model's answer to the first take: it says less than all of that."""
    takes = in_takes(material.check, 3)
    heard = source.listen(takes)
    changes = compared(heard, heard).changes
    assert [change.name for change in changes] == ["check-000", "check-001"]
    for change in changes:
        alone = [
            scored(h.excerpt.labels, h.notes).whole for h in heard if h.excerpt.name == change.name
        ]
        assert len(alone) == 3
        assert change.exact.whole == change.other.whole == alone[0] + alone[1] + alone[2]


def test_without_sounds_the_remedy_is_named(monkeypatch):
    from mt3_quantisation.gates import material

    monkeypatch.setattr(material, "_is_there", lambda source: False)
    with pytest.raises(MissingDependencyError, match="apt-get install csound-soundfont"):
        installed((Role.CHOICE, Role.TRAIN))


def test_other_sounds_are_taken_where_those_are_installed(monkeypatch):
    from mt3_quantisation.gates import material

    monkeypatch.setattr(material, "build_bank", lambda source: source.name)
    monkeypatch.setattr(material, "_is_there", lambda source: source.role is Role.TRAIN)
    assert installed((Role.CHOICE, Role.TRAIN)) == ["fluidr3mono", "fluidr3", "musescore"]


def test_rounded_weights_are_not_stored_again(run, tmp_path: Path, tiny_bundle: Path, capsys):
    path = shutil.copytree(tiny_bundle, tmp_path / "half")
    other = replace(Bundle(path).manifest, precision=Precision("fp16-stored", weights="fp16"))
    (path / "bundle.json").write_bytes(other.to_json())
    words = ("--precision", "fp16-stored", "-o", tmp_path / "out")
    assert run(path, *words) == cli.ExitCode.USAGE
    assert "are stored as fp16 already" in capsys.readouterr().err


def test_an_approximate_bundle_is_no_source(tmp_path: Path, tiny_bundle: Path):
    path = shutil.copytree(tiny_bundle, tmp_path / "fast")
    bundle = Bundle(path)
    other = replace(bundle.manifest, precision=Precision("fast", arithmetic="int8"))
    (path / "bundle.json").write_bytes(other.to_json())
    with pytest.raises(OptionError, match="of precision fast already"):
        Source(Bundle(path))


def test_stored_halves_become_plain_again(source: Source):
    exact = source.graph("decoder", "cpu")
    half = halved(source.graph("decoder", "cpu"))
    kinds = {t.name: t.data_type for t in half.graph.initializer}
    assert kinds["decoder.logits_dense.kernel"] == TensorProto.FLOAT16
    assert kinds["decoder.decoder_norm.scale"] == TensorProto.FLOAT
    onnx.checker.check_model(half)
    again = plain(half)
    assert [n.SerializeToString() for n in again.graph.node] == [
        n.SerializeToString() for n in exact.graph.node
    ]
    for one, two in zip(exact.graph.initializer, again.graph.initializer, strict=True):
        assert one.name == two.name
        a, b = numpy_helper.to_array(one), numpy_helper.to_array(two)
        assert a.dtype == b.dtype
        assert np.array_equal(b, a.astype(np.float16) if a.ndim > 1 and a.dtype == "f4" else a)


@pytest.mark.parametrize("profile", ["cpu", "portable", "compat"])
def test_thoughts_are_those_of_decoding(source: Source, material: Material, profile: str):
    """What is said greedily is what is thought best, in every profile."""
    heard = source.listen(material.calibration)
    segments = segments_of(heard, source.manifest)
    graphs = {role: source.graph(role, profile) for role in ("encoder", "decoder")}
    steps = 0
    for thought in forced(graphs, source.manifest, segments, threads=1):
        steps += len(thought.said)
        best = thought.log_probs.argmax(axis=1)
        assert np.array_equal(best, thought.said)
        assert np.allclose(np.exp(thought.log_probs).sum(axis=1), 1.0, atol=1e-4)
    assert steps == sum(len(s.tokens) for h in heard for s in h.tokens)


def test_tensors_can_be_watched(source: Source, material: Material):
    segments = segments_of(source.listen(material.calibration), source.manifest, most=2)
    assert len(segments) == 2
    graphs = {role: source.graph(role, "cpu") for role in ("encoder", "decoder")}
    name = next(n.input[0] for n in graphs["decoder"].graph.node if n.op_type == "MatMul")
    for thought in forced(graphs, source.manifest, segments, watch=[name], threads=1):
        assert thought.watched[name].shape == (len(thought.said), 1, 32)


def test_equal_graphs_do_not_drift_and_others_do(source: Source, material: Material):
    segments = segments_of(source.listen(material.calibration), source.manifest, most=2)
    exact = {role: source.graph(role, "cpu") for role in ("encoder", "decoder")}
    same = drift(exact, exact, source.manifest, segments, threads=1)
    assert (same.kl, same.flips) == (0.0, 0.0)
    half = {role: halved(source.graph(role, "cpu")) for role in ("encoder", "decoder")}
    near = drift(exact, half, source.manifest, segments, threads=1)
    assert 0.0 < near.kl < 1e-3
    assert near.steps == same.steps == sum(len(t) for s in segments for t in s.tokens)


def test_a_bundle_that_passes_is_written(run, tmp_path: Path, tiny_bundle: Path, capsys):
    out, report = tmp_path / "half", tmp_path / "report.json"
    # A few seeded notes are no music: one that moves is more than the gate of packaging allows.
    assert (
        run(tiny_bundle, "--precision", "fp16-stored", "-o", out, "--force", "--json", report) == 0
    )
    bundle = Bundle(out)
    assert bundle.profiles == ["cpu", "portable", "compat"]
    precision = bundle.manifest.precision
    assert precision.name == "fp16-stored"
    assert precision.exact
    assert precision.gate is not None
    assert precision.gate.gate == "packaging"
    assert precision.gate.judged == "against fp32; recordings: 2 of check; cpu"
    assert precision.gate.figures["kl"] < 1e-3
    assert bundle.manifest.export_id != Bundle(tiny_bundle).manifest.export_id
    with load_model(out) as model:
        model.warmup()
    document = json.loads(report.read_text())
    assert document["format"] == "mt3-runtime.precision"
    assert document["verdict"]["passed"] == precision.gate.passed
    files = document["sets"]["check"]["files"]
    assert [each["name"] for each in files] == ["check-000", "check-001"]
    assert [each["exact"] for each in files] == [1.0, 1.0]
    table = capsys.readouterr().out
    assert "tokens independent of batch and slots: yes" in table
    assert "gate packaging: " in table


def test_a_bundle_that_fails_is_not_written(run, tmp_path: Path, tiny_bundle: Path, capsys):
    out = tmp_path / "ruined"
    assert run(tiny_bundle, "--precision", "ruined", "-o", out) == cli.ExitCode.FAILED
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr()
    assert "gate relaxed: FAILED" in said.out
    assert "--force" in said.err
    assert run(tiny_bundle, "--precision", "ruined", "-o", out, "--force", "--json", "-") == 0
    gate = Bundle(out).manifest.precision.gate
    assert gate is not None
    assert not gate.passed
    assert "check: pooled drum F1 falls by 1.0000, more than 0.005" in gate.faults
    assert (out / "ranges.json").read_bytes() == b"{}"
    assert json.loads(capsys.readouterr().out)["verdict"]["faults"] == list(gate.faults)


def test_the_exact_bundle_is_not_replaced_by_what_is_made_of_it(
    run, tmp_path: Path, tiny_bundle: Path, capsys
):
    (tmp_path / "link").symlink_to(tiny_bundle)
    before = (tiny_bundle / "bundle.json").read_bytes()
    for out in (tiny_bundle, tmp_path / "link"):
        words = ("--precision", "ruined", "--force", "-o", out)
        assert run(tiny_bundle, *words) == cli.ExitCode.USAGE
        assert "the exact bundle itself" in capsys.readouterr().err
    assert (tiny_bundle / "bundle.json").read_bytes() == before


def test_a_model_that_finds_nothing_cannot_be_judged(
    run, tmp_path, tiny_bundle, monkeypatch, capsys
):
    monkeypatch.setattr(precision_command, "Material", plain_material)
    words = ("--precision", "fp16-stored", "-o", tmp_path / "out")
    assert run(tiny_bundle, *words) == cli.ExitCode.FAILED
    assert "check: the exact model finds none of the labelled notes" in capsys.readouterr().out


def test_own_recordings_are_judged_by_themselves(
    run, material: Material, tmp_path: Path, tiny_bundle: Path, capsys
):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, excerpt in zip(("song", "other"), material.check, strict=False):
        (folder / f"{name}.wav").write_bytes(wav(excerpt.audio))
    rows = [f"{n.onset},{n.offset},{n.pitch}" for n in material.check[0].labels.notes]
    (folder / "song.notes.csv").write_text("\n".join(["onset,offset,pitch", *rows]))
    words = ("--precision", "ruined", "-o", tmp_path / "out", "--audio", folder, "--force")
    assert run(tiny_bundle, *words) == 0
    said = capsys.readouterr()
    assert "other.wav: no labels" in said.err
    gate = Bundle(tmp_path / "out").manifest.precision.gate
    assert gate is not None
    assert "own_mean_f1" in gate.figures
    assert "1 of own" in gate.judged


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--precision", "fp16-stored", "-o", ""), "-o needs"),
        (("--precision", "fp16-stored", "-o", "x", "--audio", "nowhere"), "--audio takes a folder"),
    ],
)
def test_mistakes_are_found_before_the_work(run, tiny_bundle: Path, words, what, capsys):
    assert run(tiny_bundle, *words) == cli.ExitCode.USAGE
    assert what in capsys.readouterr().err


def test_unknown_recipes_are_refused(run, tiny_bundle: Path, capsys):
    assert run(tiny_bundle, "--precision", "fp3", "-o", "x") == cli.ExitCode.USAGE
    with pytest.raises(OptionError, match="expected one of fp16-stored"):
        recipe_named("fp3")


def test_the_older_forms_of_the_command_are_there(run, tmp_path: Path, capsys):
    assert run("train", tmp_path / "none", "--config", "no such") == cli.ExitCode.USAGE
    assert "no such" in capsys.readouterr().err
