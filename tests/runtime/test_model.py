"""The whole way from samples to notes on the small network, and its promises."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

import mt3_runtime
from mt3_runtime.audio.log_mel import FeatureExtractor
from mt3_runtime.audio.segments import cut
from mt3_runtime.backends import devices, ort_cpu
from mt3_runtime.backends.ort_gpu.ort_cuda import OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.diagnostics import wheels
from mt3_runtime.errors import (
    BundleNotFoundError,
    DeviceError,
    MissingDependencyError,
    OptionError,
)
from mt3_runtime.loading import clear_cache, load_model, transcribe
from mt3_runtime.model import Model, token_digest
from mt3_runtime.transcription import Progress
from tests import reference_t5
from tests.pace import HANGS

Audio = npt.NDArray[np.float32]


def test_tokens_equal_the_reference_network(tiny_model: Model, tiny_weights, audio: Audio) -> None:
    """Greedy decoding through slots and caches against whole-sequence float64 arithmetic."""
    features = tiny_model.preprocess(audio)
    assert features.shape == (5, 256, 512)
    found = tiny_model.forward(features)
    encoded = reference_t5.encode(tiny_weights, features)
    for row, sequence in enumerate(found):
        length = min(len(sequence.tokens), 40)
        read = np.concatenate([[0], sequence.tokens[: length - 1]])[np.newaxis]
        logits = reference_t5.teacher_forced(tiny_weights, encoded[row : row + 1], read)
        assert logits[0].argmax(-1).tolist() == sequence.tokens[:length].tolist()


def test_preprocess_is_cut_and_extract(tiny_model: Model, audio: Audio) -> None:
    extract = FeatureExtractor(tiny_model.info.features)
    expected = [extract(segment.samples) for segment in cut([audio], tiny_model.info.segments)]
    assert np.array_equal(tiny_model.preprocess(audio), np.stack(expected))


def test_the_three_thirds_make_the_whole(tiny_model: Model, audio: Audio) -> None:
    tokens = tiny_model.forward(tiny_model.preprocess(audio))
    whole = tiny_model.transcribe_notes(audio, auto_filter=False)
    assert tiny_model.assemble(tokens) == whole.notes
    assert token_digest(tokens) == whole.token_digest
    assert [report.index for report in whole.segments] == [0, 1, 2, 3, 4]
    assert whole.duration == pytest.approx(9.0)
    by_parts, at_once = tiny_model.decode(tokens), whole.to_midi()
    assert [list(t) for t in by_parts.tracks] == [list(t) for t in at_once.tracks]


@pytest.mark.parametrize("profile", ["cpu", "portable", "compat"])
@pytest.mark.parametrize("decoding", ["greedy", "t5x"])
def test_results_do_not_depend_on_batching(
    tiny_bundle: Path, audio: Audio, profile: str, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens and log-probabilities for every mix of slots, threads and neighbours."""
    reference = None
    for slots, threads in ((1, 1), (2, 1), (3, 2), (8, 4)):
        monkeypatch.setattr(ort_cpu, "SLOTS", slots)
        model = load_model(tiny_bundle, threads=threads, profile=profile, decoding=decoding)
        features = model.preprocess(audio)
        found = model.forward(features)
        alone = [model.forward(features[i : i + 1])[0] for i in range(len(features))]
        reference = reference or found
        for expected, *others in zip(reference, found, alone, strict=True):
            for other in others:
                assert other.tokens.tolist() == expected.tokens.tolist()
                np.testing.assert_allclose(other.log_probs, expected.log_probs, atol=1e-4)


def test_all_profiles_give_the_same_tokens(tiny_bundle: Path, audio: Audio) -> None:
    digests = {
        load_model(tiny_bundle, profile=profile).transcribe_notes(audio).token_digest
        for profile in ("cpu", "portable", "compat")
    }
    assert len(digests) == 1


def test_long_segments_outgrow_the_first_capacity(tiny_model: Model, audio: Audio) -> None:
    """Caches double twice for the longest segment."""
    sequences = tiny_model.forward(tiny_model.preprocess(audio))
    assert max(len(sequence.tokens) for sequence in sequences) > 2 * ort_cpu.INITIAL_CAPACITY


def test_a_truncated_segment_is_reported_and_kept(
    tiny_bundle: Path, audio: Audio, tmp_path: Path
) -> None:
    """With a token limit of 20 no segment of this network reaches its end."""
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "short"))
    document = json.loads((path / "bundle.json").read_bytes())
    document["decoding"]["max_tokens"] = 20
    document["notes"]["quirks"] = ["empty_without_eos"]
    (path / "bundle.json").write_text(json.dumps(document))
    model = load_model(path)
    result = model.transcribe_notes(audio)
    assert [report.token_count for report in result.segments] == [20] * 5
    assert all(report.truncated for report in result.segments)
    assert result.notes
    assert any(
        "reached the token limit before they ended: 5" in sentence for sentence in result.warnings
    )
    upstream = model.transcribe_notes(audio, upstream_quirks=True)
    assert upstream.token_digest == result.token_digest
    assert upstream.notes == ()
    assert any("imitate the original: 100" in sentence for sentence in upstream.warnings)


def test_progress_covers_the_recording(tiny_model: Model, audio: Audio) -> None:
    seen: list[Progress] = []
    tiny_model.transcribe_notes(audio, progress=seen.append)
    assert [round(p.seconds_done, 2) for p in seen] == [2.04, 4.09, 6.14, 8.19, 9.0]
    assert all(p.seconds_total == pytest.approx(9.0) for p in seen)
    assert seen[-1].notes >= seen[0].notes


def test_stream_yields_the_same_notes(tiny_model: Model, audio: Audio) -> None:
    expected = sorted(tiny_model.transcribe_notes(audio).notes)
    assert sorted(tiny_model.stream(audio)) == expected
    blocks = (audio[at : at + 1000] for at in range(0, len(audio), 1000))
    assert sorted(tiny_model.stream(blocks, sr=16000)) == expected
    listed = [audio[:5000], audio[5000:]]
    assert sorted(tiny_model.stream(listed, sr=16000, live=True)) == expected


def test_stream_yields_before_the_input_ends(tiny_model: Model, audio: Audio) -> None:
    gate = threading.Event()

    def blocks() -> Iterator[Audio]:
        yield audio[:70000]
        assert gate.wait(HANGS)
        yield audio[70000:]

    notes = tiny_model.stream(blocks(), sr=16000)
    first = next(notes)
    assert first.onset < 70000 / 16000
    assert not gate.is_set()
    gate.set()
    assert len(list(notes)) > 0


def test_memory_does_not_grow_with_the_input(tiny_model: Model, audio: Audio) -> None:
    """Input is pulled as segments complete, not read ahead without bound."""
    pulled = 0

    def blocks() -> Iterator[Audio]:
        nonlocal pulled
        while True:
            pulled += 1
            yield audio

    notes = tiny_model.stream(blocks(), sr=16000)
    first = list(itertools.islice(notes, 3))
    notes.close()  # type: ignore[attr-defined]
    assert len(first) == 3
    assert pulled < 20


def test_several_threads_share_a_model(tiny_model: Model, audio: Audio) -> None:
    expected = tiny_model.transcribe_notes(audio).token_digest
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(tiny_model.transcribe_notes(audio).token_digest)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


def test_transcribe_keeps_its_model(tiny_bundle: Path, audio: Audio, monkeypatch) -> None:
    clear_cache()
    loads = []
    monkeypatch.setattr(
        "mt3_runtime.loading.load_model", lambda *a, **k: loads.append(a) or load_model(*a, **k)
    )
    first = transcribe(audio, tiny_bundle, sr=16000)
    second = mt3_runtime.transcribe(audio, model=tiny_bundle, sr=16000, auto_filter=False)
    assert len(loads) == 1
    assert len(first.tracks) == len(second.tracks)
    clear_cache()
    with load_model(tiny_bundle) as model:
        third = transcribe(audio, model)
    assert [list(t) for t in third.tracks] == [list(t) for t in first.tracks]
    assert len(loads) == 1


def test_saving_by_suffix(tiny_model: Model, audio: Audio, tmp_path: Path) -> None:
    result = tiny_model.transcribe_notes(audio)
    for suffix, start in ((".mid", b"MThd"), (".json", b"{"), (".csv", b"onset"), (".jsonl", b"{")):
        path = result.save(tmp_path / f"x{suffix}")
        assert path.read_bytes().startswith(start)
    assert str(len(result.notes)) in result.summary()


def test_only_the_instruments_asked_for_are_found(tiny_model: Model, audio: Audio) -> None:
    """In all calls alike; the small network knows one drum, and a bit of piano."""
    free = tiny_model.transcribe_notes(audio)
    assert {note.pitch for note in free.notes if note.is_drum} > {89}
    line_up = {"instruments": ["bass", "drums"], "exclude": [33]}
    found = tiny_model.transcribe_notes(audio, **line_up)
    assert found.notes
    assert found.token_digest != free.token_digest
    assert tiny_model.transcribe_notes(audio, exclude="drums").notes == ()
    assert len(list(tiny_model.stream(audio, **line_up))) == len(found.notes)
    tokens = tiny_model.forward(tiny_model.preprocess(audio), **line_up)
    assert token_digest(tokens) == found.token_digest
    assert tiny_model.transcribe(audio, **line_up).tracks == found.to_midi().tracks
    assert transcribe(audio, tiny_model, **line_up).tracks == found.to_midi().tracks


def test_grammar_in_all_calls(tiny_model: Model, audio: Audio) -> None:
    """That it leaves nothing invalid is tested elsewhere; this network was never taught to tie."""
    free = tiny_model.transcribe_notes(audio)
    assert any(report.invalid_events and report.missing_tie for report in free.segments)
    found = tiny_model.transcribe_notes(audio, grammar=True)
    for report in found.segments:
        assert report.dropped_events == 0
        assert report.truncated or not report.missing_tie
    assert len(list(tiny_model.stream(audio, grammar=True))) == len(found.notes)
    tokens = tiny_model.forward(tiny_model.preprocess(audio), grammar=True)
    assert token_digest(tokens) == found.token_digest
    masked = tiny_model.transcribe_notes(audio, grammar=True, instruments=[*range(128), "drums"])
    assert masked.token_digest == found.token_digest


def test_unsure_notes_are_left_out_and_counted(tiny_bundle: Path, audio: Audio, tmp_path) -> None:
    """By the bundle's own calibration, in all calls that make notes."""
    path = tmp_path / "calibrated"
    shutil.copytree(tiny_bundle, path)
    document = json.loads((path / "bundle.json").read_text())
    half = {"bias": 0.0, "onset": 0.0, "pitch": 0.5, "program": 0.0, "offset": 0.0}
    document["confidence"] = {"pitched": half, "drums": half}
    (path / "bundle.json").write_text(json.dumps(document))
    with load_model(path) as model:
        whole = model.transcribe_notes(audio)
        for note in whole.notes:
            odds = note.probabilities.pitch / (1 - note.probabilities.pitch)
            assert note.confidence == pytest.approx(odds**0.5 / (1 + odds**0.5), abs=1e-6)
        middle = sorted(note.confidence for note in whole.notes)[len(whole.notes) // 2]
        found = model.transcribe_notes(audio, min_confidence=middle - 1e-4)
        assert 0 < found.removed_notes == len(whole.notes) - len(found.notes)
        assert f"less {found.removed_notes} unsure ones" in found.summary()
        assert whole.removed_notes == 0
        assert "unsure" not in whole.summary()
        assert len(list(model.stream(audio, min_confidence=middle - 1e-4))) == len(found.notes)
        thirds = model.assemble(model.forward(model.preprocess(audio)))
        assert [n.confidence for n in thirds] == pytest.approx([n.confidence for n in whole.notes])
        (many,) = model.transcribe_many([audio], min_confidence=middle - 1e-4)
        assert many.removed_notes == found.removed_notes
        with pytest.raises(OptionError, match="min_confidence is 2"):
            model.transcribe(audio, min_confidence=2)


def test_notes_get_the_program_that_was_asked_for(tiny_bundle: Path, audio, tmp_path) -> None:
    """Where the model says one program for several; this network knows drums and program 0."""
    path = tmp_path / "grouped"
    shutil.copytree(tiny_bundle, path)
    document = json.loads((path / "bundle.json").read_text())
    document["notes"] |= {"program_groups": [[0, 1, 2, 3]], "ties": False}
    (path / "bundle.json").write_text(json.dumps(document))
    with load_model(path) as model:
        own = {note.program for note in model.transcribe_notes(audio, exclude="drums").notes}
        assert 0 in own
        found = model.transcribe_notes(audio, instruments=[2, 3])
        assert {note.program for note in found.notes} == {2}


def test_all_instruments_are_as_none(tiny_bundle: Path, audio: Audio) -> None:
    for profile in ("cpu", "compat"):
        with load_model(tiny_bundle, profile=profile) as model:
            free = model.transcribe_notes(audio).token_digest
            every = {"instruments": [*range(128), "drums"]}
            assert model.transcribe_notes(audio, **every).token_digest == free
            assert model.transcribe_notes(audio, exclude=[]).token_digest == free


@pytest.mark.parametrize("call", ["transcribe", "transcribe_notes", "stream", "forward"])
def test_unknown_instruments_are_refused_at_the_door(tiny_model: Model, call: str) -> None:
    with pytest.raises(OptionError, match="did you mean violin"):
        getattr(tiny_model, call)(np.zeros(16000, np.float32), instruments=["vioiln"])


@pytest.mark.parametrize("shape", [(), (256, 512), (1, 255, 512), (1, 256, 511)])
def test_features_of_another_shape_are_refused(tiny_model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"\[segments, 256, 512\]"):
        tiny_model.forward(np.zeros(shape, np.float32))


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**11])
def test_strange_threads_are_refused(tiny_bundle: Path, threads) -> None:
    with pytest.raises(OptionError, match="threads must be a number from 1 to 1024"):
        load_model(tiny_bundle, threads=threads)


@pytest.mark.parametrize("profile", ["", "gpu", 3])
def test_strange_profiles_are_refused(tiny_bundle: Path, profile) -> None:
    with pytest.raises(OptionError, match="cpu, portable, compat"):
        load_model(tiny_bundle, profile=profile)


def test_a_closed_model_says_so(tiny_bundle: Path, audio: Audio) -> None:
    with load_model(tiny_bundle) as model:
        features = model.preprocess(audio)
    model.close()
    assert "ONNX Runtime" in model.device
    for call in (lambda: model.forward(features), lambda: model.transcribe(audio)):
        with pytest.raises(OptionError, match="was closed"):
            call()


def test_a_lone_segment_uses_all_threads(tiny_bundle: Path, audio: Audio) -> None:
    """It gets sessions of its own, and gives the tokens it gives among others."""
    model = load_model(tiny_bundle, threads=3)
    features = model.preprocess(audio)
    together = model.forward(features)
    assert list(model._backend._sessions) == [1]
    alone = [model.forward(features[i : i + 1])[0] for i in range(len(features))]
    assert list(model._backend._sessions) == [1, 3]
    assert token_digest(alone) == token_digest(together)
    live = list(model.stream(iter([audio]), sr=16000))
    assert sorted(live) == sorted(model.transcribe_notes(audio).notes)


def test_options_are_checked_at_the_door(tiny_bundle: Path, tiny_model: Model) -> None:
    for strange in (5, b"x"):
        with pytest.raises(OptionError, match="path or a name"):
            load_model(strange)
    with pytest.raises(OptionError, match="greedy, t5x"):
        tiny_model.transcribe_notes(np.zeros(9, np.float32), decoding="")
    with pytest.raises(OptionError, match="what forward"):
        tiny_model.decode([1])
    with pytest.raises(OptionError, match="greedy, t5x"):
        load_model(tiny_bundle, decoding="beam")  # type: ignore[arg-type]
    with pytest.raises(BundleNotFoundError):
        load_model("no_such_model")


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:", "cuda:x", "CPU", "", None, 0])
def test_strange_devices_are_refused(tiny_bundle: Path, name: str) -> None:
    with pytest.raises(OptionError, match="cuda"):
        load_model(tiny_bundle, device=name)


def test_cuda_without_cuda_is_refused_with_the_remedy(tiny_bundle: Path) -> None:
    with pytest.raises(DeviceError, match=r"pip install .onnxruntime-gpu\[cuda,cudnn\]"):
        load_model(tiny_bundle, device="cuda:0")


def test_a_clash_of_wheels_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}
    monkeypatch.setattr(wheels, "installed", lambda: both)
    with pytest.raises(DeviceError) as caught:
        load_model(tiny_bundle, device="cuda")
    assert "onnxruntime 1.31.1, onnxruntime-gpu 1.30.0 are installed together" in str(caught.value)
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in str(caught.value)


class WithCuda:
    """ONNX Runtime as a GPU wheel presents itself, in front of the real one."""

    def __getattr__(self, name: str) -> object:
        return getattr(onnxruntime, name)

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_auto_takes_a_gpu_that_works_and_tells_why_not(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "import_onnxruntime", WithCuda)
    caplog.set_level("INFO")
    here = DeviceSpec("CPUExecutionProvider", "cpu")
    on_gpu = partial(OrtCudaBackend, place=here)
    monkeypatch.setattr(devices, "OrtCudaBackend", on_gpu)
    assert "lanes" in load_model(tiny_bundle).device
    assert "lanes" in load_model(tiny_bundle, device="cuda").device
    assert "lanes" not in load_model(tiny_bundle, profile="compat").device
    with pytest.raises(OptionError, match="profile cpu does not run on device cuda"):
        load_model(tiny_bundle, device="cuda", profile="cpu")

    def refuse(*_: object, **__: object) -> None:
        raise DeviceError("no driver")

    monkeypatch.setattr(devices, "OrtCudaBackend", refuse)
    assert load_model(tiny_bundle).device.startswith("cpu (")
    assert "not using cuda:0, because: no driver" in caplog.text
    with pytest.raises(DeviceError, match="no driver"):
        load_model(tiny_bundle, device="cuda")


def test_a_hollow_onnxruntime_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(MissingDependencyError, match="hollow"):
        load_model(tiny_bundle)


def test_a_device_without_backend_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mt3_runtime.backends.devices.entry_points", lambda **_: ())
    with pytest.raises(DeviceError, match="no installed package provides"):
        load_model(tiny_bundle, device="tensorrt")
    absent = EntryPoint("tensorrt", "no_such_package.backend:open", "mt3_runtime.backends")
    monkeypatch.setattr("mt3_runtime.backends.devices.entry_points", lambda **_: (absent,))
    with pytest.raises(DeviceError, match=r"cannot be loaded .*no_such_package.* use device cpu"):
        load_model(tiny_bundle, device="tensorrt")


def test_no_onnxruntime_names_the_extra(tiny_bundle: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"extra \[cpu\]: pip install"):
        load_model(tiny_bundle)


BLOCKED = ("torch", "jax", "tensorflow", "transformers", "librosa", "scipy", "onnx", "msgpack")


def test_no_framework_is_needed(tiny_bundle: Path, audio: Audio, tmp_path: Path) -> None:
    """A transcription in a process where the frameworks cannot be imported."""
    np.save(tmp_path / "audio.npy", audio)
    script = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import numpy as np, mt3_runtime
midi = mt3_runtime.transcribe(np.load("audio.npy"), {str(tiny_bundle)!r}, sr=22050)
print(len(midi.tracks))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 1


# --- the leakage filter --------------------------------------------------------------------------


def test_the_filter_is_on_by_default_and_reports(tiny_model: Model, audio: Audio) -> None:
    raw = tiny_model.transcribe_notes(audio, auto_filter=False)
    assert (raw.leakage.filter, raw.leakage.kept) == ("none", len(raw.notes))
    result = tiny_model.transcribe_notes(audio)
    assert result.leakage.filter == "auto"
    assert result.leakage.notes == len(raw.notes)
    assert len(result.notes) == len(raw.notes) - result.leakage.removed
    assert result.token_digest == raw.token_digest
    assert tiny_model.transcribe_notes(audio, auto_filter=True) == result
    (one,) = tiny_model.transcribe_many([audio])
    assert one == result


def test_the_call_wins_over_the_model(tiny_bundle: Path, audio: Audio) -> None:
    """mt3-infer caches models without regard to this option: there the first call wins."""
    for kind in (True, False, "classic"):
        model = load_model(tiny_bundle, auto_filter=kind)
        for other in (None, True, False, "classic"):
            filtered = model.transcribe_notes(audio, auto_filter=other).leakage.filter
            wanted = kind if other is None else other
            assert filtered == {True: "auto", False: "none", "classic": "classic"}[wanted]
    ends = {
        kind: [len(t) for t in transcribe(audio, tiny_bundle, auto_filter=kind).tracks]
        for kind in (False, "classic", False)
    }
    clear_cache()
    assert ends[False] == [
        len(t) for t in model.transcribe_notes(audio, auto_filter=False).to_midi().tracks
    ]


def test_streams_are_filtered_as_well(tiny_model: Model, audio: Audio) -> None:
    raw = list(tiny_model.stream(audio, auto_filter=False))
    assert sorted(raw) == sorted(tiny_model.transcribe_notes(audio, auto_filter=False).notes)
    for kind in (True, "classic"):
        notes = list(tiny_model.stream(audio, auto_filter=kind))
        assert len(notes) <= len(raw)
        assert notes == list(tiny_model.stream(audio, auto_filter=kind))


@pytest.mark.parametrize("value", ["auto", 1, "off"])
def test_filters_nobody_knows_are_refused(tiny_bundle: Path, tiny_model: Model, value) -> None:
    silence = np.zeros(16000, np.float32)
    for call in (
        lambda: load_model(tiny_bundle, auto_filter=value),
        lambda: tiny_model.transcribe_notes(silence, auto_filter=value),
        lambda: tiny_model.transcribe_many([silence], auto_filter=value),
        lambda: tiny_model.stream(silence, auto_filter=value),
    ):
        with pytest.raises(OptionError, match="expected True, False or"):
            call()


def test_models_without_drums_are_not_filtered(tiny_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_bundle, tmp_path / "piano"))
    document = json.loads((path / "bundle.json").read_bytes())
    ranges = document["vocabulary"]["ranges"]
    document["vocabulary"]["ranges"] = [r for r in ranges if r["kind"] != "drum"]
    (path / "bundle.json").write_text(json.dumps(document))
    noise = np.random.default_rng(0).standard_normal(40000).astype(np.float32)
    result = load_model(path).transcribe_notes(0.1 * noise)
    assert result.leakage.filter == "none"


def test_smoothing_is_off_unless_it_is_asked_for(tiny_model: Model, audio: Audio) -> None:
    plain = tiny_model.transcribe_notes(audio)
    assert plain.smoothing.filter == "none"
    smoothed = tiny_model.transcribe_notes(audio, smooth=True)
    assert smoothed.smoothing.filter == "smooth"
    assert smoothed.smoothing.notes == len(plain.notes)
    assert [n.pitch for n in smoothed.notes if n.is_drum] == [
        n.pitch for n in plain.notes if n.is_drum
    ]
    (one,) = tiny_model.transcribe_many([audio], smooth=True)
    assert one == smoothed
    assert len(tiny_model.transcribe(audio, smooth=True).tracks) >= 1
