"""A process keeps what it frees, and needs no fresh pages for it; each in a process of its own."""

import ctypes
import os
import subprocess
import sys

import pytest

from utils.pipeline.workspace import REPOSITORY

PROGRAM = """
import resource, sys, torch
sys.path.insert(0, {root!r})
from utils.training.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()

def step():
    return len([torch.ones(2 << 20) for _ in range(16)])  # 128 MiB in blocks of 8, free again at the end

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than GNU's")
def test_freed_memory_is_used_again_without_fresh_pages():
    faults, giving_back = {}, os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else it does so by chance
    for keep in (False, True):
        program = PROGRAM.format(root=str(REPOSITORY.root), keep=keep)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=giving_back, capture_output=True, text=True, check=True)
        faults[keep] = int(done.stdout)
    assert faults[True] < faults[False] / 10, faults
