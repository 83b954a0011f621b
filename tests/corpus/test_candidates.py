"""
Candidates: those of datasketch's LSH, whatever the blocks; large buckets; keys that several documents have.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import utils.corpus.candidates as candidates
from tests.corpus.pairs import pair_at
from tests.corpus.stored import NeverStopped, stored
from utils.corpus.candidates import DedupSettings, PairStore, bucket_starts, propose, shared_keys
from utils.corpus.documents import Documents

SETTINGS = DedupSettings(bands=20, rows=6, similarity=0.8)


def proposed(documents: Documents, folder: Path) -> tuple[set[tuple[int, int]], int]:
    """All pairs (earlier, later), and the number of large buckets."""
    store = PairStore(folder, len(documents))
    large = propose(documents, documents.column("sketch_size") > 0, SETTINGS, store, NeverStopped())
    pairs = np.concatenate([*store.parts(), np.zeros(0, np.uint64)])
    assert len(np.unique(pairs)) == len(pairs)
    assert (np.diff(pairs.astype(np.float64)) >= 0).all()
    store.remove()
    return set(zip((pairs & 0xFFFFFFFF).tolist(), (pairs >> 32).tolist(), strict=True)), large


def signatures(documents: Documents) -> np.ndarray:
    pieces = [values.T for _, values in documents.band(0, 120)]
    return np.concatenate(pieces)


@pytest.mark.parametrize("per_block", [2_000, 700])
def test_candidates_equal_datasketch_lsh_on_2000_documents(tmp_path: Path, per_block: int):
    from datasketch import MinHash, MinHashLSH

    texts = [text for seed in range(1_000) for text in pair_at(0.5 + seed % 50 / 100, seed, ngrams=40)]
    documents = stored(tmp_path, {"all": texts}, per_block)
    lsh = MinHashLSH(num_perm=120, params=(20, 6))
    expected = set()
    for i, signature in enumerate(signatures(documents)):
        peer = MinHash(num_perm=120, seed=1, scheme="affine32", hashvalues=signature)
        expected.update((int(j), i) for j in lsh.query(peer))
        lsh.insert(i, peer)
    assert (len(documents), len(expected) > 500) == (2_000, True)
    assert proposed(documents, tmp_path / "pairs") == (expected, 0)


def test_sources_that_were_read_in_turns_are_numbered_one_after_the_other(tmp_path: Path):
    first, second = (pair_at(0.95, seed)[0] for seed in (1, 2))
    texts = {"a": ["alpha beta gamma delta epsilon", first], "b": [second, first]}
    whole, turns = (stored(tmp_path / str(n), texts, per_block=n) for n in (10, 1))
    assert turns.sources().tolist() == whole.sources().tolist() == [0, 0, 1, 1]
    assert [turns.id(i) for i in range(4)] == [whole.id(i) for i in range(4)]
    assert turns.column("order").tolist() == whole.column("order").tolist()
    assert signatures(turns).tolist() == signatures(whole).tolist()
    assert turns.slots(np.arange(4)).tolist() == [0, 2, 1, 3]
    assert proposed(turns, tmp_path / "p") == proposed(whole, tmp_path / "p") == ({(1, 3)}, 0)


def test_large_buckets_compare_with_the_earliest_only(tmp_path: Path):
    documents = stored(tmp_path, {"all": ["one two three four five six"] * 300})
    pairs, large = proposed(documents, tmp_path / "pairs")
    assert large == 20
    assert pairs == {(i, j) for j in range(300) for i in range(min(j, 16))}


def test_documents_without_a_sketch_are_never_proposed(tmp_path: Path):
    documents = stored(tmp_path, {"all": ["one two", "three four", "five"]})
    assert proposed(documents, tmp_path / "pairs") == (set(), 0)


@given(st.lists(st.integers(0, 8), max_size=60), st.integers(1, 9))
def test_shared_keys_are_those_that_occur_twice(keys: list[int], per_block: int):
    def read():
        for first in range(0, len(keys), per_block):
            some = np.array(keys[first : first + per_block], np.uint64)
            yield some, np.arange(first, first + len(some))

    found = list(zip(*(values.tolist() for values in shared_keys(read, len(keys))), strict=True))
    assert found == sorted((key, i) for i, key in enumerate(keys) if keys.count(key) > 1)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_pairs_are_all_pairs_of_each_bucket(keys: list[int]):
    ordered = np.sort(np.array(keys, np.uint64))
    buckets = defaultdict(list)
    for i, key in enumerate(ordered.tolist()):
        buckets[key].append(i)
    expected = {(j, i) for bucket in buckets.values() for i in bucket for j in bucket if i < j}
    found = [
        pair
        for later, earlier in candidates._pairs(ordered, np.arange(len(keys)))
        for pair in zip(later.tolist(), earlier.tolist(), strict=True)
    ]
    assert (len(found), set(found)) == (len(expected), expected)
    assert bucket_starts(ordered).tolist() == [bucket[0] for bucket in buckets.values()]
