"""Words as numbers: case and outer punctuation do not matter, order does."""

import numpy as np

from utils.corpus.words import ngram_hashes_of, word_hash, word_hashes


def test_case_and_outer_punctuation_do_not_matter():
    assert len({word_hash(word) for word in ("Cat", "cat", '"CAT,"', "(cat)")}) == 1
    assert len({word_hash(word) for word in ("cat", "cats", "ca-t")}) == 3
    assert word_hash("--") == word_hash("...") == 0


def test_words_of_punctuation_alone_are_left_out():
    assert word_hashes(["a", "-", "b", "...", "c"]).tolist() == word_hashes(["A", "b,", "C!"]).tolist()


def test_ngrams_depend_on_order_and_length():
    forward, backward = (word_hashes(words.split()) for words in ("a b c a b c", "c b a c b a"))
    bigrams = ngram_hashes_of(forward, 2)
    assert (bigrams[0], bigrams[1]) == (bigrams[3], bigrams[4])
    assert len(set(bigrams.tolist())) == 3
    assert not set(bigrams.tolist()) & set(ngram_hashes_of(backward, 2).tolist())
    assert not set(bigrams.tolist()) & set(ngram_hashes_of(forward, 3).tolist())


def test_too_few_words_have_no_ngram():
    assert len(ngram_hashes_of(word_hashes(["a", "b"]), 3)) == 0
    assert ngram_hashes_of(np.zeros(0, np.uint64), 1).dtype == np.uint64
