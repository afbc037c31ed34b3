"""The accuracy gate: material, measures and verdicts."""
