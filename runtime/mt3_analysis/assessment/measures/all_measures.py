"""All measures by name, and the six groups they are in.

Contract: names and definitions are part of the result's format; their order is that of the columns
that the networks on measures take.
"""

from __future__ import annotations

__all__ = ["GROUPS", "MEASURES", "Measured", "Take", "measure_take"]

from mt3_analysis.assessment.measures.accuracy_measures import ACCURACY
from mt3_analysis.assessment.measures.articulation_measures import ARTICULATION
from mt3_analysis.assessment.measures.dynamics_measures import DYNAMICS
from mt3_analysis.assessment.measures.measured_take import Group, Measure, Measured, Take, measured
from mt3_analysis.assessment.measures.pedal_measures import PEDAL
from mt3_analysis.assessment.measures.timing_measures import TIMING
from mt3_analysis.assessment.measures.tone_measures import TONE

GROUPS: dict[str, Group] = {
    "timing": TIMING,
    "dynamics": DYNAMICS,
    "articulation": ARTICULATION,
    "pedal": PEDAL,
    "accuracy": ACCURACY,
    "tone": TONE,
}
"""The measures by group."""

MEASURES: dict[str, Measure] = {
    name: measure for group in GROUPS.values() for name, measure in group.items()
}
"""All measures by name."""


def measure_take(take: Take) -> dict[str, Measured]:
    """Measures a take in every respect."""
    return measured(take, MEASURES.values())
