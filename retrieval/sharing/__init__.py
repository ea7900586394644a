"""Share a model: card, hub, ONNX, Parquet."""
