"""From a checkpoint file to notes, for every variant of YourMT3, and what exporting one takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mt3_export.checkpoints.torch_names import PITCH_SHIFTED
from mt3_export.weights import T5Shape
from mt3_runtime import load_model
from mt3_runtime.cli import main
from mt3_runtime.notes.vocabulary import EOS, PAD
from tests import reference_t5, reference_yourmt3
from tests.export.yourmt3_writer import write_yourmt3
from tests.seeded import TINY_MOE, TINY_MULTI, TINY_SINGLE, TINY_YMT3, YOURMT3, seeded_weights

#: Small networks with the features and channels of the published ones.
SMALL: dict[str, T5Shape] = {
    "ymt3_plus": replace(TINY_YMT3, d_model=512, input_bins=512),
    "yptf_single": replace(TINY_SINGLE, input_bins=1024, position_rows=120),
    "yptf_multi": replace(
        TINY_MULTI, input_bins=1024, position_rows=120, decoder_channels=13, latents=26
    ),
    "yptf_moe_multi": replace(TINY_MOE, input_bins=1024, decoder_channels=13, latents=26),
}
STEPS = 10

#: What exporting the largest published file may take, in bytes.
MEMORY = 1.5e9


@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, "") for name in SMALL), *((name, "_ps") for name in PITCH_SHIFTED)],
)
def test_from_a_checkpoint_to_notes(name, suffix, tmp_path, audio, capfd):
    weights = seeded_weights(SMALL[name])
    checkpoint = write_yourmt3(tmp_path / "last.ckpt", weights, pitch_shift=bool(suffix))
    profiles = "cpu,portable,compat" if suffix else "cpu"
    arguments = [str(checkpoint), "-o", str(tmp_path / "bundle"), "--profiles", profiles]
    assert main(["export", *arguments]) == 0
    assert capfd.readouterr().out.strip() == str(tmp_path / "bundle")
    results = {}
    for profile in profiles.split(","):
        model = load_model(tmp_path / "bundle", device="cpu", profile=profile)
        spec = model.info.model
        assert (model.info.variant, spec.channels) == (name + suffix, weights.shape.channels)
        result = model.transcribe_notes(audio)
        assert len(result.segments) == 5  # 9 s in segments of 2.048 s
        assert len(result.to_midi().tracks) > 1
        results[profile] = [(n.onset, n.pitch, n.program, n.is_drum) for n in result.notes]
    assert results["cpu"]
    assert all(notes == results["cpu"] for notes in results.values())


@pytest.mark.parametrize("name", SMALL)
def test_tokens_are_those_of_the_formulas(name, tmp_path, audio):
    """Two segments, from our features on: greedy tokens of the float64 reference."""
    weights = seeded_weights(SMALL[name])
    checkpoint = write_yourmt3(tmp_path / "model.pt", weights, bare=True)
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "model.mt3"), "--weights", "fp32"]
    assert main(arguments) == 0
    model = load_model(tmp_path / "model.mt3", device="cpu")
    features = model.preprocess(audio)[:2]
    sequences = model.forward(features)
    reference = reference_t5 if weights.shape.encoder_layers else reference_yourmt3
    encoded = reference.encode(weights, features)
    assert len(sequences) == len(encoded) == 2 * weights.shape.channels
    read = np.full((len(encoded), 1), PAD)
    for _ in range(STEPS):
        logits = reference_t5.teacher_forced(weights, encoded, read)[:, -1]
        read = np.concatenate([read, logits.argmax(-1)[:, None]], axis=1)
    for sequence, expected in zip(sequences, read[:, 1:].tolist(), strict=True):
        # The original does not look whether the first token is an end.
        length = expected.index(EOS, 1) + 1 if EOS in expected[1:] else STEPS
        assert sequence.tokens[:STEPS].tolist() == expected[:length]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows counts no peak memory")
def test_exporting_the_largest_file_takes_little_memory(tmp_path):
    """758 MB with moments and pitch shifter; only the network is read."""
    weights = seeded_weights(YOURMT3["yptf_moe_multi"])
    checkpoint = tmp_path / "model.ckpt"
    write_yourmt3(checkpoint, weights, pitch_shift=True, full_size=True)
    assert abs(checkpoint.stat().st_size - 758_957_292) < 1e6
    program = (
        "import json, sys\n"
        "from mt3_runtime.cli import main\n"
        "from mt3_runtime.commands.machine import peak_rss\n"
        "status = main(['export', sys.argv[1], '-o', sys.argv[2], '--weights', 'fp32'])\n"
        "print(json.dumps({'status': status, 'peak': peak_rss()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, checkpoint, tmp_path / "bundle"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0
    assert found["peak"] < MEMORY, f"{found['peak'] / 2**20:.0f} MiB"
    assert Path(tmp_path / "bundle" / "bundle.json").is_file()
