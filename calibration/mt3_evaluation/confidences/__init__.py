"""Fits and reports how reliable the confidence of notes is."""
