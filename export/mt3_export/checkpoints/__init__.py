"""Checkpoints of all layouts to canonical weights, without their frameworks."""
