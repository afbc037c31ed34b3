"""Trained weights to bundles and model cards."""
