"""
Reference log-probabilities: computed once, kept beside the unfinished build, used for every step and every
resume.

    logps = cached(stage.partial, "train.0", compute)        # float64 [pairs, 2]; compute() runs the first
    time only
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

SCRATCH = ".journal"  # never an output; an unfinished build of another key is never continued, so no key is needed here


def cached(partial: Path, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Read the array of an earlier, killed run, or compute and write it."""
    path = partial / SCRATCH / f"reference.{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_suffix(f".{os.getpid()}.tmp")
        with open(writing, "wb") as file:
            np.save(file, compute())
            file.flush()
            os.fsync(file.fileno())
        os.replace(writing, path)
    return np.load(path)
