"""Makes tests/parity/baselines.json: what this code decodes from every recording, as digests.

A baseline says "as before", not "right": that is for the comparisons with the original networks.
Record again only when an intended change of audio reading, features, graphs, decoding, note rules
or MIDI changed them, and say in the commit why, with the F1 figures before and after.

    python tests/parity/recipes/baselines.py SHARED [--features FEATURES.npz]

from the root of the repository, with the project installed and onnx and msgpack at hand.  SHARED
holds checkpoints/magenta_mt3 and audio.  ``--features`` also writes `features` float32 [S, T, bins]
of all recordings, one behind the other by name, with `names` and `counts` [R] of segments: the
input of recipes/t5x_recordings.py.

Of each recording and decoding the file holds the SHA-256 of all tokens (`token_digest`), that of
the MIDI file, the number of notes, and the first 8 digits of every segment's own token digest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[3]))

from mt3_export.bundle_writer import export_bundle
from mt3_export.checkpoints.checkpoint import read_checkpoint
from mt3_export.variants import variant_named
from mt3_runtime.loading import load_model
from tests.parity.recordings import BASELINES, extract, recordings, remembered, transcribe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path, help="folder with checkpoints/magenta_mt3 and audio")
    parser.add_argument("--features", type=Path, help="npz to write the features to")
    options = parser.parse_args()
    contents = read_checkpoint(options.shared / "checkpoints" / "magenta_mt3")
    with tempfile.TemporaryDirectory() as folder:
        variant, bundle = variant_named("magenta_mt3"), Path(folder) / "magenta_mt3"
        export_bundle(contents.weights, variant, bundle, source={"digest": contents.digest})
        model = load_model(bundle)
        features = extract(model, options.shared)
        runs = {name: transcribe(model, features, name) for name in ("greedy", "t5x")}
    result = {
        "checkpoint": contents.digest,
        "recorded_with": {
            "machine": platform.machine(),
            **{name: version(name) for name in ("onnxruntime", "numpy", "soundfile", "soxr")},
        },
        "recordings": {
            path.name: {
                "file": hashlib.sha256(path.read_bytes()).hexdigest(),
                **{name: remembered(run[path.name]) for name, run in runs.items()},
            }
            for path in recordings(options.shared)
        },
    }
    BASELINES.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.features:
        np.savez(
            options.features,
            features=np.concatenate(list(features.values())),
            names=np.array(list(features)),
            counts=np.array([len(rows) for rows in features.values()]),
        )
    print(f"{BASELINES}: {len(features)} recordings")


if __name__ == "__main__":
    main()
