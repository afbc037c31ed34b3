"""Bundles of other precision: how they are made, and the gate they pass."""
