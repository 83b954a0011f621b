"""Selection: vectors of the split, stability, canonical order, refusals."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.pairs import vocabulary
from tests.corpus.stored import stored
from tests.corpus.test_budget import budget
from utils.corpus.duplicates import LOSER, Duplicates
from utils.corpus.select import check_validation, in_validation, select, supply_of
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import unit_hash


def test_split_vectors():
    assert unit_hash("split", 0, "Emma") == 2661966152786714285
    assert unit_hash("split", 0, "group-0") == 2917425506973636997
    hashes = np.array([2661966152786714285, 2917425506973636997], np.uint64)
    assert in_validation(hashes, 0.1443).tolist() == [False, False]
    assert in_validation(hashes, 0.1444).tolist() == [True, False]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20), st.floats(0.001, 0.999))
def test_split_is_the_exact_quotient(hashes: list[int], fraction: float):
    from fractions import Fraction

    expected = [Fraction(h, 2**64) < Fraction(fraction) for h in hashes]
    assert in_validation(np.array(hashes, np.uint64), fraction).tolist() == expected


@given(st.permutations(range(30)))
def test_order_of_rows_moves_no_document(order: list[int]):
    hashes = np.array([unit_hash("split", 0, f"g{i}") for i in range(30)], np.uint64)
    moved = in_validation(hashes[list(order)], 0.3)
    assert moved.tolist() == in_validation(hashes, 0.3)[list(order)].tolist()


def test_each_source_gives_its_share_and_the_rest_is_over_budget(tmp_path: Path):
    texts = {
        name: [" ".join(vocabulary(100 * n + k, 5 + k % 7)) for k in range(200)]
        for n, name in enumerate(("books", "web", "teacher"))
    }
    documents = stored(tmp_path, texts, per_block=64)
    lost = np.zeros(1, LOSER)  # document 0 is a duplicate
    lost["kept"] = 1
    asked = budget(tokens=3_000)
    selection = select(documents, Duplicates(exact=lost), asked, 0.1)
    sizes, sources = documents.column("text_bytes").astype(int), documents.sources()
    assert not selection.kept[0] and not selection.written[0] and not selection.over_budget[0]
    assert (selection.written | selection.over_budget).tolist() == selection.kept.tolist()
    assert not (selection.train & selection.val).any()
    for number, share in enumerate((6_000, 4_000, 2_000)):
        mine = selection.written & (sources == number)
        assert share <= sizes[mine].sum() < share + sizes[mine].max()
    assert supply_of(documents, selection.kept, asked)[0] == sizes[1:200].sum()


def test_without_a_budget_everything_is_taken(tmp_path: Path):
    documents = stored(tmp_path, {"books": ["one two", "three four", "five six"]})
    selection = select(documents, Duplicates(), budget(tokens=0, weights=(1,)), 0.5)
    assert selection.written.all()
    assert not selection.over_budget.any()


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
