"""ONNX Runtime's CUDA provider: lanes whose slots lie on the device."""
