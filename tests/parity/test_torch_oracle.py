"""Our tokens and encoder against the original PyTorch network, with the real weights.

The original (recipes/torch_oracle.py) judges the very tokens this project decodes from whole
recordings with default settings.  A segment may differ only where the original itself prefers its
token by less than `TIE`: two float32 implementations cannot agree closer than that.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.graphs.encoder import build_encoder
from mt3_export.graphs.profiles import PROFILES
from mt3_export.variants import variant_named
from mt3_runtime.loading import load_model
from tests.export.writers import write_kunato
from tests.parity.recordings import Oracle, Run, pack, transcribe
from tests.parity.test_flax_golden import FACTOR, NOISE
from tests.stepper import session

#: Logits differ by up to 5.7e-5 between implementations (test_flax_golden), a gap by twice that.
TIE = 1e-4


def check(
    oracle: Oracle, folder: Path, weights: Path, runs: Mapping[str, Run], *options: object
) -> None:
    """Asks the original about all segments of all runs, in one process."""
    segments = [(name, i) for name, run in runs.items() for i in range(len(run.sequences))]
    inputs, report = folder / "inputs.npz", folder / "report.json"
    features = np.concatenate([run.features for run in runs.values()])
    sequences = [sequence for run in runs.values() for sequence in run.sequences]
    np.savez(inputs, features=features, **pack(sequences))

    def ask(*more: object) -> list[str]:
        arguments = ("--weights", weights, "--features", inputs, "--out", report, *options, *more)
        done = oracle("torch_oracle.py", "check", *arguments)
        assert done.returncode in (0, 1), done.stderr
        answer = json.loads(report.read_text())
        assert answer["segments"] == len(segments)
        assert answer["tokens"] == sum(len(sequence.tokens) for sequence in sequences)
        assert answer["equal"] == len(segments) - len(answer["differing"])
        return [describe(segments, difference) for difference in answer["differing"]]

    differing = ask()
    if differing:  # perhaps a near-tie; what follows it must still be right
        warnings.warn("differs from the original:\n" + "\n".join(differing), stacklevel=2)
        differing = ask("--tie", TIE)
    assert not differing, "\n".join(differing)


def describe(segments: Sequence[tuple[str, int]], difference: Mapping[str, object]) -> str:
    name, index = segments[int(str(difference["segment"]))]
    said = ", ".join(f"{key} {difference[key]}" for key in ("step", "expected", "got", "gap"))
    return f"{name} segment {index}: {said}"


def test_every_segment_of_every_recording(
    oracle: Oracle, shared: Path, greedy_runs: dict[str, Run], tmp_path: Path
) -> None:
    check(oracle, tmp_path, shared / "checkpoints" / "magenta_mt3", greedy_runs)


def test_the_pytorch_port(
    oracle: Oracle, real_weights, greedy_runs: dict[str, Run], tmp_path: Path
) -> None:
    """The same weights as a .pth, with the port's own position frequencies, exported from there."""
    folder = write_kunato(tmp_path / "port", real_weights)
    contents = read_checkpoint(folder, "mt3_pytorch")
    variant, bundle = variant_named("mt3_pytorch"), tmp_path / "bundle"
    export_bundle(contents.weights, variant, bundle, source={"digest": contents.digest})
    features = {name: greedy_runs[name].features for name in ("violin_solo.mp3", "drums_rock.flac")}
    runs = transcribe(load_model(bundle), features, "greedy")
    limit = variant.decoding.max_tokens
    options = ("--denominator", 256, "--max-tokens", limit)
    check(oracle, tmp_path, folder / "mt3.pth", runs, *options)
    # The other table leaves its mark, so this was not the first test once more.
    for name, run in runs.items():
        pairs = zip(run.sequences, greedy_runs[name].sequences, strict=True)
        assert any(a.tokens.tolist() != b.tokens.tolist() for a, b in pairs)


def test_encoder(
    oracle: Oracle, shared: Path, real_weights, features: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Encoder output of one segment of four recordings, one of them a last, shorter one."""
    rows = [features[name][0] for name in ("band_hendrix.flac", "piano_bach.mp3", "drums_80s.flac")]
    rows.append(features["violin_solo.mp3"][-1])
    assert not rows[-1][-1].any()
    inputs, outputs = tmp_path / "inputs.npz", tmp_path / "outputs.npz"
    np.savez(inputs, features=np.stack(rows))
    weights = shared / "checkpoints" / "magenta_mt3"
    arguments = ("--weights", weights, "--features", inputs, "--out", outputs)
    done = oracle("torch_oracle.py", "encode", *arguments)
    assert done.returncode == 0, done.stderr
    with np.load(outputs) as file:
        expected = file["encoded"]
    for profile in PROFILES:
        model = build_encoder(real_weights, rows[0].shape[0], profile=profile, expose_output=True)
        (encoded,) = session(model).run(["encoded"], {"features": np.stack(rows)})
        assert np.abs(encoded - expected).max() <= FACTOR * NOISE["magenta_mt3"].encoded
