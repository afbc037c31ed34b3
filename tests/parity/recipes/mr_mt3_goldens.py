"""Records numbers of MR-MT3's own network with memory, so the suite can check ours without it.

Contract: `models/t5.py`, `t5_segmem.py`, `t5_segmem_v2.py` and `t5_segmem_v2_with_prev.py` of
github.com/gudgud96/MR-MT3 are executed unmodified, with weights that the suite wrote in the
published layout (so the original's strict loading judges the layout, too).  One module is replaced
after construction: the input projection, which the class makes as wide as the network.  Inputs are
given by the formulas below, so a golden holds outputs only; nothing of the upstream source is
stored.

Arrays of a golden (M is 0, 32 or 64; S = 6 consecutive segments, T = 256 frames, L = 48 tokens):
    tokens_M int32 [S, n], lengths_M int32 [S]  `generate`, memory carried from segment to segment:
                                            without the start token, zero behind the end
    memory_at int32 [n, 3], memory float32 [n]  memory rows of M = 64 at (segment, row, channel)
    cross_key_i_at, cross_key_i, cross_value_i_at, cross_value_i    at (segment, T + M row, column),
                                            of decoder layer i, M = 64
    logits_at, logits, top_ids, top_logits  teacher-forced logits, M = 64, as in flax_goldens.py
    recipe                                  JSON: commit, versions, digest of the weights, noise
Teacher forcing reads [0, *tokens[:-1]] of `golden_tokens()` and the memory of `golden_previous()`.
`noise` is how far the original's float32 results lie from its own float64 ones, per array.

Run (environment: torch 2.13.0, transformers 4.45.1, einops 0.8.2, tqdm; first line: the suite's):
    python -c "from pathlib import Path; from tests.export.writers import write_mr_mt3 as write
    from tests.seeded import MEMORY, seeded_weights as s; write(Path('S.pt'), s(MEMORY, SEED))"
    python mr_mt3_goldens.py --mr-mt3 PATH --weights S.pt --heads 2 --name seeded --out X.npz
PATH is a checkout of gudgud96/MR-MT3 or a git directory holding COMMIT.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

COMMIT = "826ea84a933f93cd707d11e91af711f1d19c8d79"
SEGMENTS, FRAMES, BINS, STEPS = 6, 256, 512, 48
MEMORIES = (0, 32, 64)
#: Length of the id vector a memory is made of, and the most tokens of a segment.
TOKENS = 1024
PAD, EOS, TIE = 0, 1, 1134
SAMPLES = 1000

Array = npt.NDArray[Any]


def golden_features() -> npt.NDArray[np.float32]:
    """Scaled log-mel-like input [S, T, BINS] in 0 .. 0.9: slow waves plus an integer scatter."""
    s, t, b = np.meshgrid(
        np.arange(SEGMENTS), np.arange(FRAMES), np.arange(BINS), indexing="ij", sparse=True
    )
    scatter = (7919 * t + 104729 * b + 1299709 * s + t * b) % 2001 / 2000.0
    wave = 0.5 + 0.5 * np.sin(0.049 * t + 0.9 * s) * np.cos(0.023 * b - 0.3 * s)
    return np.asarray(0.9 * (0.4 * scatter + 0.6 * wave), np.float32)


def golden_tokens() -> npt.NDArray[np.int32]:
    """Target token ids [S, L], all within the valid ids 3 .. 1390."""
    s, n = np.meshgrid(np.arange(SEGMENTS), np.arange(STEPS), indexing="ij")
    return np.asarray(3 + (37 * n * n + 101 * n + 577 * s) % 1388, np.int32)


def golden_previous() -> npt.NDArray[np.int64]:
    """What the memories are made of [S, TOKENS]: nothing, then more and more, then no end."""
    ids = np.zeros((SEGMENTS, TOKENS), np.int64)
    ids[0, :2] = TIE, EOS
    for segment in range(1, SEGMENTS):
        length = min(20 * segment**3, TOKENS)
        n = np.arange(1, length)
        ids[segment, 1:length] = 3 + (53 * n * n + 211 * n + 389 * segment) % 1388
        if length < TOKENS:
            ids[segment, length] = EOS
    return ids


def load_models(source: Path) -> types.ModuleType:
    """Execute the four modules inside an otherwise empty package `models`."""
    from transformers.models.t5 import modeling_t5

    if not hasattr(modeling_t5, "checkpoint"):  # imported by the original, unused at inference
        modeling_t5.checkpoint = None
    package = types.ModuleType("models")
    sys.modules["models"] = package
    for name in ("t5", "t5_segmem", "t5_segmem_v2", "t5_segmem_v2_with_prev"):
        path = f"models/{name}.py"
        if (source / path).is_file():
            text = (source / path).read_text(encoding="utf-8")
        else:
            command = ["git", "-C", str(source), "show", f"{COMMIT}:{path}"]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        module = types.ModuleType(f"models.{name}")
        sys.modules[f"models.{name}"] = module
        setattr(package, name, module)
        exec(compile(text, path, "exec"), module.__dict__)
    return module


def build(models: types.ModuleType, state: Mapping[str, Any], heads: int) -> Any:
    """The published class with these weights, strictly loaded; sizes come from their shapes."""
    import torch
    from transformers import T5Config

    vocabulary, width = state["lm_head.weight"].shape
    blocks = {
        stack: 1 + max(int(name.split(".")[2]) for name in state if f"{stack}.block." in name)
        for stack in ("encoder", "decoder", "segmem_encoder")
    }
    config = T5Config(
        d_model=width, num_heads=heads, vocab_size=vocabulary,
        d_kv=state["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        d_ff=state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        num_layers=blocks["encoder"], num_decoder_layers=blocks["decoder"],
        feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6, dropout_rate=0.1,
        tie_word_embeddings=False, use_cache=False,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
    )  # fmt: skip
    model = models.T5SegMemV2WithPrev(config, segmem_num_layers=blocks["segmem_encoder"])
    if state["proj.weight"].shape[1] != width:
        model.proj = torch.nn.Linear(state["proj.weight"].shape[1], width, bias=False)
        model.encoder.embed_tokens = model.proj
    model.load_state_dict(state, strict=True)
    return model.eval()


def doubled(model: Any) -> Any:
    """The same in float64, but for the position tables, which are given in float32."""
    model = copy.deepcopy(model).double()
    for stack in (model.encoder, model.decoder, model.segmem_encoder):
        stack.pos_emb.float()
    return model


def generated(model: Any, features: Array) -> dict[str, Array]:
    """Tokens of consecutive segments for every M, as the original's loop gives them."""
    import torch

    found = {}
    for memory in MEMORIES:
        model.segmem_length = memory
        with torch.inference_mode():
            rows = model.generate(torch.from_numpy(features), max_length=TOKENS).numpy()[:, 1:]
        ended = (rows == EOS).any(axis=1)
        lengths = np.where(ended, (rows == EOS).argmax(axis=1) + 1, rows.shape[1])
        found[f"tokens_{memory}"] = rows[:, : lengths.max()].astype(np.int32)
        found[f"lengths_{memory}"] = lengths.astype(np.int32)
    return found


def measured(model: Any, features: Array) -> dict[str, Array]:
    """All intermediate results of one teacher-forced pass with M = 64."""
    import torch

    model.segmem_length = memory = MEMORIES[-1]
    found: dict[str, Array] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: found.__setitem__(name, output.numpy())

    hooks = [
        model.segmem_encoder.final_layer_norm.register_forward_hook(keep("memory")),
        *(
            getattr(block.layer[1].EncDecAttention, part).register_forward_hook(keep(name))
            for index, block in enumerate(model.decoder.block)
            for part, name in (("k", f"cross_key_{index}"), ("v", f"cross_value_{index}"))
        ),
    ]
    tokens = golden_tokens().astype(np.int64)
    read = np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1)
    with torch.inference_mode():
        logits = model(
            inputs=torch.from_numpy(features).to(model.lm_head.weight.dtype),
            decoder_input_ids=torch.from_numpy(read),
            targets_prev=torch.from_numpy(golden_previous()),
        )
    for hook in hooks:
        hook.remove()
    return found | {"memory": found["memory"][:, :memory], "logits": logits.numpy()}


def scattered(values: Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Well-spread entries of a 3-D array: (positions [SAMPLES, 3], values [SAMPLES])."""
    flat = np.arange(SAMPLES, dtype=np.int64) * 7368787 % values.size
    at = np.stack(np.unravel_index(flat, values.shape), axis=1).astype(np.int32)
    return at, values.reshape(-1)[flat].astype(np.float32)


def arrays(single: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """What a golden keeps of the results."""
    for name, values in single.items():
        if name.startswith(("tokens", "lengths")):
            yield name, values
        else:
            yield f"{name}_at", scattered(values)[0]
            yield name, scattered(values)[1]
    logits = single["logits"]
    top = np.argsort(-logits, axis=-1, kind="stable")[..., :2].astype(np.int32)
    yield "top_ids", top
    yield "top_logits", np.take_along_axis(logits, top, axis=-1)


def digest(tensors: Mapping[str, Array]) -> str:
    """SHA-256 over names, shapes and little-endian float32 bytes in name order."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name}{tuple(tensors[name].shape)}".encode())
        total.update(np.ascontiguousarray(tensors[name], "<f4").tobytes())
    return total.hexdigest()


def main() -> None:
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mr-mt3", type=Path, required=True, help="checkout or git directory")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of torch.save")
    parser.add_argument("--heads", type=int, default=6, help="attention heads (default 6)")
    parser.add_argument("--name", required=True, help="what the weights are, for the recipe")
    parser.add_argument("--out", type=Path, required=True, help="golden to write")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    state = torch.load(options.weights, weights_only=True)
    model = build(load_models(options.mr_mt3), state, options.heads)
    features = golden_features()
    single, double = measured(model, features), measured(doubled(model), features)
    noise = {name: float(np.abs(values - double[name]).max()) for name, values in single.items()}
    rms = {name: float(np.sqrt(np.mean(values**2))) for name, values in double.items()}
    tokens = generated(model, features)
    recipe = {
        "source": "github.com/gudgud96/MR-MT3, models/t5_segmem_v2_with_prev.py and its bases",
        "commit": COMMIT, "weights": options.name, "heads": options.heads,
        "weights_sha256": digest({name: value.numpy() for name, value in state.items()}),
        "parameters": sum(values.numel() for values in model.parameters()),
        "noise": noise, "rms": rms, "torch": torch.__version__,
        "transformers": transformers.__version__, "numpy": np.__version__,
    }  # fmt: skip
    kept = dict(arrays(single | tokens))
    np.savez_compressed(options.out, recipe=np.array(json.dumps(recipe)), **kept)
    print(json.dumps({"bytes": options.out.stat().st_size, "noise": noise, "rms": rms}, indent=1))
    for memory in MEMORIES:
        print(memory, tokens[f"lengths_{memory}"].tolist(), tokens[f"tokens_{memory}"][:, :12])


if __name__ == "__main__":
    main()
