"""What is said of whole takes: dimensions, comparisons, percentiles, files, and bad input."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from mt3_analysis import assess, compare
from mt3_analysis.assessment import assess_route, performance_assessment
from mt3_analysis.assessment.assess_command import AssessCommand
from mt3_analysis.assessment.assess_route import assess_upload
from mt3_analysis.assessment.assessment_results import document
from mt3_analysis.assessment.judging import execution
from mt3_analysis.assessment.judging.reference_knots import make_reference, read_reference
from mt3_analysis.assessment.performance import Performance
from mt3_runtime.cli import main
from mt3_runtime.errors import MT3Error, OptionError
from mt3_runtime.notes.note import Note
from mt3_runtime.transcription import Transcription
from mt3_training.performance_sets.degradation import HARMLESS, degraded
from mt3_training.performance_sets.execution_levels import make_scale, order_right
from mt3_training.performance_sets.made_performances import make_piece, play
from mt3_training.performance_sets.performance_files import midi_bytes
from tests.analysis.assessment.pieces import piece, played

LIST = list(execution.DIMENSIONS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A made-up piece as a score, a take of it, and spoiled takes."""
    path = tmp_path_factory.mktemp("takes")
    score = make_piece(7, quarters=64)
    take = play(score, 7)
    quarter = Performance.from_arrays(
        score.onset_q / 2, (score.onset_q + np.maximum(score.length_q, 0.1)) / 2, pitch=score.pitch
    )
    (path / "score.mid").write_bytes(midi_bytes(quarter))
    (path / "clean.mid").write_bytes(midi_bytes(take))
    for kind, level in (("wrong", 0.6), ("hesitation", 0.8), ("asynchrony", 1.0)):
        (path / f"{kind}.mid").write_bytes(midi_bytes(degraded(take, kind, level, seed=3)))
    return path


def test_midi_files_hold_performances(folder):
    take = play(make_piece(7, quarters=64), 7)
    again = Performance.from_midi(folder / "clean.mid")
    np.testing.assert_array_equal(again.pitch[:20], take.pitch[:20])
    np.testing.assert_allclose(again.onset_s, take.onset_s, atol=5e-4)
    np.testing.assert_array_equal(again.pedals[64].value, take.pedals[64].value)


def test_a_clean_take_against_its_score(folder):
    said = assess(folder / "clean.mid", score=folder / "score.mid")
    assert [each.name for each in said] == LIST
    for name in ("wrong_notes", "missing_notes", "extra_notes", "hesitations"):
        each = said[name]
        assert each.assessed
        assert each.value > 0.9, name
        assert 0.0 <= each.low <= each.value <= each.high <= 1.0
        assert each.why
    assert said.alignment.matched == said.alignment.written
    assert said.known == ("pedal", "score", "timing", "velocity")


@pytest.mark.parametrize(
    ("spoiled", "name"),
    [("wrong", "wrong_notes"), ("hesitation", "hesitations"), ("asynchrony", "togetherness")],
)
def test_a_spoiled_take_is_told_by_its_own_dimension(folder, spoiled, name):
    clean = assess(folder / "clean.mid", score=folder / "score.mid")
    worse = assess(folder / f"{spoiled}.mid", score=folder / "score.mid")
    assert worse[name].value < clean[name].value - 0.2
    others = {"wrong_notes", "hesitations", "extra_notes"} - {name}
    assert all(worse[other].value > 0.75 for other in others)


def test_without_a_score_only_what_can_be_said(folder):
    said = assess(folder / "clean.mid")
    for name in ("wrong_notes", "missing_notes", "extra_notes", "hesitations", "tempo"):
        assert not said[name].assessed
        assert "score" in said[name].reason
        assert said[name].value is said[name].low is None
    assert said["togetherness"].assessed


def test_takes_are_put_in_order(folder):
    names = ("hesitation", "clean", "wrong")
    (found,) = compare([folder / f"{name}.mid" for name in names], score=folder / "score.mid")
    assert found.head == "execution"
    assert [take.place for take in found.takes][1] == 1
    assert found.takes[1].better > 0.6
    for one in range(3):
        assert found.takes[one].against[one] == 0.5
        for two in range(3):
            both = found.takes[one].against[two] + found.takes[two].against[one]
            assert both == pytest.approx(1.0)
    assert found.by_dimension["wrong_notes"][2] < 0.2
    assert found.lines()[1].startswith("1. clean.mid")


def test_takes_of_different_pieces_are_not_compared(folder, tmp_path):
    other = play(make_piece(23, quarters=64), 1)
    (tmp_path / "other.mid").write_bytes(midi_bytes(other))
    with pytest.raises(OptionError, match="different pieces"):
        compare([folder / "clean.mid", tmp_path / "other.mid"])
    with pytest.raises(OptionError, match="2 or more"):
        compare([folder / "clean.mid"])


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_players_do_on_purpose_costs_no_notes_and_no_stops(kind):
    score = make_piece(12)
    take = degraded(play(score, 12), kind, 1.0, seed=1)
    measures = performance_assessment.Take(take, performance_assessment.align_best(take, [score]))
    found = performance_assessment.measure_take(measures)
    said = execution.judge_execution(found, notes=len(take), has_score=True)
    for each in said:
        if each.name in ("wrong_notes", "missing_notes", "extra_notes", "hesitations"):
            assert each.value > 0.9


def test_levels_of_pieces_that_set_nothing_come_out_in_order():
    for name, share in order_right(range(1)).items():
        assert share >= 0.95, name


def test_the_scale_comes_from_its_command():
    made = json.loads(make_scale([1000]))
    shipped = json.loads(execution.SCALE.read_bytes())
    assert made["curves"].keys() == shipped["curves"].keys()
    for name, curve in shipped["curves"].items():
        assert curve["levels"] == made["curves"][name]["levels"]
        for key in ("low", "middle", "high"):
            assert curve[key] == sorted(curve[key])


def test_a_broken_scale_is_an_error(tmp_path):
    (tmp_path / "a.json").write_text('{"format": "x", "version": 1}')
    with pytest.raises(MT3Error, match="no scale"):
        execution.execution_scale(tmp_path / "a.json")


def test_percentiles_come_from_a_reference(folder, tmp_path):
    said = [assess(folder / "clean.mid", score=folder / "score.mid")] * 15
    said += [assess(folder / "wrong.mid", score=folder / "score.mid")] * 15
    (tmp_path / "r.json").write_bytes(make_reference(said))
    found = assess(folder / "wrong.mid", score=folder / "score.mid", reference=tmp_path / "r.json")
    best = assess(folder / "clean.mid", score=folder / "score.mid", reference=tmp_path / "r.json")
    assert found["wrong_notes"].percentile < 50 < best["wrong_notes"].percentile
    assert assess(folder / "clean.mid")["wrong_notes"].percentile is None
    with pytest.raises(OptionError, match="20 or more"):
        make_reference(said[:3])
    for text in ("", "[]", '{"format": "x", "version": 1}', '{"format": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(OptionError, match="no reference"):
            read_reference(tmp_path / "bad.json")


def test_few_notes_and_no_notes():
    few = Performance.from_arrays(np.arange(12.0), np.arange(12.0) + 0.5, pitch=[60] * 12)
    said = assess(few)
    assert not any(each.assessed for each in said)
    assert "12 notes" in said["togetherness"].reason
    with pytest.raises(OptionError, match="no notes"):
        assess(Performance.from_arrays([], [], pitch=[]))
    for source in (None, 3, ["a.mid"]):
        with pytest.raises(OptionError):
            assess(source)


def test_written_music_is_no_performance():
    on = 0.25 * np.arange(80)
    said = assess(Performance.from_arrays(on, on + 0.2, pitch=60 + np.arange(80) % 7))
    assert any("not a performance" in remark for remark in said.remarks)
    assert "grid" in said["steadiness"].reason


def test_what_a_transcription_does_not_say_is_not_judged():
    take = played(piece(4))
    columns = (take.onset_s.tolist(), take.offset_s.tolist(), take.pitch.tolist())
    notes = tuple(Note(a, b, p, 100) for a, b, p in zip(*columns, strict=True))
    for model, exact in (("default", False), ("magenta_mt3", True)):
        said = assess(Transcription(notes, (), 90.0, model, ""))
        assert said.source == "audio"
        assert said.known == ("timing",)
        assert said["togetherness"].assessed is exact
        reasons = {m.name: m.reason for m in said.measures}
        assert "velocities" in reasons["velocity_mean"]
        assert "pedal" in reasons["pedal_share"]


def test_audio_is_transcribed_first(tmp_path):
    import soundfile

    rate = 16_000
    time = np.arange(2 * rate) / rate
    low = 0.2 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    notes = tuple(Note(0.1 * i, 0.1 * i + 0.09, 60 + i % 5, 100) for i in range(40))
    model = SimpleNamespace(transcribe_notes=lambda path: Transcription(notes, (), 4.0, "tiny", ""))
    soundfile.write(tmp_path / "narrow.wav", low, rate)
    said = assess(tmp_path / "narrow.wav", model=model)
    assert any("4.2 kHz" in remark for remark in said.remarks)
    hiss = low + 0.05 * np.random.default_rng(1).standard_normal(len(low)).astype(np.float32)
    soundfile.write(tmp_path / "full.wav", hiss, rate)
    assert not any("4.2 kHz" in r for r in assess(tmp_path / "full.wav", model=model).remarks)
    assert any("model tiny" in remark for remark in said.remarks)


def run(capsys, *arguments):
    code = main(["assess", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_writes_a_table_and_json(folder, tmp_path, capsys):
    code, out, _ = run(capsys, folder / "clean.mid", "--score", folder / "score.mid", "--measures")
    assert code == 0
    assert "wrong_notes" in out
    assert "80 % interval" in out
    assert "velocity_mean" in out
    takes = [folder / "wrong.mid", folder / "clean.mid"]
    code, out, _ = run(capsys, *takes, "--score", folder / "score.mid", "--compare", "--json")
    said = json.loads(out)
    assert (said["format"], said["version"], code) == ("mt3-runtime.assessment", 1, 0)
    assert [take["name"] for take in said["takes"]] == ["wrong.mid", "clean.mid"]
    assert said["comparisons"][0]["takes"][1]["place"] == 1
    code, out, _ = run(capsys, *takes, "--compare", "-o", tmp_path / "out.txt")
    assert (code, out) == (0, "")
    assert "better than another" in (tmp_path / "out.txt").read_text()


def test_the_command_draws(folder, tmp_path, capsys):
    spoiled = degraded(play(make_piece(7, quarters=64), 7), "missing", 1.0, seed=2)
    (tmp_path / "a<b.mid").write_bytes(midi_bytes(spoiled))
    pictures = ["--svg", tmp_path / "bars.svg", "--roll", tmp_path / "roll.svg"]
    code, _, _ = run(capsys, tmp_path / "a<b.mid", "--score", folder / "score.mid", *pictures, "-q")
    assert code == 0
    for name, most in (("bars.svg", 200), ("roll.svg", 5000)):
        root = ET.parse(tmp_path / name).getroot()
        assert root.tag.endswith("svg")
        assert 10 < len(list(root)) < most
    assert 'fill="none"' in (tmp_path / "roll.svg").read_text()  # missing notes are hollow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.mid"], "cannot read"),
        (["clean.mid", "--compare"], "two or more"),
        (["clean.mid", "wrong.mid", "--roll", "x.svg"], "one take"),
        (["clean.mid", "--score", "score.pdf"], "suffix"),
        (["clean.mid", "--style", "nowhere"], "no bundle"),
        (["clean.mid", "--reference", "nowhere"], "cannot read"),
        (["clean.mid", "--threads", "0"], "--threads"),
        (["clean.mid", "--svg", "x", "--roll", "x"], "one file"),
        (["clean.mid", "--svg", "clean.mid"], "clean.mid"),
    ],
)
def test_mistakes_are_told_in_one_sentence(folder, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    code, out, err = run(capsys, *arguments)
    assert code != 0
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_one_bad_take_does_not_stop_the_others(folder, tmp_path, capsys):
    (tmp_path / "bad.mid").write_bytes(b"nothing")
    code, out, err = run(capsys, tmp_path / "bad.mid", folder / "clean.mid")
    assert code != 0
    assert "clean.mid" in out
    assert "bad.mid" in err


def request(upload, options, transcribe=None):
    return SimpleNamespace(upload=upload, options=options, model=None, transcribe=transcribe)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("_", "."), data)
    return path


def test_the_route_answers_what_the_command_writes(folder, tmp_path):
    upload = tmp_path / "0001"
    take, score = ((folder / name).read_bytes() for name in ("clean.mid", "score.mid"))
    upload.write_bytes(take)
    said = assess_upload(request(upload, {}))
    assert json.dumps(said)
    assert said["takes"][0]["dimensions"] == assess(folder / "clean.mid").to_dict()["dimensions"]
    both = assess_upload(request(zipped(upload, take_mid=take, score_mid=score), {}))
    assert both["takes"][0]["alignment"]["missing"] == 0
    same = document([assess(folder / "clean.mid", score=folder / "score.mid")])
    assert both["takes"][0]["dimensions"] == same["takes"][0]["dimensions"]
    upload.write_bytes(b"RIFF....WAVE")
    notes = tuple(Note(0.1 * i, 0.1 * i + 0.05, 60, 100) for i in range(40))
    heard = assess_upload(request(upload, {}, lambda: Transcription(notes, (), 4.0, "tiny", "")))
    assert heard["takes"][0]["source"] == "audio"


def test_the_route_refuses_other_zips_and_names_no_folder(folder, tmp_path, monkeypatch):
    upload, take = tmp_path / "0001", (folder / "clean.mid").read_bytes()
    bad = ({"take_mid": take}, {"score_mid": take}, {"take_mid": b"x", "score_mid": take},
           {"take_mid": take, "score_xml": "<a/>"}, {"a_mid": take, "b_mid": take})  # fmt: skip
    for files in bad:
        with pytest.raises(OptionError) as error:
            assess_upload(request(zipped(upload, **files), {}))
        assert "/tmp" not in str(error.value)
    for data in (b"PK nothing", b"MThd"):
        upload.write_bytes(data)
        with pytest.raises(OptionError) as error:
            assess_upload(request(upload, {}))
        assert str(tmp_path) not in str(error.value)
    with pytest.raises(OptionError, match="no option"):
        assess_upload(request(upload, {"score": "x"}))
    monkeypatch.setattr(assess_route, "MAX_MEMBER", 100)
    with pytest.raises(OptionError, match="unpacks to more"):
        assess_upload(request(zipped(upload, take_mid=take, score_mid=take), {}))


def test_help_and_imports_stay_light():
    assert AssessCommand.name == "assess"
    heavy = ("scipy", "onnxruntime", "mido", "soundfile", "lxml")
    module = "mt3_analysis.assessment.performance_assessment"
    code = f"import sys, {module}; sys.exit(any(n in sys.modules for n in {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
