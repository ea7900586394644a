"""Model card and upload: `python -m retrieval.sharing card` and `push` (command.py)."""

from retrieval.base.command import run_main
from retrieval.sharing.command import main

if __name__ == "__main__":
    run_main(main)
