"""Exports taggers and genre classifiers: published files to graphs that end in logits."""
