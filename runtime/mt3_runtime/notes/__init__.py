"""Tokens to notes: the vocabulary, assemblers, confidence, instruments and stems."""
