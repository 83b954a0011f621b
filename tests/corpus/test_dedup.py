"""Near duplicates: parity with datasketch, planted pairs at known similarity, no chains."""

import random

import numpy as np
import pytest

from utils.corpus.dedup import (
    DedupSettings,
    candidates,
    decide,
    jaccard,
    make_sketch,
    ngram_hashes,
    permutations,
    sign,
)  # fmt: skip

SETTINGS = DedupSettings(bands=20, rows=6, similarity=0.8)
PERMUTATIONS = permutations(120, seed=1)


def vocabulary(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [f"w{generator.getrandbits(40):x}" for _ in range(count)]


def signatures_of(texts: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    hashes = [ngram_hashes(text, 5) for text in texts]
    return np.array([sign(h, PERMUTATIONS) for h in hashes]), [make_sketch(h) for h in hashes]


def removed(texts: list[str]) -> set[int]:
    signatures, sketches = signatures_of(texts)
    return {duplicate.document for duplicate in decide(signatures, sketches.__getitem__, SETTINGS).duplicates}


def pair_at(similarity: float, seed: int, ngrams: int = 800) -> tuple[str, str]:
    """
    Two texts whose 5-gram sets have exactly about this Jaccard similarity: a shared start, different ends.
    """
    shared = round(2 * ngrams * similarity / (1 + similarity))
    start, first, second = (vocabulary(3 * seed + k, ngrams + 4) for k in range(3))
    rest = ngrams - shared
    return tuple(" ".join(start[: shared + 4] + end[:rest]) for end in (first, second))


def test_signature_equals_datasketch():
    from datasketch import MinHash

    hashes = ngram_hashes(" ".join(vocabulary(0, 900)), 5)
    peer = MinHash(num_perm=120, seed=1, scheme="affine32", hashfunc=int)
    peer.update_batch((hashes >> np.uint64(32)).tolist())
    assert PERMUTATIONS.tolist() == peer.permutations.tolist()
    assert sign(hashes, PERMUTATIONS).tolist() == peer.hashvalues.tolist()


def test_candidates_equal_datasketch_lsh():
    from datasketch import MinHash, MinHashLSH

    texts = [text for seed in range(150) for text in pair_at(0.5 + seed % 50 / 100, seed, ngrams=60)]
    signatures, _ = signatures_of(texts)
    lsh = MinHashLSH(num_perm=120, params=(20, 6))
    expected = set()
    for i, signature in enumerate(signatures):
        peer = MinHash(num_perm=120, seed=1, scheme="affine32", hashvalues=signature)
        expected.update((int(j), i) for j in lsh.query(peer))
        lsh.insert(i, peer)
    pairs, large = candidates(signatures, SETTINGS)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert (len(expected) > 100, large) == (True, 0)


@pytest.mark.parametrize(("similarity", "gone"), [(0.95, 40), (0.85, 40), (0.6, 0)])
def test_planted_pairs(similarity: float, gone: int):
    texts = [text for seed in range(40) for text in pair_at(similarity, seed)]
    found = removed(texts)
    assert found <= {2 * i + 1 for i in range(40)}
    assert len(found) == gone


def test_jaccard_is_exact_for_short_texts_and_close_for_long_ones():
    for similarity, ngrams, tolerance in ((0.85, 800, 0.002), (0.85, 20_000, 0.03), (0.3, 20_000, 0.03)):
        first, second = (make_sketch(ngram_hashes(text, 5)) for text in pair_at(similarity, 7, ngrams))
        assert jaccard(first, second) == pytest.approx(similarity, abs=tolerance)


def test_case_and_punctuation_do_not_matter_word_order_does():
    text = " ".join(vocabulary(1, 200))
    shuffled = " ".join(random.Random(0).sample(text.split(), 200))
    noisy = ", ".join(text.upper().split()) + "!"
    assert removed([text, noisy, shuffled]) == {1}


def test_independent_long_documents_stay():
    words = vocabulary(5, 2_000)
    texts = [" ".join(random.Random(seed).choices(words, k=20_000)) for seed in range(4)]
    assert removed(texts) == set()


def test_documents_under_five_words_take_no_part():
    assert len(ngram_hashes("one two three four", 5)) == 0
    assert len(ngram_hashes("one two - three ... four five", 5)) == 1


def test_no_chains():
    words = vocabulary(9, 1_000)
    a, b, c = " ".join(words[:800]), " ".join(words[80:880]), " ".join(words[160:960])
    assert removed([a, b, c]) == {1}  # c resembles b (0.82), which is gone, and not a (0.67)


def test_large_buckets_compare_with_the_earliest_only():
    signatures = np.zeros((300, 120), np.uint32)
    pairs, large = candidates(signatures, SETTINGS)
    assert large == 20
    assert len(pairs) == sum(299 - i for i in range(16))
    assert pairs[:, 0].max() == 15
