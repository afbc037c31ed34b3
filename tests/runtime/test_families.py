"""Models with channels and with memory through the true way of the data, and its promises."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mt3_export.weights import Weights
from mt3_runtime.backends import ort_cpu
from mt3_runtime.backends.ort_gpu.ort_cuda import OrtCudaBackend
from mt3_runtime.backends.ort_gpu.ort_memory import DeviceSpec
from mt3_runtime.bundles.bundle import Bundle
from mt3_runtime.errors import OptionError
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model, token_digest
from mt3_runtime.transcription import by_onset
from tests.families import remember, with_channels, with_memory

Audio = npt.NDArray[np.float32]
GAINS = (1.0, 0.5, 1.5, -1.0, 0.0)
PROFILES = ("cpu", "portable", "compat")


@pytest.fixture(scope="module")
def choir(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The small network with five channels."""
    return with_channels(tiny_bundle, tmp_path_factory.mktemp("choir") / "bundle", GAINS)


@pytest.fixture(scope="module")
def diary(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path, tiny_weights: Weights
) -> Path:
    """The small network with four rows of memory made of at most forty ids."""
    out = tmp_path_factory.mktemp("diary") / "bundle"
    return with_memory(tiny_bundle, out, tiny_weights, tokens=40, rows=4)


@pytest.fixture
def features(tiny_model: Model, audio: Audio) -> npt.NDArray[np.float32]:
    return tiny_model.preprocess(audio)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_channel_says_what_it_hears(
    choir: Path, tiny_bundle: Path, features: Audio, profile: str
) -> None:
    with load_model(tiny_bundle, profile=profile) as plain:
        by_channel = [plain.forward(features * np.float32(gain)) for gain in GAINS]
    expected = [sequences[i] for i in range(len(features)) for sequences in by_channel]
    assert len({tuple(sequence.tokens) for sequence in expected}) > len(GAINS)
    with load_model(choir, profile=profile) as model:
        assert token_digest(model.forward(features)) == token_digest(expected)


def test_notes_of_all_channels(choir: Path, audio: Audio) -> None:
    with load_model(choir) as model:
        whole = model.transcribe_notes(audio)
        tokens = model.forward(model.preprocess(audio))
        assert model.assemble(tokens) == whole.notes
        streamed = model.stream(audio)
        assert by_onset(list(streamed)) == whole.notes
    assert len(whole.notes) > 10
    counts = [len(sequence.tokens) - (not sequence.truncated) for sequence in tokens]
    for report in whole.segments:
        assert report.token_count == sum(counts[len(GAINS) * report.index :][: len(GAINS)])


@pytest.mark.parametrize("decoding", ["greedy", "t5x"])
def test_channels_do_not_depend_on_batching(
    choir: Path, features: Audio, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests, features = set(), features[2:]
    for slots, threads in ((1, 1), (3, 2), (16, 3)):
        monkeypatch.setattr(ort_cpu, "SLOTS", slots)
        with load_model(choir, threads=threads, decoding=decoding) as model:
            digests.add(token_digest(model.forward(features)))
            alone = [s for row in features for s in model.forward(row[np.newaxis])]
            digests.add(token_digest(alone))
    assert len(digests) == 1


def test_a_channel_at_the_token_limit_leaves_the_others_alone(choir: Path, features: Audio) -> None:
    manifest = json.loads((choir / "bundle.json").read_bytes())
    with load_model(choir) as model:
        whole = model.forward(features)
    lengths = sorted(len(sequence.tokens) for sequence in whole)
    limit = lengths[len(lengths) // 2]
    manifest["decoding"]["max_tokens"] = limit
    (choir / "bundle.json").write_text(json.dumps(manifest))
    try:
        with load_model(choir) as model:
            short = model.forward(features)
    finally:
        manifest["decoding"]["max_tokens"] = 1024
        (choir / "bundle.json").write_text(json.dumps(manifest))
    for some, everything in zip(short, whole, strict=True):
        assert some.tokens.tolist() == everything.tokens[:limit].tolist()
        assert some.truncated == (len(everything.tokens) > limit)


def test_sequences_of_half_a_segment_are_refused(choir: Path, features: Audio) -> None:
    with load_model(choir) as model:
        tokens = model.forward(features[:1])
        with pytest.raises(OptionError, match="5 sequences per segment; 4 are no whole"):
            model.assemble(tokens[:4])


@pytest.mark.parametrize("profile", PROFILES)
def test_memory_is_what_was_said_before(
    diary: Path, tmp_path: Path, features: Audio, profile: str
) -> None:
    """Each segment alone, its memory written into the manifest by hand, gives the same tokens."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in diary.iterdir():
        (copy / path.name).hardlink_to(path)
    (copy / "bundle.json").unlink()
    (copy / "bundle.json").write_bytes((diary / "bundle.json").read_bytes())
    expected = []
    for row in features:
        with load_model(copy, profile=profile) as model:
            expected += model.forward(row[np.newaxis])
        remember(copy, memory_start=[0, *expected[-1].tokens.tolist()][:40])
    with load_model(diary, profile=profile) as model:
        found = model.forward(features)
    assert token_digest(found) == token_digest(expected)
    lengths = [len(sequence.tokens) for sequence in found]
    assert min(lengths) < 40 < max(lengths)  # filled up, and cropped


def test_memory_matters(diary: Path, features: Audio) -> None:
    with load_model(diary) as model:
        first, *rest = model.forward(features)
        again = model.forward(features[1:])
    assert len(first.tokens)
    assert token_digest(again) != token_digest(rest)


@pytest.mark.parametrize("family", ["choir", "diary"])
def test_recordings_do_not_depend_on_each_other(
    family: str, request: pytest.FixtureRequest, audio: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mix of slots, threads and order gives each recording what it gets alone."""
    bundle = request.getfixturevalue(family)
    takes = [audio[:80000], audio[3000:150000], audio[40000:45000], audio[70000:]]
    digests: dict[int, set[str]] = {number: set() for number in range(len(takes))}
    for slots, threads, order in (
        (1, 1, (0, 1, 2, 3)),
        (3, 2, (3, 2, 1, 0)),
        (16, 2, (2, 0, 3, 1)),
    ):
        monkeypatch.setattr(ort_cpu, "SLOTS", slots)
        with load_model(bundle, threads=threads) as model:
            parts = [model.preprocess(takes[number]) for number in order]
            for number, part in zip(order, parts, strict=True):
                digests[number].add(token_digest(model.forward(part)))
            results = model.transcribe_many([takes[number] for number in order])
            for number, result in zip(order, results, strict=True):
                digests[number].add(result.token_digest)
    assert [len(found) for found in digests.values()] == [1] * len(takes)


@pytest.mark.parametrize("family", ["choir", "diary"])
def test_the_cuda_backend_knows_channels_and_memory(
    family: str, request: pytest.FixtureRequest, features: Audio
) -> None:
    """On the CPU provider, with buffers and copies as on a GPU."""
    bundle = Bundle(request.getfixturevalue(family))
    here = OrtCudaBackend(bundle, place=DeviceSpec("CPUExecutionProvider", "cpu"), threads=2)
    here.warmup()
    with load_model(bundle.path, profile="portable") as model:
        expected = token_digest(model.forward(features))
    assert token_digest(Model(bundle, here).forward(features)) == expected


def test_line_ups_and_grammar_hold_in_every_channel(
    choir: Path, features: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And do not depend on which rows the channels have."""
    asked = {"instruments": "bass, drums", "grammar": True}
    digests = set()
    for slots, threads in ((1, 1), (3, 2), (16, 1)):
        monkeypatch.setattr(ort_cpu, "SLOTS", slots)
        with load_model(choir, threads=threads) as model:
            tokens = model.forward(features, **asked)
            digests.add(token_digest(tokens))
            vocabulary = model.info.vocabulary
            for event in (event for s in tokens for event in vocabulary.decode(s.tokens) if event):
                assert event.kind != "program" or event.value in range(32, 40)
            for note in model.assemble(tokens):
                assert note.is_drum or note.program in range(32, 40)
    assert len(digests) == 1
