"""Whole recordings: tokens against PyTorch's, and what labels and leakage filters say of the notes.

Every recording goes through the public API with its defaults, by the exact bundle, the one that is
exported by default (stored as fp16) and the small default model; and by the exact one without a
leakage filter and with mt3-infer's rules.  Scores are kept as counts (matched, labels, notes), so
that they can be added up.  The exact bundle's tokens are compared, segment by segment, with those
of the cached PyTorch loop (torch_peer.py) from the same features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import ORACLE, STATE, Worker, talk
from materials import RECORDINGS, bundle, exported, parser, report, torch_checkpoint

from mt3_evaluation.labels import find_labels, read_labels
from mt3_evaluation.scoring import Score, before, score_drums, score_notes
from mt3_runtime.commands.bench_command import columns
from mt3_runtime.diagnostics.cores import usable_cores
from mt3_runtime.loading import load_model
from mt3_runtime.model import Model, token_digest
from mt3_runtime.models.installed import resolve_model

#: Side -> bundle and leakage filter.
SIDES: dict[str, tuple[str, Any]] = {
    "exact": ("exact", True),
    "exact, no filter": ("exact", False),
    "exact, mt3-infer's filter": ("exact", "classic"),
    "stored as fp16": ("fp16", True),
    "default": ("default", True),
}
BEGINNING = 60.0  # seconds: beside whole recordings stands what begins in the first minute


def main() -> None:
    """Transcribes all recordings once and reports."""
    made = parser(__doc__)
    made.add_argument("--recordings", nargs="+", default=RECORDINGS)
    made.add_argument("--threads", type=int, default=usable_cores(), help="threads of every side")
    options = made.parse_args()
    exact = bundle(options)
    bundles = {
        "exact": exact,
        "fp16": exported(options, "fp16"),
        "default": resolve_model("default"),
    }
    with report(options) as (result, lines):
        result["tokens"] = tokens(options, exact, result)
        result["sides"] = {side: {} for side in SIDES}
        for name, path in bundles.items():
            with load_model(path, device="cpu", threads=options.threads) as model:
                for side, (of, kind) in SIDES.items():
                    if of == name:
                        talk(side)
                        for recording in options.recordings:
                            found = score(model, options.audio / recording, kind)
                            result["sides"][side][recording] = found
        lines.extend(text(result))


def tokens(options: Any, path: Path, result: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Segments of every recording, and those whose tokens are PyTorch's."""
    ready = str(STATE / "features.npy")
    fair, checkpoint = Worker("torch_peer.py", python=ORACLE), str(torch_checkpoint(options))
    loaded = fair.ask("load", checkpoint=checkpoint, bundle=str(path), threads=options.threads)
    result["versions"] |= loaded["versions"]
    found = {}
    with load_model(path, device="cpu", threads=options.threads) as model:
        for name in options.recordings:
            features = model.preprocess(options.audio / name)
            np.save(ready, features)
            fair.ask("features", path=ready)
            ours = [token_digest([sequence]) for sequence in model.forward(features)]
            pairs = zip(ours, fair.ask("forward")["each"], strict=True)
            found[name] = {"segments": len(ours), "equal": sum(a == b for a, b in pairs)}
            talk(f"{name}: {found[name]}")
    fair.close()
    return found


def score(model: Model, path: Path, kind: Any) -> dict[str, Any]:
    """Counts of one transcription; scores only of what is labelled."""
    found = model.transcribe_notes(path, auto_filter=kind)
    drums = sum(note.is_drum for note in found.notes)
    counts: dict[str, Any] = {
        "digest": found.token_digest,
        "notes": len(found.notes),
        "drums": drums,
    }
    if files := find_labels(path.stem, path.parent):
        labels = read_labels(files)
        if labels.pitched:
            sides = (labels.notes, found.notes)
            counts["onset"] = _counts(score_notes(*sides))
            counts["onset, beginning"] = _counts(
                score_notes(*(before(side, BEGINNING) for side in sides))
            )
        if labels.drums:
            counts["drum onset"] = _counts(score_drums(labels.notes, found.notes))
    return counts


def _counts(found: Score) -> list[int]:
    return [found.matched, found.labels, found.notes]


def f1(*counts: list[int]) -> float:
    """F1 of recordings together."""
    matched, labels, notes = (sum(numbers) for numbers in zip(*counts, strict=True))
    return 2 * matched / (labels + notes) if labels + notes else 0.0


def text(result: dict[str, Any]) -> list[str]:
    """One row per recording and side."""
    rows = [["recording", "side", "notes", "drums", "onset F1", "beginning", "drum onset F1"]]
    for side, recordings in result["sides"].items():
        for name, counts in recordings.items():
            scores = (counts.get(key) for key in ("onset", "onset, beginning", "drum onset"))
            shown = (f"{f1(found):.3f}" if found else "" for found in scores)
            rows.append([name, side, str(counts["notes"]), str(counts["drums"]), *shown])
    equal, segments = (
        sum(c[key] for c in result["tokens"].values()) for key in ("equal", "segments")
    )
    return [f"segments with PyTorch's tokens: {equal} of {segments}", *columns(rows)]


if __name__ == "__main__":
    main()
