"""Sketches and signatures: parity with datasketch, Jaccard exact for short texts and close for long ones."""

import numpy as np
import pytest

from tests.corpus.pairs import pair_at, vocabulary
from tests.corpus.stored import PERMUTATIONS
from utils.corpus.dedup import SKETCH_SIZE, jaccard, make_sketch, ngram_hashes, sign


def test_signature_equals_datasketch():
    from datasketch import MinHash

    hashes = ngram_hashes(" ".join(vocabulary(0, 900)), 5)
    peer = MinHash(num_perm=120, seed=1, scheme="affine32", hashfunc=int)
    peer.update_batch((hashes >> np.uint64(32)).tolist())
    assert PERMUTATIONS.tolist() == peer.permutations.tolist()
    assert sign(hashes, PERMUTATIONS).tolist() == peer.hashvalues.tolist()


def test_jaccard_is_exact_for_short_texts_and_close_for_long_ones():
    for similarity, ngrams, tolerance in ((0.85, 800, 0.002), (0.85, 20_000, 0.03), (0.3, 20_000, 0.03)):
        first, second = (make_sketch(ngram_hashes(text, 5)) for text in pair_at(similarity, 7, ngrams))
        assert jaccard(first, second) == pytest.approx(similarity, abs=tolerance)


def test_jaccard_equals_that_of_sets():
    generator = np.random.default_rng(0)
    for _ in range(50):
        first, second = (np.unique(generator.integers(0, 60, size).astype(np.uint64)) for size in (30, 50))
        a, b = set(first.tolist()), set(second.tolist())
        assert jaccard(first, second) == round(len(a & b) / len(a | b), 4)
    assert jaccard(np.zeros(0, np.uint64), np.zeros(0, np.uint64)) == 0


def test_a_sketch_holds_all_hashes_or_the_smallest():
    hashes = ngram_hashes(" ".join(vocabulary(3, SKETCH_SIZE + 500)), 5)
    assert make_sketch(hashes).tolist() == sorted(set(hashes.tolist()))[:SKETCH_SIZE]
    assert len(make_sketch(hashes[:100])) == 100


def test_texts_of_fewer_words_have_no_ngrams():
    assert len(ngram_hashes("one two three four", 5)) == 0
    assert len(ngram_hashes("one two - three ... four five", 5)) == 1
