"""Canonical weights to ONNX graphs."""
