"""The reader: what a row holds in both modes, and what it costs to pass around."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.packing.conftest import EncodedBlock, make_blocks, make_layout, pack
from utils.packing.dataset import PackedDataset, verify_packed
from utils.packing.index import SpecialIds
from utils.pipeline.errors import UpstreamError
from utils.training.loss import IGNORED, next_token_targets


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        ids, mine = data.documents(document), batch.document == document
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
    stream = np.concatenate([data.documents(i) for i in range(3)])
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
    assert len(pickled) < 400 + len(str(packed))
    assert pickle.loads(pickled).rows([1]).tokens.tolist() == data.rows([1]).tokens.tolist()


def numbered_documents(lengths: list[int]) -> list[EncodedBlock]:
    """
    Documents in which every id occurs once in the whole stream, so that a pair of ids says where it was.
    """
    ids = np.arange(sum(lengths), dtype=np.uint32)
    names = [f"{i:032x}" for i in range(len(lengths))]
    return [EncodedBlock(ids, lengths, lengths, lengths, names, ["books"] * len(lengths))]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda lengths: sum(lengths) > 20),
    st.sampled_from(["best_fit", "concat"]),
    st.integers(2, 20),
)
def test_every_transition_is_a_target_once_and_none_crosses_documents(
    tmp_path: Path, lengths: list[int], mode: str, length: int
):
    """Counted through the reader and the loss that training uses."""
    pack(tmp_path, "train", numbered_documents(lengths), make_layout(length, mode, vocab_size=2_000))
    data = PackedDataset(tmp_path, "train")
    batch = data.rows(range(data.num_rows))
    inputs, targets, _ = (column.numpy() for column in next_token_targets(batch))
    scored = targets != IGNORED
    seen = sorted(zip(inputs[scored].tolist(), targets[scored].tolist(), strict=True))
    ends = set(np.cumsum(lengths).tolist())
    used = sum(lengths) if mode == "best_fit" else data.num_rows * length + 1
    assert seen == [(i, i + 1) for i in range(used - 1) if i + 1 not in ends]
    assert set(batch.tokens[batch.document >= 0].tolist()) == set(range(used))


def test_a_tokenizer_without_padding_is_padded_with_eos_that_is_no_target(tmp_path: Path):
    pack(tmp_path, "train", make_blocks([5, 8, 4]), make_layout(pad=-1))
    data = PackedDataset(tmp_path, "train")
    assert data.special == SpecialIds(1, 2, -1)
    batch = data.rows(range(data.num_rows))
    padding = batch.document < 0
    assert padding.any() and (batch.tokens[padding] == 2).all()
    _, targets, _ = next_token_targets(batch)
    assert (targets.numpy()[padding[:, 1:]] == IGNORED).all()
    assert (targets == 2).sum() == 3  # each document's own EOS is learnt


def test_one_token_may_be_bos_and_eos(tmp_path: Path):
    blocks = make_blocks([5, 9, 4])
    for block in blocks:
        block.ids[block.ids == 1] = 2
    layout = make_layout()
    object.__setattr__(layout, "special", SpecialIds(2, 2, -1))
    pack(tmp_path, "train", blocks, layout)
    assert verify_packed(tmp_path, "train").num_documents == 3


def test_a_pickle_notices_another_tokenizer(tmp_path: Path):
    pack(tmp_path, "train", make_blocks([5, 9, 4]), make_layout())
    pickled = pickle.dumps(PackedDataset(tmp_path, "train"))
    layout = make_layout()
    object.__setattr__(layout, "fingerprint", "cd" * 32)
    pack(tmp_path, "train", make_blocks([5, 9, 4]), layout)
    with pytest.raises(
        UpstreamError, match=r"mismatched \(tokenizer: data cdcdcdcdcdcd, in use abababababab\)"
    ):
        pickle.loads(pickled)
