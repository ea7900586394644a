"""The search page in the browser: `python -m retrieval.app --index DIR`."""

from retrieval.base.command import run_main
from retrieval.search.page.command import main

if __name__ == "__main__":
    run_main(main)
