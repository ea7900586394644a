"""A trained model in other forms: both towers and the score as ONNX (graphs.py, onnx_files.py), the
vectors of a split as Parquet (parquet.py).

    python -m retrieval.export --checkpoint DIR --onnx --output DIR
    python -m retrieval.export --checkpoint DIR --parquet FILE --cache DIR --split NAME
"""
