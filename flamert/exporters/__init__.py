"""ONNX out: onnx.py puts weights back into the file they came from."""
