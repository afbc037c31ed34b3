"""The models for Triton without Triton: the repository, the self-test, answers, cancellation."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.engine import Engine
from mt3_runtime.errors import BundleError, OptionError, OutputError
from mt3_runtime.files.formats import render
from mt3_runtime.loading import load_model
from mt3_server.triton_models.repository import MODELS, Settings, write_repository
from mt3_server.triton_models.tensors import (
    TritonEnvironmentError,
    as_tensor,
    check_environment,
    read_bytes,
)
from mt3_server.triton_models.triton_instance import TritonPythonModel, device_of
from mt3_server.triton_models.triton_service import Decoupled, KeptEngine, Single
from tests.pace import HANGS, until
from tests.server import fake_triton as pb
from tests.server.fake_triton import Request


@pytest.fixture(scope="module")
def model(tiny_bundle):
    with load_model(tiny_bundle, threads=2) as loaded:
        yield loaded


@pytest.fixture
def kept(model):
    engine = KeptEngine(model, 0)
    yield engine
    engine.close()


@pytest.fixture
def decoupled(kept):
    service = Decoupled(pb, kept)
    yield service
    service.close()


def wav(samples, rate=16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def clip(audio) -> bytes:
    return wav(audio[:60_000])


# --- the repository


def test_a_repository_has_two_models_with_the_bundle_each(tiny_bundle, tmp_path):
    folders = write_repository(tiny_bundle, tmp_path / "repo", Settings("cuda", 3, 2, 4, 9))
    assert [folder.name for folder in folders] == list(MODELS)
    for folder in folders:
        text = (folder / "config.pbtxt").read_text("utf-8")
        assert f'name: "{folder.name}"' in text
        assert f"decoupled: {str(folder.name == 'mt3_stream').lower()}" in text
        assert "count: 2 kind: KIND_GPU" in text
        assert "max_queue_size: 9" in text
        assert 'key: "threads" value { string_value: "3" }' in text
        assert 'key: "readers" value { string_value: "4" }' in text
        copied = Bundle(folder / "1" / "bundle")
        assert copied.manifest == Bundle(tiny_bundle).manifest
        assert copied.manifest.export_id in text
        for graph in copied.manifest.graphs:
            copied.data(graph)
        compile((folder / "1" / "model.py").read_text("utf-8"), "model.py", "exec")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["repo"], "nothing is left beside it"


def test_nothing_is_replaced_or_half_written(tiny_bundle, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_repository(tiny_bundle, tmp_path / "there", Settings())
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in tiny_bundle.iterdir():
        data = path.read_bytes()
        (damaged / path.name).write_bytes(data if path.suffix == ".json" else data[:-1] + b"?")
    with pytest.raises(BundleError):
        write_repository(damaged, tmp_path / "repo", Settings())
    assert not (tmp_path / "repo").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged", "there"]


@pytest.mark.parametrize(
    "wrong",
    [{"device": "cuda:0"}, {"threads": 0}, {"instances": 0}, {"readers": -1}, {"queue": 0},
     {"queue": 10**6}, {"instances": True}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        Settings(**wrong)


def test_the_command_prints_the_folders(tiny_bundle, tmp_path, capsys):
    words = ["triton", str(tiny_bundle), "-o", str(tmp_path / "repo")]
    assert main(words) == ExitCode.OK
    told = capsys.readouterr()
    assert told.out.splitlines() == [str(tmp_path / "repo" / name) for name in MODELS]
    assert "--model-repository" in told.err
    assert main(words) == ExitCode.FAILED
    assert main([*words[:2], "-o", ""]) == ExitCode.USAGE
    assert main([*words[:2], "-o", str(tmp_path / "x"), "--instances", "0"]) == ExitCode.USAGE
    assert main(["triton", str(tmp_path / "none"), "-o", str(tmp_path / "y")]) == ExitCode.UNUSABLE


# --- the self-test


class Zeros(pb.Tensor):
    @classmethod
    def from_dlpack(cls, name, array):
        return cls(name, np.zeros_like(array))


class Nothing(pb.Tensor):
    @classmethod
    def from_dlpack(cls, name, array):
        return cls(name, array[:, :0].copy())


class Raising(pb.Tensor):
    @classmethod
    def from_dlpack(cls, name, array):
        raise RuntimeError("unknown capsule")


class Module:
    def __init__(self, tensor) -> None:
        self.Tensor = tensor


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (Zeros, "of 5000 bytes 5000 came back, 4980 of them wrong"),
        (Nothing, "of 5000 bytes 0 came back"),
        (Raising, "do not cross by DLPack .RuntimeError: unknown capsule"),
    ],
)
def test_an_environment_that_changes_tensors_is_refused_by_name(tensor, said):
    with pytest.raises(TritonEnvironmentError, match=said) as caught:
        check_environment(Module(tensor))
    assert sys.executable in str(caught.value)
    assert "pip install" in str(caught.value)


@pytest.mark.parametrize("version", ["1.26.4", "1.9.0", "0.1"])
def test_an_old_numpy_is_refused_before_it_can_end_the_process(version, monkeypatch):
    monkeypatch.setattr(np, "__version__", version)
    with pytest.raises(TritonEnvironmentError, match=f"NumPy is {version}, and mt3-runtime needs"):
        check_environment(Module(None))


def test_no_numpy_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(TritonEnvironmentError, match="NumPy cannot be imported"):
        check_environment(Module(None))


def test_a_good_environment_passes():
    check_environment(pb)
    assert as_tensor(pb, "X", b"abc").bytes() == b"abc"


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 3), np.uint8), r"uint8 \[2, 3\]"),
        (np.zeros((1, 3), np.float32), r"float32 \[1, 3\]"),
        (np.zeros((1, 2, 2), np.uint8), r"uint8 \[1, 2, 2\]"),
    ],
)
def test_other_tensors_are_refused(array, said):
    request = Request()
    request.tensors["AUDIO"] = pb.Tensor("AUDIO", array)
    with pytest.raises(ValueError, match=said):
        read_bytes(pb, request, "AUDIO")
    assert read_bytes(pb, request, "OPTIONS") == b""


@pytest.mark.parametrize(
    ("name", "kind", "device"),
    [("cuda", "GPU", "cuda:3"), ("tensorrt", "KIND_GPU", "tensorrt:3"), ("cpu", "CPU", "cpu"),
     ("cuda:1", "GPU", "cuda:1")],
)  # fmt: skip
def test_triton_says_which_gpu(name, kind, device):
    told = {"model_instance_kind": kind, "model_instance_device_id": "3"}
    assert device_of(name, told) == device


# --- answers


def opened(repository: Path, name: str) -> TritonPythonModel:
    """An instance, given what Triton gives."""
    text = (repository / name / "config.pbtxt").read_text("utf-8")
    keys = [line.split('"') for line in text.splitlines() if line.startswith("parameters")]
    config = {
        "parameters": {parts[1]: {"string_value": parts[3]} for parts in keys},
        "model_transaction_policy": {"decoupled": "decoupled: true" in text},
    }
    instance = TritonPythonModel()
    instance.initialize(
        {"model_config": json.dumps(config), "model_repository": str(repository / name),
         "model_version": "1", "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    )  # fmt: skip
    return instance


@pytest.mark.parametrize("name", MODELS)
def test_an_instance_answers_as_a_call_does(name, tiny_bundle, tmp_path, model, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb)
    write_repository(tiny_bundle, tmp_path / "repo", Settings(threads=1))
    instance = opened(tmp_path / "repo", name)
    try:
        requests = [Request(clip), Request(clip, b'{"format": "midi"}'), Request(b"RIFF nothing")]
        answers = instance.execute(requests)
        if name == "mt3_stream":
            assert answers is None
            assert all(request.sender.final.wait(HANGS) for request in requests)
            answers = [request.sender.sent[-1] for request in requests]
    finally:
        instance.finalize()
    alone = model.transcribe_notes(io.BytesIO(clip))
    assert answers[0].outputs["NOTES"] == render(alone, "json")
    assert json.loads(answers[0].outputs["SUMMARY"])["token_digest"] == alone.token_digest
    assert answers[1].outputs["NOTES"] == render(alone, "midi")
    assert "AudioError" in str(answers[2].error)
    assert answers[2].error.code == pb.TritonError.INVALID_ARG


def test_another_bundle_in_its_place_is_refused(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", pb)
    write_repository(tiny_bundle, tmp_path / "repo", Settings(threads=1))
    path = tmp_path / "repo" / "mt3" / "config.pbtxt"
    export_id = Bundle(tiny_bundle).manifest.export_id
    path.write_text(path.read_text("utf-8").replace(export_id, "0" * 32), encoding="utf-8")
    with pytest.raises(BundleError, match=f"is export {export_id}, and config.pbtxt"):
        opened(tmp_path / "repo", "mt3")


def test_events_come_segment_by_segment(decoupled, model, clip):
    request = Request(clip, b'{"format": "events"}')
    decoupled.execute([request])
    assert request.sender.final.wait(HANGS)
    *parts, last = request.sender.sent
    alone = model.transcribe_notes(io.BytesIO(clip))
    assert len(parts) >= len(alone.segments)
    items = [json.loads(line) for part in parts for line in part.outputs["NOTES"].splitlines()]
    begun = {item["number"] for item in items if item["type"] == "note_on"}
    assert begun == {item["number"] for item in items if item["type"] == "note_off"}
    done = json.loads(last.outputs["NOTES"])
    assert done["token_digest"] == alone.token_digest
    assert done["result"]["notes"] == json.loads(render(alone, "json"))["notes"]


def test_an_empty_result_is_a_line_end(decoupled):
    request = Request(wav(np.zeros(16_000, np.float32)), b'{"format": "jsonl", "exclude": "all"}')
    plain = Request(wav(np.zeros(16_000, np.float32)), b'{"format": "jsonl", "min_confidence": 1}')
    decoupled.execute([request, plain])
    assert request.sender.final.wait(HANGS)
    assert plain.sender.final.wait(HANGS)
    assert plain.sender.sent[-1].outputs["NOTES"] == b"\n"


@pytest.mark.parametrize(
    ("audio", "options", "said"),
    [
        (b"", b"", "AUDIO is empty"),
        (None, b"", "AUDIO is empty"),
        (b"RIFF", b"{", "no JSON object"),
        (b"RIFF", b"[]", "no JSON object"),
        (b"RIFF", b'{"formats": "midi"}', "no option 'formats'"),
        (b"RIFF", b'{"format": "mp3"}', "expected one of midi"),
        (b"RIFF", b'{"min_confidence": true}', "min_confidence is True"),
        (b"RIFF", b'{"min_confidence": 7}', "min_confidence"),
        (b"RIFF", b'{"priority": "live"}', "priority"),
        (b"RIFF", b'{"deadline": -1}', "deadline"),
        (b"RIFF", b" " * 70_000, "at most 65536"),
    ],
)
def test_what_is_wrong_with_a_request_is_its_own(kept, decoupled, audio, options, said):
    single = Single(pb, kept).execute([Request(audio, options)])[0]
    request = Request(audio, options)
    decoupled.execute([request])
    assert request.sender.final.wait(HANGS)
    for answer in (single, request.sender.sent[-1]):
        assert said in str(answer.error)
        assert answer.error.code == pb.TritonError.INVALID_ARG


def test_whoever_goes_is_cancelled(kept, decoupled, audio):
    long = wav(np.tile(audio, 40))
    whole, told = Request(long), Request(long, b'{"format": "events"}')
    for request in (whole, told):
        decoupled.execute([request])
        until(lambda: kept.get().health().decoding > 0)
        request.sender.gone = True
        assert request.sender.final.wait(HANGS)
        assert request.sender.sent[-1].error.code == pb.TritonError.CANCELLED
    assert kept.get().health().recordings == 0
    gone = Request(long)
    gone.gone = True
    answers = Single(pb, kept).execute([gone, Request(wav(audio[:32_000]))])
    assert answers[0].error.code == pb.TritonError.CANCELLED
    assert answers[1].error is None


def test_closing_ends_what_is_under_way(kept, audio):
    service = Decoupled(pb, kept)
    request = Request(wav(np.tile(audio, 60)))
    service.execute([request])
    service.close()
    assert request.sender.final.wait(HANGS)
    assert request.sender.sent[-1].error.code == pb.TritonError.CANCELLED


def test_a_failed_device_gets_another_engine(kept, clip):
    broken = kept.get()
    broken._error = RuntimeError("the device is gone")
    assert isinstance(kept.get(), Engine)
    assert kept.get() is not broken
    assert Single(pb, kept).execute([Request(clip)])[0].error is None


def test_a_full_engine_is_unavailable(kept, clip, monkeypatch):
    monkeypatch.setattr(kept.get(), "_most", 0)
    answer = Single(pb, kept).execute([Request(clip)])[0]
    assert answer.error.code == pb.TritonError.UNAVAILABLE
