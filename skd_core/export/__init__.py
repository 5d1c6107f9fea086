"""The network as one ONNX graph, from the uint8 image to boxes."""
