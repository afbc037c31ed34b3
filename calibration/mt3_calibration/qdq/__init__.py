"""Static quantisation of the weight products, for engines: int8 and fp8 as Q/DQ pairs in ONNX."""
