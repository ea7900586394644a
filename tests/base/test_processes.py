"""Freed memory stays in a process that asks for it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = """
import resource, sys, torch
from retrieval.base.processes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
@pytest.mark.parametrize(("way", "least", "most"), [("kept", 0, 100), ("usual", 100, None)])
def test_pages_of_freed_memory_are_taken_again(way, least, most):
    # A page has 4 kB, or 2 MB where the system uses huge pages.
    result = subprocess.run(
        [sys.executable, "-c", FAULTS, way], cwd=ROOT, capture_output=True, text=True, check=True
    )
    faults = int(result.stdout)
    if way == "usual" and faults < least:
        pytest.skip("this system has huge pages, so there is nothing to see")
    assert least <= faults and (most is None or faults <= most)
