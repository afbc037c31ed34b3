"""Asks the original PyTorch network (mt3-infer's vendored MT3 T5) what greedy decoding gives.

Contract: a stand-alone program for the environment of tests/parity/oracle-requirements.txt; it
imports nothing of this project. The network classes are used as published; only the position
frequencies are overwritten, because the ports ship 10000^(-i/256) while Magenta trained the weights
with 10000^(-i/255) (`--denominator`).

    check    one uncached teacher-forced pass of the unmodified forward over candidate tokens. If at
             every step the arg-max given the candidate's own prefix is the candidate's next token,
             the candidate *is* the greedy output, by induction. One forward pass per segment
             instead of one per token.
    greedy   decodes afresh, with a key/value cache around the package's own blocks; `--verify N`
             proves the loop equal to the package's own uncached `generate` on N segments.
    encode   encoder output.    teacher   logits for given tokens.

Inputs: `--features` npz with `features` float32 [S, T, bins]. `check` and `teacher` read `tokens`
int32 [S, L] (0 after the end) and `lengths` int32 [S] (end-of-sequence included) from `--tokens`,
default the same file. `--weights` is an npz of float32 arrays by T5X dotted name, a T5X checkpoint
folder, or a torch `mt3.pth`.

The report is one JSON object on stdout; of a differing segment it holds the first wrong step, the
expected and the given token (null: the sequence had to end, or ended too early) and by how much the
network prefers the expected one. Exit status: 0 equal, 1 different, 2 unusable input.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PAD, EOS = 0, 1
# Rows times tokens of one teacher-forced batch: bounds memory (attention: rows * 6 * tokens^2).
TOKENS_PER_BATCH = 4096
ROWS = 32

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]

# T5X dotted names -> names of the torch state dict; kernels are transposed.
_BLOCKS = {
    "encoder": {
        "attention": "0.SelfAttention",
        "pre_attention_layer_norm": "0",
        "pre_mlp_layer_norm": "1",
    },
    "decoder": {
        "self_attention": "0.SelfAttention",
        "pre_self_attention_layer_norm": "0",
        "encoder_decoder_attention": "1.EncDecAttention",
        "pre_cross_attention_layer_norm": "1",
        "pre_mlp_layer_norm": "2",
    },
}
_PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_TOP = {
    "encoder.continuous_inputs_projection.kernel": ("proj", "encoder.embed_tokens"),
    "decoder.token_embedder.embedding": ("decoder_embed_tokens", "decoder.embed_tokens"),
    "encoder.encoder_norm.scale": ("encoder.final_layer_norm",),
    "decoder.decoder_norm.scale": ("decoder.final_layer_norm",),
    "decoder.logits_dense.kernel": ("lm_head",),
}


def torch_names(name: str) -> tuple[str, ...]:
    """Names under which one T5X array appears in the torch state dict."""
    if name in _TOP:
        return tuple(f"{target}.weight" for target in _TOP[name])
    match = re.fullmatch(r"(encoder|decoder)\.layers_(\d+)\.(\w+)\.(\w+?)(\.kernel)?", name)
    if match is None:
        raise SystemExit(f"unknown array in the weights: {name}")
    stack, index, module, part, _ = match.groups()
    prefix = f"{stack}.block.{index}.layer"
    if module == "mlp":
        return (f"{prefix}.{1 if stack == 'encoder' else 2}.DenseReluDense.{part}.weight",)
    if part == "scale":
        return (f"{prefix}.{_BLOCKS[stack][module]}.layer_norm.weight",)
    return (f"{prefix}.{_BLOCKS[stack][module]}.{_PARTS[part]}.weight",)


def read_t5x(folder: Path) -> dict[str, FloatArray]:
    """Read a T5X folder: MessagePack index with inline arrays, a zarr folder per large array."""
    import msgpack

    def extension(code: int, payload: bytes) -> Any:
        if code != 1:
            return None
        shape, dtype, raw = msgpack.unpackb(payload, raw=True)
        return np.frombuffer(raw, dtype.decode()).reshape(shape)

    packed = (folder / "checkpoint").read_bytes()
    index = msgpack.unpackb(packed, ext_hook=extension, raw=False, strict_map_key=False)

    def leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, dict) and "driver" not in node:
            for key, child in node.items():
                yield from leaves(child, f"{name}.{key}" if name else key)
        else:
            yield name, node

    arrays: dict[str, FloatArray] = {}
    for name, leaf in leaves(index["optimizer"]["target"], ""):
        if isinstance(leaf, dict):
            place = folder / f"target.{name}"
            meta = json.loads((place / ".zarray").read_text())
            if meta["chunks"] != meta["shape"] or meta["compressor"]["id"] != "gzip":
                raise SystemExit(f"{place}: expected one gzip chunk")
            raw = zlib.decompress(
                (place / ".".join("0" for _ in meta["shape"])).read_bytes(), wbits=31
            )
            arrays[name] = np.frombuffer(raw, meta["dtype"]).reshape(meta["shape"])
        else:
            arrays[name] = np.asarray(leaf, np.float32)
    return arrays


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read weights of any accepted form into a torch state dict."""
    if path.is_file() and path.suffix != ".npz":
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    if path.is_dir():
        arrays = read_t5x(path)
    else:
        with np.load(path) as file:
            arrays = {name: np.asarray(file[name], np.float32) for name in file.files}
    state = {}
    for name, array in arrays.items():
        tensor = torch.tensor(array.T if name.endswith(".kernel") else array).contiguous()
        state.update(dict.fromkeys(torch_names(name), tensor))
    return state


def build(options: argparse.Namespace) -> Any:
    """Construct the published class and load the weights strictly."""
    import transformers

    transformers.logging.set_verbosity_error()
    if options.adapter == "mr_mt3":
        from mt3_infer.models.mr_mt3.t5 import T5ForConditionalGeneration
    else:
        from mt3_infer.models.mt3_pytorch.t5 import T5ForConditionalGeneration

    state = read_state(options.weights)
    vocabulary, width = state["lm_head.weight"].shape
    blocks = {
        stack: 1 + max(int(k.split(".")[2]) for k in state if k.startswith(f"{stack}.block."))
        for stack in ("encoder", "decoder")
    }
    config = transformers.T5Config(
        d_model=width,
        d_kv=state["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // options.heads,
        d_ff=state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        num_heads=options.heads,
        num_layers=blocks["encoder"],
        num_decoder_layers=blocks["decoder"],
        vocab_size=vocabulary,
        feed_forward_proj="gated-gelu",
        layer_norm_epsilon=1e-6,
        dropout_rate=0.0,
        tie_word_embeddings=False,
        decoder_start_token_id=PAD,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    model = T5ForConditionalGeneration(config)
    if state["proj.weight"].shape[1] != width:  # the class assumes as many bins as channels
        model.proj = torch.nn.Linear(state["proj.weight"].shape[1], width, bias=False)
        model.encoder.embed_tokens = model.proj
    if options.denominator is not None or "encoder.pos_emb.inv_freq" not in state:
        half = width // 2
        below = {None: half - 1, 255: half - 1, 256: half}[options.denominator]
        frequencies = torch.from_numpy(
            np.power(10000.0, -np.arange(half) / below).astype(np.float32)
        )
        state |= {f"{stack}.pos_emb.inv_freq": frequencies for stack in ("encoder", "decoder")}
    model.load_state_dict(state, strict=True)
    if options.denominator == 256:  # the ports' own rounding of the same formula
        exact = type(model.decoder.pos_emb)(width).inv_freq
        for stack in (model.encoder, model.decoder):
            stack.pos_emb.inv_freq.copy_(exact)
    return model.eval()


@torch.inference_mode()
def encode(model: Any, features: FloatArray) -> torch.Tensor:
    """Encoder output [S, T, width] through the package's own projection and encoder."""
    outputs = [
        model.encoder(
            inputs_embeds=model.proj(torch.from_numpy(features[i : i + ROWS])), return_dict=True
        )[0]
        for i in range(0, len(features), ROWS)
    ]
    return torch.cat(outputs)


@torch.inference_mode()
def teacher(model: Any, features: FloatArray, tokens: IntArray) -> torch.Tensor:
    """Logits [S, L + 1, V] of one unmodified forward pass; row n predicts after n tokens."""
    start = np.full((len(tokens), 1), PAD, np.int64)
    prefix = torch.from_numpy(np.concatenate([start, tokens.astype(np.int64)], axis=1))
    output = model(inputs=torch.from_numpy(features), decoder_input_ids=prefix, use_cache=False)
    return output if isinstance(output, torch.Tensor) else output.logits


def batches(lengths: IntArray) -> Iterator[npt.NDArray[np.intp]]:
    """Indices of segments of similar length, longest first."""
    order = np.argsort(-lengths, kind="stable")
    while len(order):
        rows = min(ROWS, max(1, TOKENS_PER_BATCH // (int(lengths[order[0]]) + 1)))
        yield order[:rows]
        order = order[rows:]


def first_difference(
    logits: FloatArray, tokens: IntArray, limit: int, tie: float
) -> tuple[dict[str, Any] | None, float]:
    """Compare a candidate [n] with logits [n + 1, V]: (first difference, smallest top-2 gap)."""
    top = np.partition(logits, -2, axis=-1)[:, -2:]
    gaps, best = top[:, 1] - top[:, 0], logits.argmax(axis=-1)
    smallest = float(gaps[: max(1, len(tokens))].min())

    def difference(step: int, expected: int | None, gap: float | None) -> dict[str, Any]:
        got = int(tokens[step]) if step < len(tokens) else None
        return {"step": step, "expected": expected, "got": got, "gap": gap}

    for step, got in enumerate(tokens):
        if step >= limit or (step and tokens[step - 1] == EOS):
            return difference(step, None, None), smallest  # the sequence had to end before
        preferred = float(logits[step, best[step]] - logits[step, got])
        if got != best[step] and not preferred <= tie:
            return difference(step, int(best[step]), preferred), smallest
    end = len(tokens)
    if end < limit and (end == 0 or tokens[-1] != EOS):
        return difference(end, int(best[end]), float(gaps[end])), smallest
    return None, smallest


def check(
    model: Any, features: FloatArray, tokens: IntArray, lengths: IntArray, options: Any
) -> dict[str, Any]:
    """Verify candidates by one teacher-forced pass per batch; see the module docstring."""
    differing, smallest = [], []
    for number, rows in enumerate(batches(lengths)):
        longest = int(lengths[rows].max())
        logits = teacher(model, features[rows], tokens[rows, :longest]).numpy()
        for row, values in zip(rows.tolist(), logits, strict=True):
            n = int(lengths[row])
            found, gap = first_difference(
                values[: n + 1], tokens[row, :n], options.max_tokens, options.tie
            )
            smallest.append(gap)
            if found is not None:
                differing.append({"segment": row, **found})
        note(options, f"batch {number}: {len(rows)} segments of up to {longest} tokens")
    return {
        "segments": len(lengths),
        "equal": len(lengths) - len(differing),
        "tokens": int(lengths.sum()),
        "smallest_gap": min(smallest, default=None),
        "differing": sorted(differing, key=lambda d: d["segment"]),
    }


@torch.inference_mode()
def greedy_batch(
    model: Any, encoded: torch.Tensor, limit: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Cached greedy decoding with the package's own blocks; finished rows are dropped."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    decoder = model.decoder
    for layer, block in enumerate(decoder.block):  # the published constructor leaves this unset
        block.layer[0].SelfAttention.layer_idx = block.layer[1].EncDecAttention.layer_idx = layer
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    positions = decoder.pos_emb(seq=limit)
    tokens: list[list[int]] = [[] for _ in encoded]
    gaps: list[list[float]] = [[] for _ in encoded]
    rows = list(range(len(encoded)))
    ids = torch.full((len(encoded), 1), PAD)
    no_bias = torch.zeros(1, 1, 1, 1)  # nothing is masked: every cached position precedes this one
    for step in range(limit):
        hidden = decoder.embed_tokens(ids) + positions[:, step : step + 1]
        for block in decoder.block:
            hidden = block(
                hidden,
                position_bias=no_bias,
                encoder_hidden_states=encoded,
                encoder_decoder_position_bias=no_bias,
                past_key_values=cache,
                use_cache=True,
                cache_position=torch.tensor([step]),
            )[0]
        logits = model.lm_head(decoder.final_layer_norm(hidden))[:, -1]
        top, ids = logits.topk(2)[0], logits.argmax(dim=-1, keepdim=True)
        for place, row in enumerate(rows):
            tokens[row].append(int(ids[place]))
            gaps[row].append(float(top[place, 0] - top[place, 1]))
        alive = (ids[:, 0] != EOS).nonzero()[:, 0]
        if len(alive) == 0:
            break
        if len(alive) < len(rows):
            rows = [rows[place] for place in alive.tolist()]
            ids, encoded = ids[alive], encoded[alive]
            cache.batch_select_indices(alive)
    return tokens, gaps


def greedy(model: Any, features: FloatArray, options: Any) -> dict[str, npt.NDArray[Any]]:
    """Greedy decoding of all segments: tokens [S, L], lengths [S], top-2 gaps [S, L]."""
    tokens: list[list[int]] = []
    gaps: list[list[float]] = []
    for start in range(0, len(features), ROWS):
        found, found_gaps = greedy_batch(
            model, encode(model, features[start : start + ROWS]), options.max_tokens
        )
        tokens += found
        gaps += found_gaps
        note(options, f"{len(tokens)} of {len(features)} segments")
    longest = max(map(len, tokens), default=0)
    table, gap_table = (
        np.zeros((len(tokens), longest), np.int32),
        np.full((len(tokens), longest), np.nan, np.float32),
    )
    for row, (ids, values) in enumerate(zip(tokens, gaps, strict=True)):
        table[row, : len(ids)], gap_table[row, : len(ids)] = ids, values
    return {
        "tokens": table,
        "lengths": np.array([len(ids) for ids in tokens], np.int32),
        "gaps": gap_table,
    }


def verify(
    model: Any, features: FloatArray, result: dict[str, Any], options: Any
) -> list[dict[str, Any]]:
    """Compare evenly spaced segments with the package's uncached generate: the differing ones."""
    chosen = np.unique(np.linspace(0, len(features) - 1, options.verify).round().astype(int))
    with torch.inference_mode():
        theirs = model.generate(
            inputs=torch.from_numpy(features[chosen]), max_length=options.max_tokens
        )
    differing = []
    for row, original in zip(chosen.tolist(), theirs[:, 1:].tolist(), strict=True):
        n = int(result["lengths"][row])
        ours = result["tokens"][row, :n].tolist()
        if original[:n] != ours or any(original[n:]):
            differing.append({"segment": row, "generate": original, "cached": ours})
    return differing


def note(options: argparse.Namespace, text: str) -> None:
    if options.verbose:
        print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("check", "greedy", "encode", "teacher"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument(
        "--tokens", type=Path, help="npz with tokens and lengths (default: the features file)"
    )
    parser.add_argument(
        "--out", type=Path, help="npz (greedy, encode, teacher) or JSON report (check) to write"
    )
    parser.add_argument(
        "--denominator",
        type=int,
        choices=(255, 256),
        help="position frequencies 10000^(-i/N); default: those of the .pth, else 255",
    )
    parser.add_argument("--adapter", choices=("mt3_pytorch", "mr_mt3"), default="mt3_pytorch")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument(
        "--max-tokens", type=int, default=1024, help="generated tokens per segment, EOS included"
    )
    parser.add_argument(
        "--tie",
        type=float,
        default=0.0,
        metavar="GAP",
        help="check: accept a token whose logit is within GAP of the best (default 0: never)",
    )
    parser.add_argument(
        "--verify",
        type=int,
        default=0,
        metavar="N",
        help="greedy: compare N segments with generate",
    )
    parser.add_argument("--first", type=int, help="use only the first N segments")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    with np.load(options.features) as file:
        features = np.asarray(file["features"], np.float32)[: options.first]
    tokens = lengths = np.zeros((0, 0), np.int32)
    if options.command in ("check", "teacher"):
        with np.load(options.tokens or options.features) as file:
            tokens, lengths = file["tokens"][: options.first], file["lengths"][: options.first]
        if not len(features) == len(tokens) == len(lengths):
            print(
                f"{len(features)} segments but {len(tokens)} token rows, {len(lengths)} lengths",
                file=sys.stderr,
            )
            return 2
    model = build(options)
    begin = time.perf_counter()
    report: dict[str, Any] = {"command": options.command, "segments": len(features)}
    arrays: dict[str, Any] = {}
    differing: list[Any] = []
    if options.command == "check":
        report |= check(model, features, tokens, lengths, options)
        differing = report["differing"]
    elif options.command == "greedy":
        arrays = greedy(model, features, options)
        report |= {
            "tokens": int(arrays["lengths"].sum()),
            "smallest_gap": float(np.nanmin(arrays["gaps"])),
        }
        report["seconds_decoding"] = round(time.perf_counter() - begin, 1)
        if options.verify:
            differing = verify(model, features, arrays, options)
            report |= {"verified": min(options.verify, len(features)), "differing": differing}
    elif options.command == "encode":
        arrays = {"encoded": encode(model, features).numpy()}
    else:
        arrays = {
            "logits": np.concatenate(
                [
                    teacher(model, features[i : i + 1], tokens[i : i + 1]).numpy()
                    for i in range(len(features))
                ]
            )[:, :-1]
        }
    report["seconds"] = round(time.perf_counter() - begin, 1)
    if options.out and arrays:
        np.savez_compressed(options.out, **arrays)
    elif options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
