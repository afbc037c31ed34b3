"""Bundles of other precision: made, judged by a gate, and only then written."""
