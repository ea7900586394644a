"""python tests/crashing_build.py OPTIONS: data_prep/build_folder.py whose files are decoded by
crashing_reader, in worker processes too.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retrieval.base import decoder_process

decoder_process.READER = "tests.crashing_reader"  # a worker imports this file too

if __name__ == "__main__":
    from data_prep import build_folder

    sys.exit(build_folder.main())
