"""What rules measure, against the published loops."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from utils.corpus.measures import MEASURES, num_sentences, repeated_ngram_share, top_ngram_share
from utils.corpus.textview import TextView

small_words = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=40)


@given(small_words, st.integers(2, 4))
def test_top_ngram_equals_counting(tokens: list[str], n: int):
    grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    first, count = Counter(grams).most_common(1)[0] if grams else ("", 0)
    expected = round(len(first) * count / len(" ".join(tokens)), 4) if count > 1 else 0
    assert top_ngram_share(TextView(" ".join(tokens)), n) == expected


@given(small_words, st.integers(2, 10))
def test_repeated_ngrams_equal_the_published_loop(tokens: list[str], n: int):
    seen, characters, at = set(), 0, 0
    while at < len(tokens) - n + 1:
        gram = tuple(tokens[at : at + n])
        if gram in seen:
            characters += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    assert repeated_ngram_share(TextView(" ".join(tokens)), n) == round(characters / len(" ".join(tokens)), 4)


def test_sentences_are_counted_by_lines_and_breaks():
    counted = {
        "One. Two! Three? Four": 4,
        'He said "no." Then he left.': 2,
        "a title\n\nanother": 2,
        "at 3.14 p.m. it was": 1,
        "": 0,
    }
    assert {text: num_sentences(TextView(text)) for text in counted} == counted


def test_nothing_is_divided_by_zero():
    for text in ("", " ", "\n", "...", "-"):
        for measure in MEASURES.values():
            assert 0 <= measure(TextView(text)) < math.inf
