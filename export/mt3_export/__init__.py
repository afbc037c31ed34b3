"""Checkpoints of the MT3 family -> ONNX bundles, and the proof that they compute the same."""
