"""MR-MT3 with its memory of 64 rows: ours against decoding as published, without a cache.

Sides, each in a process of its own with its model loaded:

    one by one  the public API of mt3_runtime, recordings one after another
    together    the same, all recordings in one call: segments of one recording have to wait for
                each other, those of different ones do not
    published   the original's way (mr_mt3_peer.py): from ready features, so without the cost of
                making them, which ours pays

The published weights are not needed.  The network is seeded, has the published size, and its
end-of-sequence token never wins, so that every segment has the same number of tokens on all sides;
real ones have a median of 41 to 64.  The audio is noise.  All sides must have one token digest.
"""

from __future__ import annotations

import hashlib
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import ORACLE, ROOT, STATE, Worker, medians, talk
from materials import parser, report

from mt3_export.bundle_writer import export_bundle
from mt3_export.variants import variant_named
from mt3_export.weights import MemoryShape, PositionTable, Weights
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores

sys.path.insert(0, str(ROOT))
from tests.export.writers import inverse_frequencies, write_mr_mt3
from tests.seeded import EOS, seeded_normal, seeded_weights

VARIANT = variant_named("mr_mt3_context64")
SIDES = ("one by one", "together", "published")


def main() -> None:
    """Runs all rounds and reports."""
    made = parser(__doc__)
    add = made.add_argument
    add("--recordings", type=int, default=8)
    add("--segments", type=int, default=2, help="of each recording")
    add("--tokens", type=int, nargs="+", default=[64, 128], help="of each segment, in turn")
    add("--threads", type=int, default=usable_cores(), help="threads of every side")
    options = made.parse_args()
    facts = {name: getattr(options, name) for name in ("recordings", "segments", "threads")}
    with report(options, **facts) as (result, lines):
        measure(options, result)
        lines.extend(text(result))


def measure(options: Any, result: dict[str, Any]) -> None:
    """Asks the sides in turns."""
    bundle, checkpoint = model(max(options.tokens))
    audio, features = STATE / "mr_mt3.audio.npy", STATE / "mr_mt3.features.npy"
    np.save(audio, noise(options.recordings, options.segments))
    ours, peer = Worker("ours.py"), Worker("mr_mt3_peer.py", python=ORACLE)
    ours.ask("load", bundle=str(bundle), threads=options.threads)
    result["peer"] = peer.ask("load", checkpoint=str(checkpoint), threads=options.threads)
    ours.ask("recordings", path=str(audio), out=str(features))
    result["rounds"] = {}
    for tokens in options.tokens:
        rounds = result["rounds"][tokens] = defaultdict(list)
        for _ in range(options.runs):
            for side, together in (("one by one", False), ("together", True)):
                rounds[side].append(ours.ask("many", tokens=tokens, together=together))
            arguments = {"path": str(features), "memory": VARIANT.memory, "tokens": tokens}
            rounds["published"].append(peer.ask("forward", **arguments))
    for worker in (ours, peer):
        worker.close()


def model(tokens: int) -> tuple[Path, Path]:
    """The seeded network as our bundle, of so many tokens at most, and as the original's file."""
    talk("making a network of the published size")
    weights = seeded_weights(MemoryShape())
    head = weights.tensors["decoder.logits_dense.kernel"].copy()
    head[:, EOS] = 0.0  # the best of 1535 other logits is always larger
    tensors = dict(weights.tensors) | {"decoder.logits_dense.kernel": head}
    frequencies = inverse_frequencies(weights.shape.d_model)
    weights = Weights(weights.shape, tensors, PositionTable(256, frequencies))
    STATE.mkdir(parents=True, exist_ok=True)
    checkpoint = write_mr_mt3(STATE / "mr_mt3_context=64.pt", weights)
    bundle = STATE / "mr_mt3.bundle"
    variant = replace(VARIANT, decoding=replace(VARIANT.decoding, max_tokens=tokens))
    export_bundle(weights, variant, bundle, source={"digest": "0" * 64})
    return bundle, checkpoint


def noise(count: int, segments: int) -> Any:
    """Noise, float32 [recordings, samples]; one sample less than would open another segment."""
    samples = segments * VARIANT.segments.samples - 1
    return 0.1 * seeded_normal("noise", (count, samples))


def text(result: dict[str, Any]) -> list[str]:
    """The tables."""
    count = result["recordings"] * result["segments"]
    seconds = count * VARIANT.segments.samples / VARIANT.segments.sample_rate
    versions = ", ".join(f"{name} {found}" for name, found in result["peer"]["versions"].items())
    lines = [f"{result['recordings']} recordings of {result['segments']} segments; {versions}"]
    for tokens, rounds in result["rounds"].items():
        slowest = medians(rounds["published"])
        rows = [
            [
                f"{tokens} tokens a segment",
                "seconds",
                "x real time",
                "faster",
                "peak RSS MiB",
                "token digests",
            ]
        ]
        for side in SIDES:
            took, first = medians(rounds[side]), rounds[side][0]
            faster = f"{slowest / took:.1f} x"
            peak = f"{first['peak_rss'] / 2**20:.0f}"
            digest = hashlib.sha256("".join(first["digests"]).encode()).hexdigest()[:14]
            rows.append([side, f"{took:.2f}", f"{seconds / took:.1f}", faster, peak, digest])
        answers = [answer for side in SIDES for answer in rounds[side]]
        equal = all(answer["digests"] == answers[0]["digests"] for answer in answers)
        lines += [
            "",
            *columns(rows),
            f"{answers[0]['tokens']} tokens; digests equal: {'yes' if equal else 'NO'}",
        ]
    return lines


if __name__ == "__main__":
    main()
