"""Judges exported networks on examples: the study's tables, and everything the diagnostics say.

Contract: runs the graphs with ONNX Runtime, no framework; on the judged part of the examples unless
all of them are asked for.  Each modality is taken from a recording of another piece to see what it
is worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.artefact_probe import artefact_probe
from mt3_analysis.assessment_networks.label_diagnostics import (
    Finding,
    ceiling_of,
    constant_confidence,
    finding,
    label_rank,
)
from mt3_analysis.assessment_networks.modality_diagnostics import (
    UNIFORM,
    attention_in_time,
    attention_summary,
    gate_summary,
    modality_alignment,
    modality_worth,
    shuffled,
)
from mt3_analysis.assessment_networks.network_report import NetworkReport, build_report
from mt3_analysis.assessment_networks.network_session import AssessorNetworks, NetworkScores
from mt3_analysis.assessment_networks.octuple_tokens import in_order
from mt3_runtime.bundles.assessor_networks import AssessorNetwork
from mt3_runtime.errors import OptionError
from mt3_training.assessing.assessor_examples import Examples

#: r of the condition alone from which labels say little beside it.
PREDICTABLE = 0.9

Table = npt.NDArray[np.float64]


def probe(examples: Examples) -> tuple[Finding, ...]:
    """What labels are worth before a network is trained: rank, ceiling of conditions, artefacts.

    Args:
        examples: All of them.

    Raises:
        OptionError: They are of fewer than two pieces.
    """
    labels, items = examples.labels, examples.items
    found = [label_rank(labels)]
    conditions = _conditions(examples)
    if conditions is not None:
        ceiling = float(ceiling_of(labels, conditions).mean())
        found.append(
            finding(
                "label ceiling",
                {"ceiling": ceiling},
                flagged=ceiling >= PREDICTABLE,
                said=f"the condition alone reaches r {ceiling:.3f}"
                + (": little else is there to learn" if ceiling >= PREDICTABLE else ""),
            )
        )
    about = np.stack([item.nuisances for item in items])
    found.append(artefact_probe(about, labels, labels, [item.entry.piece for item in items]))
    return tuple(found)


def judge(
    networks: AssessorNetworks, examples: Examples, *, resamples: int = 1000
) -> NetworkReport:
    """The report of all networks of a bundle.

    Args:
        networks: Of one bundle.
        examples: With frames of the bundle's audio encoder.
        resamples: Draws of each interval.

    Raises:
        OptionError: The examples have other dimensions, are of fewer than two pieces, or one piece
            has most of them.
    """
    items = examples.items
    specs = networks.manifest.networks
    if not specs or any(spec.dimensions != examples.dimensions for spec in specs):
        raise OptionError(
            f"the examples have the dimensions {', '.join(examples.dimensions)}; expected a bundle "
            "with networks of the same."
        )
    if len(items) < 4:
        raise OptionError(
            f"{len(items)} recordings are too few to judge by; expected four or more."
        )
    pieces = [item.entry.piece for item in items]
    order = shuffled(pieces)
    predictions: dict[str, Table] = {}
    extra: dict[str, tuple[Finding, ...]] = {}
    for spec in specs:
        said = _answers(networks, spec, examples)
        predictions[spec.name] = _scores(said)
        without = {}
        if spec.hears and spec.reads:
            for side in ("audio", "midi"):
                swapped = _answers(networks, spec, examples, **{side: order})
                without[side] = _scores(swapped)
        found = [constant_confidence(np.stack([one.log_variance for one in said]))]
        found += _inside(spec, said, examples)
        worth: Mapping[str, Finding] = (
            modality_worth(
                predictions[spec.name], without, examples.labels, pieces, resamples=resamples
            )
            if without
            else {}
        )
        extra[spec.name] = (*found, *worth.values())
    report = build_report(
        predictions,
        examples.labels,
        examples.dimensions,
        pieces,
        single=[spec.name for spec in specs if not (spec.hears and spec.reads)],
        conditions=_conditions(examples),
        about_recordings=np.stack([item.nuisances for item in items]),
        resamples=resamples,
    )
    findings = {name: (*several, *extra.get(name, ())) for name, several in report.findings.items()}
    return replace(report, findings=findings)


def _answers(
    networks: AssessorNetworks,
    spec: AssessorNetwork,
    examples: Examples,
    *,
    audio: npt.NDArray[np.int64] | None = None,
    midi: npt.NDArray[np.int64] | None = None,
) -> list[NetworkScores]:
    """What a network says of each recording, with one modality of others in its place."""
    items, rows = examples.items, np.arange(len(examples.items))
    heard, read = (rows if order is None else order for order in (audio, midi))
    return [
        networks.assess(
            spec.name,
            frames=items[heard[row]].frames if spec.hears else None,
            notes=items[read[row]].notes if spec.reads else None,
        )
        for row in rows
    ]


def _scores(said: list[NetworkScores]) -> Table:
    return np.stack([one.scores for one in said]).astype(np.float64)


def _conditions(examples: Examples) -> list[str] | None:
    """Conditions, where several recordings share one and there are two or more."""
    found = [item.entry.condition for item in examples.items]
    return found if 1 < len(set(found)) <= len(found) // 2 else None


def _inside(spec: AssessorNetwork, said: list[NetworkScores], examples: Examples) -> list[Finding]:
    found = []
    if spec.hears and spec.reads:
        sides = (
            np.stack([one.inside[f"{side}_embedding"] for one in said])
            for side in ("audio", "midi")
        )
        found.append(modality_alignment(*sides))
    if spec.fusion == "gated":
        found.append(gate_summary(np.concatenate([one.inside["gates"] for one in said])))
    if spec.fusion == "cross":
        found += _attention(said, examples, spec.max_notes)
    return found


def _attention(said: list[NetworkScores], examples: Examples, most: int) -> list[Finding]:
    """Each way of attention: its entropy, and how much of it is on time."""
    figures: dict[str, list[tuple[float, float]]] = {"audio_to_midi": [], "midi_to_audio": []}
    for one, item in zip(said, examples.items, strict=True):
        onsets = in_order(item.notes)[:most, 0]
        frames = np.arange(len(item.frames)) * examples.frame_seconds
        for name, asked, there in (
            ("audio_to_midi", frames, onsets),
            ("midi_to_audio", onsets, frames),
        ):
            weights = one.inside[name][: len(asked), : len(there)]
            weights = weights / weights.sum(axis=1, keepdims=True)  # notes that were filled up
            entropy = attention_summary(weights, [name] * len(there)).figures["entropy"]
            figures[name].append((entropy, attention_in_time(weights, asked, there)))
    found = []
    for name, rows in figures.items():
        entropy, share = (float(value) for value in np.mean(rows, axis=0))
        flagged = entropy >= UNIFORM
        found.append(
            finding(
                f"attention {name}",
                {"entropy": entropy, "on_time": share},
                flagged=flagged,
                said=f"{entropy:.2f} of the largest entropy, {share:.0%} within 0.3 s"
                + (": it looks at nothing in particular" if flagged else ""),
            )
        )
    return found
