"""Export a trained model: ONNX graphs (graphs.py, onnx_files.py), vectors as Parquet (parquet.py).

python -m retrieval.export --checkpoint DIR --onnx --output DIR
python -m retrieval.export --checkpoint DIR --parquet FILE --cache DIR --split NAME
"""
