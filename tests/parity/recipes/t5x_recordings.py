"""Makes tests/parity/golden/t5x_recordings.npz: what Magenta's own code decodes from recordings.

Contract: Flax network (mt3/network.py, mt3/layers.py) and beam search (t5x/decoding.py) are
executed unmodified, with the notebook's arguments: batches of 8 segments, 1024 targets, one beam,
alpha 0.6, the published weights.  The features come from us (they are compared on their own); kept
are token ids only.

Arrays of the golden (R recordings, S segments of them all, N tokens of those):
    names [R], counts int16 [R]             recordings and their numbers of segments
    tokens int16 [N], lengths int16 [S]     sequences one behind the other, end-of-sequence included
    scores float32 [S]                      log-probability / ((5 + length) / 6) ** 0.6
    recipe                                  JSON: commits, versions

Run (environment: see tests/parity/oracle-requirements.txt; three minutes on two cores):
    python tests/parity/recipes/baselines.py SHARED --features F.npz     (the suite's environment)
    python tests/parity/recipes/t5x_recordings.py --mt3 PATH --t5x PATH --features F.npz \
        --weights SHARED/checkpoints/magenta_mt3 --out tests/parity/golden/t5x_recordings.npz
PATHs are checkouts of magenta/mt3 and google-research/t5x, or git directories holding the commits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import flax_goldens
import t5x_goldens

ROWS = 8
TARGETS = 1024
HEADS = 6


def predictor(network: Any, decoding: Any, weights: Path) -> Callable[[Any], tuple[Any, Any]]:
    """Return predict(features [n, T, bins]) -> (sequences int32 [n, TARGETS], scores [n])."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", "highest")
    tensors = flax_goldens.read_checkpoint(weights)
    model, variables = flax_goldens.build(network, tensors, HEADS)
    eval_mode = {"enable_dropout": False, "decode": True, "max_decode_length": TARGETS}

    def predict(features: Any) -> tuple[Any, Any]:
        encoded = model.apply(variables, features, enable_dropout=False, method=model.encode)
        start = jnp.zeros((len(features), TARGETS), jnp.int32)

        def decode(cache: dict[str, Any], ids: Any) -> tuple[Any, Any]:
            return model.apply(
                {**variables, **cache}, encoded, features, ids, ids, **eval_mode,
                method=model.decode, mutable=["cache"],
            )  # fmt: skip

        def tokens_to_logits(state: Any) -> tuple[Any, Any]:
            logits, changed = decode({"cache": state.cache}, state.cur_token)
            return logits[:, 0], changed["cache"]

        _, fresh = decode({}, start)
        found, scores = decoding.beam_search(
            start, fresh["cache"], tokens_to_logits,
            eos_id=t5x_goldens.EOS, num_decodes=1, alpha=t5x_goldens.ALPHA,
        )  # fmt: skip
        return found[:, -1], scores[:, -1]

    return jax.jit(predict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("mt3", "t5x", "features", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    import flax
    import jax

    network = flax_goldens.load_network(options.mt3)
    predict = predictor(network, t5x_goldens.load_decoding(options.t5x), options.weights)
    with np.load(options.features) as file:
        features, names, counts = file["features"], file["names"], file["counts"]
    rows, scores = [], []
    for part in np.split(features, np.cumsum(counts)[:-1]):
        for at in range(0, len(part), ROWS):
            found, values = map(np.asarray, predict(part[at : at + ROWS]))
            rows += [row[: np.flatnonzero(row)[-1] + 1] for row in found]
            scores += values.tolist()
            print(f"{len(rows)} of {len(features)} segments", flush=True)
    recipe = {
        "mt3": flax_goldens.COMMIT, "t5x": t5x_goldens.COMMIT, "alpha": t5x_goldens.ALPHA,
        "targets": TARGETS, "rows": ROWS,
        "jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__,
    }  # fmt: skip
    np.savez_compressed(
        options.out,
        names=names,
        counts=counts.astype(np.int16),
        tokens=np.concatenate(rows).astype(np.int16),
        lengths=np.array([len(row) for row in rows], np.int16),
        scores=np.array(scores, np.float32),
        recipe=np.array(json.dumps(recipe)),
    )


if __name__ == "__main__":
    main()
