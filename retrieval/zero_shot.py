"""Classify clips by labels in words: `python -m retrieval.zero_shot`."""

from retrieval.base.command import run_main
from retrieval.evaluation.zero_shot import main

if __name__ == "__main__":
    run_main(main)
