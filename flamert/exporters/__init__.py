"""ONNX out: onnx.py puts weights back into their file; graph.py writes any graph, by one module of exporters per family."""
