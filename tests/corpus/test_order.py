"""Output order: by hash, whatever the number of buckets."""

import json
from pathlib import Path

import numpy as np
import pytest

import utils.corpus.order as order
from tests.corpus.stored import NeverStopped, stored
from utils.corpus.order import in_output_order


@pytest.mark.parametrize("bucket_bytes", [1 << 20, 2_000, 300])
def test_lines_come_by_hash_for_any_bucket_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int
):
    monkeypatch.setattr(order, "BUCKET_BYTES", bucket_bytes)
    texts = {"a": [f"text number {i} of a" for i in range(90)], "b": [f"and {i} of b" * 3 for i in range(50)]}
    documents = stored(tmp_path, texts, per_block=20)
    chosen = np.arange(len(documents)) % 3 != 0
    lines = [bytes(line) for line in in_output_order(documents, chosen, tmp_path / "order", NeverStopped())]
    by_hash = sorted(np.flatnonzero(chosen).tolist(), key=lambda i: int(documents.column("order")[i]))
    assert [json.loads(line)["id"] for line in lines] == [documents.id(i) for i in by_hash]
    assert not (tmp_path / "order").exists()


def test_no_document_no_line(tmp_path: Path):
    documents = stored(tmp_path, {"a": ["some text"]})
    assert list(in_output_order(documents, np.zeros(1, bool), tmp_path / "order", NeverStopped())) == []
