"""The recipe ``fast``: products of integers for CPUs (see docs/precision.md)."""
