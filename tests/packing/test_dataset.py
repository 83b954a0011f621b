"""The reader: what a row holds in both modes, and what it costs to pass around."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.packing.conftest import make_blocks, make_layout, pack
from utils.packing.dataset import PackedDataset


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.integers(2, 30), min_size=6, max_size=30),
    st.sampled_from(["best_fit", "concat"]),
    st.integers(2, 20),
)
def test_rows_give_back_the_stream(tmp_path: Path, lengths: list[int], mode: str, length: int):
    pack(tmp_path, "train", make_blocks(lengths), make_layout(length, mode))
    data = PackedDataset(tmp_path, "train")
    batch = data.rows(range(data.num_rows))
    assert batch.tokens.shape == (data.num_rows, length + 1)
    filled = batch.document >= 0
    for document in range(data.num_documents):
        ids, mine = data.document(document), batch.document == document
        inside = [batch.tokens[r][mine[r]].tolist() for r in range(data.num_rows) if mine[r].any()]
        assert all(contains(ids.tolist(), piece) for piece in inside)
        if mode == "best_fit":
            assert sum(len(piece) - 1 for piece in inside) == len(ids) - 1
    assert (batch.tokens[~filled] == 3).all()
    restarts = np.diff(batch.position, axis=1) != 1
    assert (batch.document[:, 1:] != batch.document[:, :-1])[restarts & filled[:, 1:]].all()
    assert (batch.position[:, 0] == 0).all()


def contains(ids: list[int], piece: list[int]) -> bool:
    return any(ids[i : i + len(piece)] == piece for i in range(len(ids) - len(piece) + 1))


def test_concat_row_is_a_window_that_overlaps_the_next_by_one(tmp_path: Path):
    pack(tmp_path, "train", make_blocks([5, 9, 7]), make_layout(4, "concat"))
    data = PackedDataset(tmp_path, "train")
    stream = np.concatenate([data.document(i) for i in range(3)])
    assert data.num_rows == 5
    for r in range(5):
        assert data.rows([r]).tokens[0].tolist() == stream[4 * r : 4 * r + 5].tolist()
    assert data.rows([1]).document[0].tolist() == [0, 1, 1, 1, 1]
    assert data.rows([1]).position[0].tolist() == [0, 0, 1, 2, 3]


def test_dtypes_order_and_bounds(packed: Path):
    data = PackedDataset(packed, "train")
    batch = data.rows([2, 0])
    assert (batch.tokens.dtype, batch.document.dtype, batch.position.dtype) == (np.int64, np.int32, np.int32)
    assert batch.tokens[1].tolist() == data.rows([0]).tokens[0].tolist()
    for bad in (-1, data.num_rows):
        with pytest.raises(IndexError, match="outside 0 to 4"):
            data.rows([bad])


def test_pickles_as_its_path(packed: Path):
    data = PackedDataset(packed, "train")
    pickled = pickle.dumps(data)
    assert len(pickled) < 300 + len(str(packed))
    assert pickle.loads(pickled).rows([1]).tokens.tolist() == data.rows([1]).tokens.tolist()
