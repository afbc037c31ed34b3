"""Quantise and dequantise pairs for GPUs: ranges, insertion, sensitivity."""
