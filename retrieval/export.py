"""Export a model as ONNX or its vectors as Parquet: `python -m retrieval.export`."""

from retrieval.base.command import run_main
from retrieval.sharing.export.command import main

if __name__ == "__main__":
    run_main(main)
