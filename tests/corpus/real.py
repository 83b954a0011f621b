"""
Real texts for tests and measurements: a folder outside the repository that the environment names.

    chapters = book_texts()             # skips the test where LOCKSTEP_TEST_DATA is not set
"""

import gzip
import json
import os
from pathlib import Path

import pytest


def data_folder() -> Path:
    """The folder with books/, eval/ and so on; skips the calling test when there is none."""
    folder = os.environ.get("LOCKSTEP_TEST_DATA", "")
    if not folder:
        pytest.skip("LOCKSTEP_TEST_DATA names no folder of real texts")
    return Path(folder)


def book_texts(every: int = 1) -> list[str]:
    """Every nth chapter of the books."""
    paths = sorted((data_folder() / "books").glob("*.jsonl.gz"))
    lines = [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [json.loads(line)["text"] for line in lines[::every]]
