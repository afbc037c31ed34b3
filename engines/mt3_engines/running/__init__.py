"""The TensorRT backend: CUDA memory, lanes of rows, recorded steps."""
