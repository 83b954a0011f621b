"""Selection: vectors of the split, stability, canonical order, refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.corpus.dedup import DedupSettings
from utils.corpus.segments import ENTRY, Documents
from utils.corpus.select import check_validation, in_validation, output_order, remove_duplicates
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import unit_hash


def documents(ids: list[int], orders: list[int] | None = None) -> Documents:
    entries = np.zeros(len(ids), ENTRY)
    for i, id in enumerate(ids):
        entries["id"][i] = np.frombuffer(id.to_bytes(16, "big"), "u1")
    entries["order"] = orders or range(len(ids))
    return Documents(entries, np.zeros(0, "u1"), np.zeros(0, "u8"), np.zeros((len(ids), 120), "u4"))


def test_split_vectors():
    assert unit_hash("split", 0, "Emma") == 2661966152786714285
    assert unit_hash("split", 0, "group-0") == 2917425506973636997
    hashes = np.array([2661966152786714285, 2917425506973636997], np.uint64)
    assert in_validation(hashes, 0.1443).tolist() == [False, False]
    assert in_validation(hashes, 0.1444).tolist() == [True, False]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.floats(0.001, 0.999))
def test_split_is_the_exact_quotient(hashes: list[int], fraction: float):
    from fractions import Fraction

    expected = [Fraction(h, 2**64) < Fraction(fraction) for h in hashes]
    assert in_validation(np.array(hashes, np.uint64), fraction).tolist() == expected


@settings(deadline=None)
@given(st.permutations(range(30)))
def test_order_of_rows_moves_no_document(order: list[int]):
    hashes = np.array([unit_hash("split", 0, f"g{i}") for i in range(30)], np.uint64)
    moved = in_validation(hashes[list(order)], 0.3)
    assert moved.tolist() == in_validation(hashes, 0.3)[list(order)].tolist()


def test_exact_duplicates_keep_the_first():
    selection = remove_duplicates(documents([5, 6, 5, 5, 6]), None)
    assert selection.kept.tolist() == [True, True, False, False, False]
    assert [(loser.document, loser.kept) for loser in selection.losers] == [(2, 0), (3, 0), (4, 1)]
    assert selection.cluster_sizes() == {"2": 1, "3": 1}


def test_documents_without_a_sketch_are_compared_exactly_only():
    selection = remove_duplicates(documents([1, 2, 3]), DedupSettings(20, 6, 0.8))
    assert selection.kept.all()
    assert selection.candidate_pairs == 0


def test_output_order_is_by_hash_then_id():
    assert output_order(documents([3, 2, 1], [7, 5, 7]), np.arange(3)).tolist() == [1, 2, 0]


def test_too_small_validation_names_a_fraction_that_does():
    hashes = np.array([unit_hash("split", 0, str(i)) for i in range(40)], np.uint64)
    check_validation(hashes, 8, 8)
    with pytest.raises(
        DataError, match="validation has 2 documents, split.min_val_documents asks for 8"
    ) as error:
        check_validation(hashes, 2, 8)
    fraction = float(error.value.fix.split(" or ")[0].split()[-1])
    assert in_validation(hashes, fraction).sum() >= 8
    with pytest.raises(DataError, match="8 documents are left, validation alone asks for 8"):
        check_validation(hashes[:8], 0, 8)


def test_card_table_is_json_safe():
    assert json.dumps(remove_duplicates(documents([1, 1]), None).cluster_sizes()) == '{"2": 1}'
