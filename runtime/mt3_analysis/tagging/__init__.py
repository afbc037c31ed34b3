"""Instruments over time and overall: of a tagger, and of a transcription."""
