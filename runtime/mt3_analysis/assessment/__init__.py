"""Assesses performances on the piano: measures, against a score, and in comparison."""
