"""TensorRT engines from bundles: build them, keep them, check them, run them.

Nothing here imports TensorRT, polygraphy, CUDA or onnx before it needs them.
"""
