"""YAMNet with its real weights against LiteRT, on all recordings (see recipes/yamnet.py)."""

from __future__ import annotations

import numpy as np
import pytest

from mt3_analysis.networks.classifier_session import open_classifier
from mt3_analysis.networks.windows import Window
from mt3_export.classifiers.classifier_writer import export_classifier, find_classifier
from mt3_runtime.audio.sources import load_audio
from mt3_runtime.errors import CheckpointError
from tests.needs import shared_folder
from tests.parity.recipes.yamnet import GOLDEN, STEPS, windows

RECORDINGS = (
    *("band_hendrix", "band_reggae", "drums_80s", "drums_fdnb", "drums_reggae", "drums_rock"),
    *("guitar_loop", "piano_bach", "violin_solo"),
)
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def published():
    return shared_folder() / "models" / "yamnet.tflite"


@pytest.fixture(scope="module")
def yamnet(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("yamnet") / "bundle"
    assert find_classifier(published)
    export_classifier(published, out, name="yamnet")
    return open_classifier(out, threads=1)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", RECORDINGS)
def test_scores_equal_those_of_litert(yamnet, golden, name):
    (path,) = (p for p in (shared_folder() / "audio").glob(f"{name}.*") if p.suffix != ".csv")
    samples = load_audio(path)
    logits = np.array([yamnet.logits(window) for window in windows(samples)])
    found, expected = yamnet.scores(logits), golden[name] / STEPS
    assert found.shape == expected.shape
    # A product rounded otherwise tips one 8-bit log-mel in some hundred thousand.
    assert (np.abs(found - expected).max(axis=1) > TOLERANCE).mean() <= 0.05
    means = found.mean(axis=0), expected.mean(axis=0)
    assert np.abs(means[0] - means[1]).max() <= TOLERANCE
    best = [list(np.argsort(-mean, kind="stable")[:5]) for mean in means]
    assert best[0] == best[1]
    heard = list(yamnet.hear(np.array_split(samples, 7)))
    loud = [not Window(0, window).silent for window in windows(samples)]
    assert [row.logits is not None for row in heard] == loud
    for row, single in zip(heard, logits, strict=True):
        assert row.logits is None or np.array_equal(row.logits, single)


def test_labels_are_those_attached_to_the_file(yamnet):
    listed = (shared_folder() / "models" / "yamnet_class_map.csv").read_text().splitlines()
    assert len(yamnet.labels) == len(listed) - 1
    assert yamnet.labels[:2] == ("Speech", "Child speech, kid speaking")


@pytest.mark.parametrize("damage", ["cut", "zeros", "ones", "head", "other"])
def test_damaged_files_are_one_error(published, tmp_path, damage):
    data = bytearray(published.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "other":
        data = bytearray(b"RIFF" + bytes(100))
    elif damage == "head":
        data[0:4] = b"\xff\xff\xff\x7f"
    else:
        middle = len(data) - 60_000  # tables lie behind the weights
        data[middle : middle + 20_000] = bytes([0 if damage == "zeros" else 255]) * 20_000
    path = tmp_path / "yamnet.tflite"
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        export_classifier(path, tmp_path / "bundle", name="yamnet")
    assert not (tmp_path / "bundle").exists()


def test_no_mutation_of_the_tables_is_a_crash(published, tmp_path):
    from mt3_export.classifiers.tflite import read_tflite
    from mt3_export.classifiers.yamnet_network import read_yamnet

    whole, path = published.read_bytes(), tmp_path / "yamnet.tflite"
    random = np.random.default_rng(3)
    for _ in range(600):
        data = bytearray(whole)
        for place in random.integers(len(data) - 330_000, len(data), 6):
            data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            read_yamnet(read_tflite(path), "yamnet")
        except CheckpointError:
            continue
