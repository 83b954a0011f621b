"""
Reference log-probabilities: computed once, kept beside the unfinished build, the same for every resume.

    logps = cached(stage.partial, "train.0", compute)        # float64 [pairs, 2]; compute() runs once
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Never an output. An unfinished build is only continued under its own key, so the file needs none.
SCRATCH = ".journal"


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
