"""Trains a model: examples, networks, runs, and the bundle that ships."""
