"""Writes ``runtime/web/vectors.json``: tokens of segments, and the notes and MIDI files they mean.

They are for programs that read tokens without this runtime, of `mt3 export --single-file` for
example, in any language.  ``python -m tests.web.vectors`` writes them anew; a test compares.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mt3_export.variants import Variant, variant_named
from mt3_runtime.files.midi import to_midi
from mt3_runtime.notes.assemblers import assembler_for
from mt3_runtime.notes.note import Note
from mt3_runtime.recording import span_of
from mt3_runtime.transcription import by_onset
from mt3_training.shipping.small_model import DEFAULT

PATH = Path(__file__).parents[2] / "runtime" / "web" / "vectors.json"

#: How often kinds of tokens occur in a made-up sequence; the last is any id.
_MIXES = {
    "tidy": {"shift": 3, "program": 2, "velocity": 2, "pitch": 6, "drum": 2, "tie": 0, "any": 0},
    "wild": {"shift": 2, "program": 2, "velocity": 2, "pitch": 3, "drum": 2, "tie": 1, "any": 3},
    "crowded": {"shift": 3, "program": 6, "velocity": 1, "pitch": 7, "drum": 1, "tie": 0, "any": 0},
}


def _sequences(variant: Variant, mix: str, seed: int, segments: int) -> Iterator[list[int]]:
    random = np.random.default_rng(seed)
    ranges = {item.kind.value: item for item in variant.vocabulary.ranges}
    weights = np.array(list(_MIXES[mix].values()), float)
    for _ in range(segments):
        tokens = [ranges["tie"].first_id] if variant.notes.ties else []
        for kind in random.choice(
            list(_MIXES[mix]), size=120 if mix == "crowded" else 40, p=weights / weights.sum()
        ):
            if kind == "any":
                tokens.append(int(random.integers(0, variant.vocabulary.size)))
                continue
            wide = {"shift": 9 if mix == "crowded" else 40, "pitch": 30, "program": 24}.get(
                kind, 128
            )
            ids = ranges[kind].ids
            tokens.append(int(ids[random.integers(0, min(len(ids), wide))]))
        if random.random() < 0.9:
            tokens.append(variant.vocabulary.eos)
        yield tokens


def _case(name: str, variant: Variant, sequences: list[list[int]], seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    assembler = assembler_for(variant.vocabulary, variant.notes)
    notes: list[Note] = []
    reports, chances = [], []
    for index, tokens in enumerate(sequences):
        span = span_of(variant.segments, index, last=index + 1 == len(sequences))
        chance = np.round(random.uniform(0.02, 1.0, len(tokens)), 4)
        chances.append(chance.tolist())
        ended, report = assembler.add(
            tokens,
            chance,
            span.start,
            span.next_start,
            truncated=variant.vocabulary.eos not in tokens,
        )
        notes += ended
        reports.append(
            [
                report.token_count,
                report.truncated,
                report.missing_tie,
                report.invalid_events,
                report.dropped_events,
            ]
        )
    ordered = by_onset(notes + assembler.finish())
    file = io.BytesIO()
    to_midi(ordered).save(file=file)
    confidence = variant.confidence
    return {
        "name": name,
        "model": variant.name,
        "sequences": sequences,
        "probabilities": chances,
        "reports": reports,
        "notes": [
            [n.onset, n.offset, n.pitch, n.velocity, n.program, n.is_drum, n.confidence]
            for n in ordered
        ],
        "calibrated": [confidence.confidence(n) for n in ordered] if confidence else None,
        "midi_sha256": hashlib.sha256(file.getvalue()).hexdigest(),
        "midi": base64.b64encode(file.getvalue()).decode() if len(ordered) < 60 else None,
    }


def vectors() -> dict[str, Any]:
    """The document: manifests of the models in part, and the cases."""
    variants = [DEFAULT, variant_named("magenta_mt3"), variant_named("magenta_ismir2021")]
    cases = [
        _case(f"{mix} {variant.name}", variant, list(_sequences(variant, mix, seed, 4)), seed)
        for variant in variants
        for seed, mix in enumerate(_MIXES)
    ]
    crowd = [[ids for part in _sequences(DEFAULT, "crowded", 7, 5) for ids in part if ids != 1]]
    cases.append(_case("one long segment", DEFAULT, crowd, 8))
    return {
        "about": "tokens -> notes [onset, offset, pitch, velocity, program, drum, confidence]; "
        "reports are [tokens, truncated, missing tie, invalid, dropped]; see docs/web.md",
        "models": {
            variant.name: {
                "segments": variant.segments.to_dict(),
                "vocabulary": variant.vocabulary.to_dict(),
                "notes": variant.notes.to_dict(),
                "confidence": variant.confidence.to_dict() if variant.confidence else None,
            }
            for variant in variants
        },
        "cases": cases,
    }


def text() -> str:
    """The file's content."""
    document = vectors()
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
