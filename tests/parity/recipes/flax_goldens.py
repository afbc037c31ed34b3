"""Records numbers of Magenta's own Flax network, so the suite can check ours without JAX.

Contract: `mt3/network.py` and `mt3/layers.py` of github.com/magenta/mt3 are executed unmodified,
with the published `mt3` checkpoint (read by flax and TensorStore, not by our reader) or with the
suite's seeded network. Inputs are given by the formulas below, so a golden holds outputs only;
nothing of the upstream source or of the weights is stored.

Arrays of a golden (S = 2 segments, T = 256 or 512 frames, L = 48 tokens):
    encoded_at int32 [n, 3], encoded float32 [n]    encoder output at (segment, frame, channel)
    logits_at int32 [n, 3], logits float32 [n]      teacher-forced logits at (segment, step, token)
    top_ids int32 [S, L, 2], top_logits float32 [S, L, 2]
    positions_at int32 [r], positions float32 [r, width]    rows of the sinusoid table
    encoded_rms, logits_rms float64                 scale of the values above
    recipe                                          JSON: commit, versions, digest of the weights
Step n of the decoder reads token n-1 (0 at n = 0): decoder input = [0, *tokens[:-1]].

Run (environment: see tests/parity/oracle-requirements.txt; the first line in the suite's own):
    python -c "import numpy; from tests.seeded import seeded_weights as s
    numpy.savez('S.npz', **s().tensors)"
    python flax_goldens.py --mt3 PATH --weights S.npz --heads 2 --name seeded --out flax_seeded.npz
    python flax_goldens.py --mt3 PATH --weights DIR --name magenta_mt3 --out flax_magenta_mt3.npz
The piano model's network (1664 tokens, 512 frames, 1514 events) from `s(ISMIR2021)` in the first
line, and --heads 2 --frames 512 --events 1514 --name seeded_ismir2021 in the second.
PATH is a checkout of magenta/mt3 or a git directory holding COMMIT, DIR the T5X checkpoint folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

COMMIT = "fa04532779a6078819c3418adcd83747c94329a4"
SEGMENTS, FRAMES, BINS, STEPS = 2, 256, 512, 48
EVENTS = 1388
SAMPLES = 2000
POSITION_ROWS = (0, 1, 2, 100, 255, 511, 1023, 2047)

Array = npt.NDArray[Any]


def golden_features(frames: int = FRAMES) -> npt.NDArray[np.float32]:
    """Log-mel-like input [S, T, BINS] in -12 .. 2: slow waves plus a fixed integer scatter."""
    s, t, b = np.meshgrid(
        np.arange(SEGMENTS), np.arange(frames), np.arange(BINS), indexing="ij", sparse=True
    )
    scatter = (7919 * t + 104729 * b + 1299709 * s + t * b) % 2001 / 2000.0
    wave = 0.5 + 0.5 * np.sin(0.049 * t + 0.9 * s) * np.cos(0.023 * b - 0.3 * s)
    return np.asarray(-12.0 + 14.0 * (0.4 * scatter + 0.6 * wave), np.float32)


def golden_tokens(events: int = EVENTS) -> npt.NDArray[np.int32]:
    """Target token ids [S, L], all within the valid ids 3 .. events + 2."""
    s, n = np.meshgrid(np.arange(SEGMENTS), np.arange(STEPS), indexing="ij")
    return np.asarray(3 + (37 * n * n + 101 * n + 577 * s) % events, np.int32)


def decoder_input(tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Shift right behind the start token 0."""
    return np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)


def load_network(source: Path) -> types.ModuleType:
    """Execute mt3/layers.py and mt3/network.py inside an otherwise empty package `mt3`."""
    package = types.ModuleType("mt3")
    sys.modules["mt3"] = package
    for name in ("layers", "network"):
        path = f"mt3/{name}.py"
        if (source / path).is_file():
            text = (source / path).read_text(encoding="utf-8")
        else:
            command = ["git", "-C", str(source), "show", f"{COMMIT}:{path}"]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        module = types.ModuleType(f"mt3.{name}")
        sys.modules[f"mt3.{name}"] = module
        setattr(package, name, module)
        exec(compile(text, path, "exec"), module.__dict__)
    return module


def read_checkpoint(folder: Path) -> dict[str, Array]:
    """Read a T5X folder with flax and TensorStore into arrays by dotted name."""
    import tensorstore
    from flax import serialization, traverse_util

    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    target = tree["optimizer"]["target"]
    flat: dict[str, Array] = {}
    is_spec = lambda _, node: "driver" in node  # noqa: E731
    for name, leaf in traverse_util.flatten_dict(target, sep=".", is_leaf=is_spec).items():
        if isinstance(leaf, dict):
            place = str((folder / f"target.{name}").resolve())
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": place}}
            flat[name] = np.asarray(tensorstore.open(spec, read=True).result().read().result())
        else:
            flat[name] = np.asarray(leaf, np.float32)
    return flat


def build(network: types.ModuleType, tensors: Mapping[str, Array], heads: int) -> tuple[Any, Any]:
    """Return (Transformer, variables); all sizes but the heads come from the arrays' shapes."""
    from flax import traverse_util

    vocabulary, width = tensors["decoder.token_embedder.embedding"].shape
    layers = {
        stack: 1
        + max(int(n.split(".")[1][7:]) for n in tensors if n.startswith(f"{stack}.layers_"))
        for stack in ("encoder", "decoder")
    }
    config = network.T5Config(
        vocab_size=vocabulary, emb_dim=width, num_heads=heads,
        head_dim=tensors["encoder.layers_0.attention.query.kernel"].shape[1] // heads,
        mlp_dim=tensors["encoder.layers_0.mlp.wo.kernel"].shape[0],
        num_encoder_layers=layers["encoder"], num_decoder_layers=layers["decoder"],
        mlp_activations=("gelu", "linear"), dropout_rate=0.0, logits_via_embedding=False,
    )  # fmt: skip
    parameters = traverse_util.unflatten_dict(dict(tensors), sep=".")
    return network.Transformer(config=config), {"params": parameters}


def scattered(values: Array, count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Pick well-spread entries of a 3-D array: (positions [count, 3], values [count])."""
    flat = np.arange(count, dtype=np.int64) * 7368787 % values.size
    at = np.stack(np.unravel_index(flat, values.shape), axis=1).astype(np.int32)
    return at, values.reshape(-1)[flat].astype(np.float32)


def measure(
    network: types.ModuleType, tensors: Mapping[str, Array], options: argparse.Namespace
) -> dict[str, Array]:
    """Run encoder and teacher-forced decoder and collect the arrays of a golden."""
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    model, variables = build(network, tensors, options.heads)
    features, tokens = golden_features(options.frames), golden_tokens(options.events)
    encode = jax.jit(lambda v, x: model.apply(v, x, enable_dropout=False, method=model.encode))
    apply = jax.jit(lambda v, x, i, t: model.apply(v, x, i, t, enable_dropout=False))
    encoded = np.asarray(encode(variables, features))
    logits = np.asarray(apply(variables, features, decoder_input(tokens), tokens))
    width = encoded.shape[-1]
    table = np.asarray(sys.modules["mt3.layers"].sinusoidal()(None, (2048, width)))
    top = np.argsort(-logits, axis=-1, kind="stable")[..., :2].astype(np.int32)
    encoded_at, encoded_values = scattered(encoded, SAMPLES)
    logits_at, logits_values = scattered(logits, SAMPLES)
    return {
        "encoded_at": encoded_at, "encoded": encoded_values,
        "logits_at": logits_at, "logits": logits_values,
        "top_ids": top, "top_logits": np.take_along_axis(logits, top, axis=-1),
        "positions_at": np.array(POSITION_ROWS, np.int32), "positions": table[list(POSITION_ROWS)],
        "encoded_rms": np.sqrt(np.mean(encoded.astype(np.float64) ** 2)),
        "logits_rms": np.sqrt(np.mean(logits.astype(np.float64) ** 2)),
    }  # fmt: skip


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and little-endian float32 bytes in name order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name}{tensors[name].shape}".encode())
        total.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return total.hexdigest()


def write(
    network: types.ModuleType, tensors: Mapping[str, Array], options: argparse.Namespace
) -> None:
    import flax
    import jax

    path, arrays = options.out, measure(network, tensors, options)
    recipe = {
        "source": "github.com/magenta/mt3, mt3/network.py and mt3/layers.py", "commit": COMMIT,
        "weights": options.name, "weights_sha256": digest(tensors), "arrays": len(tensors),
        "parameters": int(sum(t.size for t in tensors.values())), "heads": options.heads,
        "frames": options.frames, "events": options.events,
        "inputs": "golden_features(frames), golden_tokens(events) of recipes/flax_goldens.py",
        "jax": jax.__version__, "flax": flax.__version__, "numpy": np.__version__,
    }  # fmt: skip
    np.savez_compressed(path, recipe=np.array(json.dumps(recipe)), **arrays)
    gap = arrays["top_logits"][..., 0] - arrays["top_logits"][..., 1]
    summary = {k: round(float(arrays[k]), 5) for k in ("encoded_rms", "logits_rms")}
    print(
        json.dumps(
            {
                "file": path.name,
                "bytes": path.stat().st_size,
                "smallest_gap": float(gap.min()),
                **summary,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--mt3", type=Path, required=True, help="checkout or git directory of magenta/mt3"
    )
    parser.add_argument(
        "--weights", type=Path, required=True, help="T5X checkpoint folder, or npz by dotted name"
    )
    parser.add_argument("--heads", type=int, default=6, help="attention heads (default 6)")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"default {FRAMES}")
    parser.add_argument("--events", type=int, default=EVENTS, help=f"default {EVENTS}")
    parser.add_argument("--name", required=True, help="what the weights are, for the recipe")
    parser.add_argument("--out", type=Path, required=True, help="golden to write")
    options = parser.parse_args()
    network = load_network(options.mt3)
    if options.weights.is_dir():
        tensors = read_checkpoint(options.weights)
    else:
        with np.load(options.weights) as file:
            tensors = {name: file[name] for name in file.files}
    write(network, tensors, options)


if __name__ == "__main__":
    main()
