"""Whole conversations on disk: what is written is read back, and damage is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.packing.format import TRAINED, write_tokens
from utils.packing.index import SpecialIds
from utils.packing.rows import RowsDataset, RowsWriter
from utils.pipeline.errors import DataError, UpstreamError

FINGERPRINT = "ab" * 32
SPECIAL = SpecialIds(bos=1, eos=2, pad=3)
documents = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 1)), min_size=1, max_size=9), min_size=1, max_size=8
)


def write(folder: Path, rows: list[list[tuple[int, int]]], split: str = "train") -> RowsDataset:
    writer = RowsWriter(folder, split, 100, FINGERPRINT, SPECIAL)
    for i, row in enumerate(rows):
        ids, trained = (np.array(column) for column in zip(*row, strict=True))
        writer.append(f"{i:032x}", ids, trained, source=i % 3, weight=0.5 + i)
    writer.close()
    return RowsDataset(folder, split, FINGERPRINT)


@settings(max_examples=30)
@given(documents)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[tuple[int, int]]]
) -> None:
    data = write(tmp_path_factory.mktemp("rows"), rows)
    assert data.num_documents == len(rows)
    assert data.lengths.tolist() == [len(row) for row in rows]
    assert data.trained_counts.tolist() == [sum(t for _, t in row) for row in rows]
    assert data.index.weights.tolist() == [0.5 + i for i in range(len(rows))]
    for i, row in enumerate(rows):
        ids, trained = data.document(i)
        assert (ids.tolist(), trained.tolist()) == ([t for t, _ in row], [m for _, m in row])


def test_a_mask_of_another_length_is_refused_when_written_and_when_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train: 2 ids with 1 mask values"):
        RowsWriter(tmp_path, "train", 100, FINGERPRINT, SPECIAL).append(
            "0" * 32, np.array([1, 2]), np.array([1]), 0
        )
    write(tmp_path, [[(1, 0), (2, 1)]])
    write_tokens(tmp_path / "train.trained", [np.array([1])], 100, FINGERPRINT, kind=TRAINED)
    with pytest.raises(DataError, match=r"train\.trained has 1 values, train\.bin holds 2 ids"):
        RowsDataset(tmp_path, "train")


def test_an_index_of_other_ids_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [[(1, 0), (2, 1)]])
    for name, kind in (("bin", {}), ("trained", {"kind": TRAINED})):
        write_tokens(tmp_path / f"train.{name}", [np.array([1, 1, 1])], 100, FINGERPRINT, **kind)
    with pytest.raises(DataError, match=r"train\.idx describes 2 ids, train\.bin holds 3"):
        RowsDataset(tmp_path, "train")


def test_files_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [[(1, 0), (2, 1)]])
    write_tokens(tmp_path / "train.bin", [np.array([1, 2])], 100, "cd" * 32)
    with pytest.raises(DataError, match="written with different tokenizers"):
        RowsDataset(tmp_path, "train")


def test_another_tokenizer_in_use_is_a_mismatch(tmp_path: Path) -> None:
    write(tmp_path, [[(1, 0), (2, 1)]])
    with pytest.raises(
        UpstreamError, match=r"mismatched \(tokenizer: data abababababab, in use cdcdcdcdcdcd\)"
    ):
        RowsDataset(tmp_path, "train", "cd" * 32)
