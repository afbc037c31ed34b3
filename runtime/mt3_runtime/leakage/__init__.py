"""Instrument leakage: what the audio says about notes, and the filters that read it."""
