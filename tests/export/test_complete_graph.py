"""One graph of a whole model says what the runtime says: features, grammar, tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from mt3_export.bundle_writer import export_bundle
from mt3_export.graphs.front_end_graph import add_features
from mt3_export.graphs.graph_builder import Graph
from mt3_export.graphs.lint import lint
from mt3_export.graphs.order_graph import CanonicalMask, OrderState, add_ends
from mt3_export.single_file import export_single_file
from mt3_export.variants import Variant, variant_named
from mt3_export.weights import Weights
from mt3_runtime.audio.log_mel import FeatureConfig, FeatureExtractor
from mt3_runtime.audio.segments import SegmentConfig
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.cli import ExitCode, main
from mt3_runtime.decoding.canonical_order import CanonicalOrder
from mt3_runtime.errors import BundleError, CheckpointError, OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.models.shipped import shipped_models
from mt3_runtime.recording import span_of
from mt3_training.shipping.small_model import DEFAULT
from tests import needs
from tests.export.single_graph import decode
from tests.export.writers import write_t5x
from tests.families import with_channels
from tests.seeded import TINY, seeded_weights

SOURCE = {"layout": "seeded", "digest": "0" * 64}
RATE = 16000


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


# --- features ----------------------------------------------------------------------------------

CONFIGS = {
    "magenta": FeatureConfig(),
    "mr_mt3": FeatureConfig.mr_mt3(),
    "yourmt3_mel": FeatureConfig.yourmt3_mel(),
    "yourmt3_linear": FeatureConfig.yourmt3_linear(),
    "mt3_infer": FeatureConfig.mt3_infer(),
    "small": FeatureConfig(frames=30, hop=96, fft_size=480, bins=40, floor_rule="add"),
    "odd_stages": FeatureConfig(frames=9, hop=50, fft_size=362, bins=16),
}


def _sounds(length: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(5)
    noise = random.normal(0, 0.1, length)
    yield noise
    yield np.zeros(length)
    spectrum = np.fft.rfft(noise)  # nothing above 3 kHz, as an encoder leaves it
    spectrum[int(len(spectrum) * 3 / 8) :] = 0
    yield np.fft.irfft(spectrum, length)
    yield np.sin(np.arange(length) * 0.3) * (np.arange(length) < length // 3)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_features_in_a_graph_are_those_of_the_runtime(name: str) -> None:
    config = CONFIGS[name]
    extractor, length = FeatureExtractor(config), config.lengths.stop - 1
    graph = Graph("front_end", opset=24)
    samples = graph.input("samples", TensorProto.FLOAT, ["rows", length])
    graph.op("Identity", add_features(graph, config, samples, length), out="features")
    graph.output("features", TensorProto.FLOAT, ["rows", config.frames, config.bins])
    rows = np.stack(list(_sounds(length))).astype(np.float32)
    (found,) = _session(graph.build({})).run(None, {"samples": rows})
    expected = np.stack([extractor(row) for row in rows])
    # Two roundings of logarithms up to 16: the runtime's own distance from float64.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_rows_behind_a_short_segment_are_zero() -> None:
    config = FeatureConfig(frames=20, bins=64)
    length = config.frames * config.hop
    graph = Graph("front_end", opset=24)
    samples = graph.input("samples", TensorProto.FLOAT, ["rows", length])
    frames = graph.input("frames", TensorProto.INT64, ["rows"])
    features = add_features(graph, config, samples, length, frames=frames)
    graph.op("Identity", features, out="features")
    graph.output("features", TensorProto.FLOAT, ["rows", config.frames, config.bins])
    rows = np.random.default_rng(1).normal(0, 0.1, (3, length)).astype(np.float32)
    counts = np.array([1, 13, 20])
    for row, count in zip(rows, counts, strict=True):
        row[count * config.hop :] = 0
    (found,) = _session(graph.build({})).run(None, {"samples": rows, "frames": counts})
    for row, count, features_ in zip(rows, counts, found, strict=True):
        expected = FeatureExtractor(config)(row[: count * config.hop])
        np.testing.assert_allclose(features_, expected, rtol=0, atol=2e-6)
        assert not features_[count:].any()


# --- grammar -----------------------------------------------------------------------------------


def test_latest_times_are_those_of_the_runtime() -> None:
    count = 3000  # 100 minutes: the remainder by 0.01 rounds anew in each segment
    for segments in (SegmentConfig(), SegmentConfig(samples=16000), SegmentConfig(time_grid=None)):
        graph = Graph("ends", opset=24)
        index = graph.input("index", TensorProto.INT64, ["rows", 1])
        last = graph.input("last", TensorProto.BOOL, ["rows", 1])
        graph.op("Identity", add_ends(graph, segments, 100, index, last), out="ends")
        graph.output("ends", TensorProto.INT64, ["rows", 1])
        feeds = {
            "index": np.arange(count)[:, np.newaxis],
            "last": (np.arange(count) % 7 == 0)[:, np.newaxis],
        }
        (found,) = _session(graph.build({})).run(None, feeds)
        rules = _order(slots=1, segments=segments)
        spans = [span_of(segments, i, last=i % 7 == 0) for i in range(count)]
        assert found[:, 0].tolist() == [rules._steps_in(span) for span in spans]


def _order(slots: int, segments: SegmentConfig) -> CanonicalOrder:
    return CanonicalOrder(
        slots,
        vocabulary=DEFAULT.vocabulary,
        rules=DEFAULT.notes,
        allowed=np.ones(DEFAULT.vocabulary.size, np.bool_),
        initial_allowed=True,
        seconds=segments.samples / segments.sample_rate,
    )


def _grammar_step(bundle: Path) -> onnx.ModelProto:
    """Mask of a state, and the state after a token; without a token before, a start."""
    mask = CanonicalMask(Bundle(bundle).manifest)
    graph = Graph("order", opset=24)
    token = graph.input("token", TensorProto.INT64, ["rows", 1])
    fresh = graph.input("fresh", TensorProto.BOOL, [])
    first = graph.input("first", TensorProto.BOOL, ["rows", 1])
    end = graph.input("end", TensorProto.INT64, ["rows", 1])
    names = [f"state_{i}" for i in range(7)]
    for name, kind in zip(names, OrderState.types(), strict=True):
        graph.input(name, kind, ["rows", None])
    opened = mask.start(graph, graph.op("Shape", token, start=0, end=1))
    going = mask.advance(graph, OrderState(*names), token)
    after = []
    for a, b, kind in zip(opened.names(), going.names(), OrderState.types(), strict=True):
        wide = TensorProto.INT64
        x, y = (graph.op("Cast", name, to=wide) for name in (a, b))
        after.append(graph.op("Cast", graph.op("Where", fresh, x, y), to=kind))
    graph.op("Identity", mask.mask(graph, OrderState(*after), first, end), out="allowed")
    graph.output("allowed", TensorProto.BOOL, ["rows", DEFAULT.vocabulary.size])
    for name, value, kind in zip(names, after, OrderState.types(), strict=True):
        graph.op("Identity", value, out=f"after_{name}")
        graph.output(f"after_{name}", kind, ["rows", None])
    return graph.build({})


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_that_of_the_canonical_order(seed: int, orderly: Path) -> None:
    """Random walks through what is allowed, with short shifts so that segments get long."""
    random, rows, segments = np.random.default_rng(seed), 6, DEFAULT.segments
    session = _session(_grammar_step(orderly))
    order = _order(rows, segments)
    allowed = np.zeros((rows, DEFAULT.vocabulary.size), np.bool_)
    spans = [span_of(segments, i * 5, last=i == 3) for i in range(rows)]
    for slot, span in enumerate(spans):
        order.start(allowed, slot, span)
    feeds = {
        "token": np.zeros((rows, 1), np.int64),
        "fresh": np.array(True),
        "first": np.array([[span.index == 0] for span in spans]),
        "end": np.array([[order._steps_in(span)] for span in spans]),
    }
    state = [np.zeros((rows, 1), np.int64)] * 5
    state += [np.zeros((rows, 1), np.bool_), np.zeros((rows, 128 * 128 + 1), np.bool_)]
    for _ in range(120):
        feeds |= {f"state_{i}": value for i, value in enumerate(state)}
        found, *state = session.run(None, feeds)
        np.testing.assert_array_equal(found, allowed)
        tokens = np.array([_walk(random, row) for row in found])
        order.advance(allowed, tokens.astype(np.int32))
        feeds |= {"token": tokens[:, np.newaxis], "fresh": np.array(False)}


def _walk(random: np.random.Generator, allowed: np.ndarray) -> int:
    """A random token that may be said, rather a near than a far one, and not the end."""
    ids = np.flatnonzero(allowed)
    ids = ids[ids != 1] if len(ids) > 1 else ids
    kinds = np.searchsorted([3, 1004, 1132, 1134, 1135, 1263], ids, side="right")
    of_kind = ids[kinds == random.choice(np.unique(kinds))]
    return int(of_kind[min(int(random.exponential(3)), len(of_kind) - 1)])


# --- tokens ------------------------------------------------------------------------------------


def _limited(variant: Variant, tokens: int, **more: int) -> Variant:
    return replace(variant, decoding=replace(variant.decoding, max_tokens=tokens, **more))


VARIANTS: dict[str, Variant] = {
    "magenta_mt3": _limited(variant_named("magenta_mt3"), 200),
    "mr_mt3_context0": _limited(variant_named("mr_mt3_context0"), 100),
    "default": _limited(DEFAULT, 150),
    "two_tokens_at_least": _limited(variant_named("magenta_mt3"), 70, min_tokens=2),
}


def _export(path: Path, name: str, **how: object) -> Path:
    weights = seeded_weights(TINY, seed=21)
    export_bundle(weights, VARIANTS[name], path, source=SOURCE, **how)
    return path


@pytest.fixture(scope="module")
def orderly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _export(tmp_path_factory.mktemp("orderly") / "model", "default")


def _audio(samples: int) -> np.ndarray:
    random = np.random.default_rng(samples)
    time = np.arange(samples) / RATE
    pitches = 110 * 2 ** (random.integers(0, 36, 1 + samples // 4000) / 12)
    tone = np.sin(2 * np.pi * np.repeat(pitches, 4000)[:samples] * time)
    return (0.3 * tone + 0.01 * random.normal(size=samples)).astype(np.float32)


def _check(pair: Path, single: Path, audio: np.ndarray, *, rows: int = 8) -> int:
    """Compares all sequences of a recording, and returns how many tokens they have."""
    with load_model(pair, device="cpu") as model:
        expected = model.forward(model.preprocess(audio))
        found = decode(single, audio, rows=rows, extractor=FeatureExtractor(model.info.features))
    assert len(found) == len(expected)
    for (tokens, log_probs), sequence in zip(found, expected, strict=True):
        np.testing.assert_array_equal(tokens, sequence.tokens)
        np.testing.assert_allclose(log_probs, sequence.log_probs, rtol=0, atol=2e-3)
    return sum(len(tokens) for tokens, _ in found)


@pytest.mark.parametrize(
    ("name", "storage", "start"),
    [
        *((name, "fp16", "samples") for name in VARIANTS),
        ("default", "fp32", "features"),
        ("magenta_mt3", "fp32", "features"),
    ],
)
def test_tokens_are_those_of_the_runtime(name: str, storage, start, tmp_path: Path) -> None:
    pair = _export(tmp_path / "pair", name, storage=storage)
    single = tmp_path / "single"
    manifest = export_single_file(Bundle(pair), single, start=start)
    (graph,) = manifest.graphs
    assert graph.role == "complete"
    assert not lint(onnx.load(str(single / graph.file)))
    for samples in (129, 2 * 32768, 3 * 32768 + 128 * 77 + 5):
        assert _check(pair, single, _audio(samples), rows=3) > 0


def test_equal_bundles_give_equal_bytes(orderly: Path, tmp_path: Path) -> None:
    for name in ("a.mt3", "b.mt3"):
        export_single_file(Bundle(orderly), tmp_path / name)
    assert (tmp_path / "a.mt3").read_bytes() == (tmp_path / "b.mt3").read_bytes()


def test_a_damaged_body_is_found(orderly: Path, tmp_path: Path) -> None:
    (graph,) = export_single_file(Bundle(orderly), tmp_path / "single").graphs
    model = onnx.load(str(tmp_path / "single" / graph.file))
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    body.node[3].output[0] = body.node[2].output[0]
    assert any("used twice" in fault for fault in lint(model))


# --- the command -------------------------------------------------------------------------------


def test_the_command_makes_it_of_a_bundle(orderly: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "single.mt3"
    assert main(["export", str(orderly), "--single-file", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert Bundle(out).profiles == []
    assert _check(orderly, out, _audio(40000)) > 0


def test_the_command_makes_it_of_other_profiles_and_precision(tmp_path: Path) -> None:
    pair = _export(tmp_path / "pair", "magenta_mt3", profiles=("compat",), storage="fp32")
    arguments = ["export", str(pair), "--single-file", "features", "-o", str(tmp_path / "single")]
    assert main([*arguments, "--weights", "fp16", "--stem", "bass"]) == 0
    manifest = Bundle(tmp_path / "single").manifest
    assert (manifest.stem, str(manifest.precision)) == ("bass", "fp16-stored")
    assert manifest.graphs[0].inputs == ("features",)


def test_the_command_makes_it_of_a_checkpoint(tiny_weights: Weights, tmp_path: Path) -> None:
    write_t5x(tmp_path / "t5x", tiny_weights.tensors)
    arguments = ["export", str(tmp_path / "t5x"), "-o"]
    assert main([*arguments, str(tmp_path / "pair")]) == 0
    assert main([*arguments, str(tmp_path / "single"), "--single-file"]) == 0
    assert _check(tmp_path / "pair", tmp_path / "single", _audio(50000)) > 0


@pytest.mark.parametrize(
    "more",
    [[], ["-o", ""], ["-o", "x", "--profiles", "compat"], ["-o", "x", "--via", "torch"]],
    ids=["no-output", "empty-output", "profile", "route"],
)
def test_what_a_single_graph_cannot_be_is_refused(more, orderly: Path, capsys, tmp_path) -> None:
    arguments = ["export", str(orderly), "--single-file"]
    assert main([*arguments, *more]) == ExitCode.USAGE
    assert "--single-file" in capsys.readouterr().err


def test_models_with_other_parts_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    channels = with_channels(tiny_bundle, tmp_path / "channels", (1.0, 0.5))
    with pytest.raises(OptionError, match="channels"):
        export_single_file(Bundle(channels), tmp_path / "single")
    assert not (tmp_path / "single").exists()


def test_the_runtime_says_what_such_a_bundle_is_for(orderly: Path, tmp_path: Path) -> None:
    export_single_file(Bundle(orderly), tmp_path / "single")
    with pytest.raises(BundleError, match="without --single-file"):
        load_model(tmp_path / "single", device="cpu")
    with pytest.raises((BundleError, CheckpointError), match="without --single-file"):
        export_single_file(Bundle(tmp_path / "single"), tmp_path / "again")


# --- real models -------------------------------------------------------------------------------


def test_the_shipped_model(tmp_path: Path) -> None:
    if "default" not in shipped_models():
        needs.missing("default-model", "the package was built without it")
    pair = shipped_models()["default"]
    export_single_file(Bundle(pair), tmp_path / "single")
    audio = load_audio(needs.ROOT / "calibration" / "demo" / "demo.flac", target_rate=RATE)
    assert _check(pair, tmp_path / "single", audio) == 717


def test_the_shipped_model_on_a_recording_with_a_cut_off(tmp_path: Path) -> None:
    """An MP3: the recording on which a spectrum in single precision decodes otherwise."""
    if "default" not in shipped_models():
        needs.missing("default-model", "the package was built without it")
    recording = needs.shared_folder() / "audio" / "piano_bach.mp3"
    export_single_file(Bundle(shipped_models()["default"]), tmp_path / "single")
    audio = load_audio(recording, target_rate=RATE)[: 3 * 32768]
    assert _check(shipped_models()["default"], tmp_path / "single", audio) > 100
