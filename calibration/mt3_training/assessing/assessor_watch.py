"""What a training run logs of its fusion at each evaluation, beside losses and score.

Contract: collects arrays batch by batch, what was filled up left out, and gives figures by the
names of the log's columns; those that a fusion does not have are not there.  This module does not
import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from mt3_analysis.assessment_networks.modality_diagnostics import (
    attention_summary,
    gate_summary,
    modality_alignment,
)
from mt3_training.assessing.assessor_examples import AssessmentBatch

WATCHED = ("gate_mean", "gate_sd", "alignment", "audio_to_midi_entropy", "midi_to_audio_entropy")
"""Mean of the gate and its deviation over notes; cosine of a recording's embeddings less that of
others; entropy of attention both ways, as a share of the largest."""

Floats = npt.NDArray[np.floating]


class FusionWatch:
    """Collects what a network made of batches."""

    def __init__(self) -> None:
        self._gates: list[Floats] = []
        self._embeddings: dict[str, list[Floats]] = {}
        self._entropies: dict[str, list[float]] = {}

    def add(
        self,
        batch: AssessmentBatch,
        *,
        gates: Floats | None,
        embeddings: Mapping[str, Floats],
        attention: tuple[Floats, Floats] | None,
        by_index: bool = False,
    ) -> None:
        """Adds a batch.

        Args:
            batch: What the network was given.
            gates: [rows, steps, W].
            embeddings: Of each modality [rows, W].
            attention: Of audio to notes [rows, t, n], and the other way round.
            by_index: Whether frame i was paired with note i.
        """
        if gates is not None:
            steps = gates.shape[1]
            there = batch.note_mask[:, :steps]
            if by_index:
                there = there & batch.frame_mask[:, :steps]
            self._gates.append(gates[there])
        for side, values in embeddings.items():
            self._embeddings.setdefault(side, []).append(values)
        if attention is not None:
            for row in range(len(batch.labels)):
                t, n = int(batch.frame_mask[row].sum()), int(batch.note_mask[row].sum())
                self._attend("audio_to_midi", attention[0][row, :t, :n])
                self._attend("midi_to_audio", attention[1][row, :n, :t])

    def _attend(self, name: str, weights: Floats) -> None:
        summary = attention_summary(weights, [name] * weights.shape[1])
        self._entropies.setdefault(f"{name}_entropy", []).append(summary.figures["entropy"])

    def figures(self) -> dict[str, float]:
        """By the names in `WATCHED`."""
        found = {name: float(np.mean(values)) for name, values in self._entropies.items()}
        if self._gates:
            summary = gate_summary(np.concatenate(self._gates)).figures
            found |= {"gate_mean": summary["mean"], "gate_sd": summary["sd_over_notes"]}
        if len(self._embeddings) == 2:
            sides = (np.concatenate(self._embeddings[side]) for side in ("audio", "midi"))
            found["alignment"] = modality_alignment(*sides).figures["difference"]
        return found
