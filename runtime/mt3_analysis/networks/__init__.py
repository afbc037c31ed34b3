"""Runs taggers and genre classifiers: bundles by name, windows, scores."""
