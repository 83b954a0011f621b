"""
Real texts for tests and measurements: a folder outside the repository that the environment names.

    LOCKSTEP_TEST_DATA=/data/real python -m pytest tests/corpus

    books/*.jsonl.gz               a chapter a line, its text in "text"
    eval/wikitext2_valid.txt       lines of the validation split of WikiText-2

Without it the tests that need it skip. CONTRIBUTING.md says which numbers they expect.
"""

import gzip
import json
import os
from pathlib import Path

import pytest


def data_folder() -> Path:
    """The folder with books/ and eval/; skips the calling test when there is none."""
    folder = os.environ.get("LOCKSTEP_TEST_DATA", "")
    if not folder:
        pytest.skip("set LOCKSTEP_TEST_DATA to a folder with books/ and eval/ (CONTRIBUTING.md, Real texts)")
    return Path(folder)


def book_texts(every: int = 1) -> list[str]:
    """Every nth chapter of the books."""
    paths = sorted((data_folder() / "books").glob("*.jsonl.gz"))
    lines = [line for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]
    return [json.loads(line)["text"] for line in lines[::every]]
