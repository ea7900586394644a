"""Give a model away: card, hub, ONNX, Parquet."""
