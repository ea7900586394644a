"""Weights for small encoders from a cache: `python -m retrieval.pretraining`."""

from retrieval.base.command import run_main
from retrieval.training.pretraining import main

if __name__ == "__main__":
    run_main(main)
