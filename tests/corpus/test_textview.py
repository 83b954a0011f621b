"""What is found out about a text: words by number, and n-grams that recur, against plain counting."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from utils.corpus.textview import TextView

small_words = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), max_size=60)


@settings(max_examples=300)
@given(small_words, st.integers(1, 10))
def test_recurring_ngrams_equal_counting(words: list[str], n: int):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    positions, numbers, found = TextView(" ".join(words)).recurring(n)
    assert positions.tolist() == [i for i, gram in enumerate(grams) if counts[gram] > 1]
    assert len(found) == sum(count > 1 for count in counts.values())
    by_number: dict[int, tuple] = {}
    for at, number in zip(positions.tolist(), numbers.tolist(), strict=True):
        assert by_number.setdefault(number, grams[at]) == grams[at]
        assert found[number] == counts[grams[at]]
    assert len(set(by_number.values())) == len(by_number) == len(found)


def test_parts_of_a_text():
    view = TextView("One two,  two\n\n-- 3 \n\n\tx3\n\none\n\nx3")
    assert view.words == ["One", "two,", "two", "--", "3", "x3", "one", "x3"]
    assert view.distinct_words == ["One", "two,", "two", "--", "3", "x3", "one"]
    assert view.word_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 5]
    assert view.lengths.tolist() == [3, 4, 3, 2, 1, 2, 3, 2]
    assert view.real.tolist() == [True, True, True, False, True, True, True, True]
    assert view.num_alphabetic == 6
    assert view.lines == ["One two,  two", "-- 3 ", "\tx3", "one", "x3"]
    assert view.num_all_lines == 9
    assert view.paragraphs == ["One two,  two", "-- 3 ", "\tx3", "one", "x3"]
    assert view.hashed_words.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert view.word_hashes[1] == view.word_hashes[2]
    assert view.ends.tolist() == [0, 3, 7, 10, 12, 13, 15, 18, 20]


def test_repeated_parts_are_those_seen_before():
    view = TextView("a\nb\na\n\na\nb\na")
    assert view.repeated_lines == ["a", "a", "b", "a"]
    assert view.repeated_paragraphs == ["a\nb\na"]


def test_an_empty_text_has_nothing():
    view = TextView("")
    assert (view.words, view.lines, view.paragraphs) == ([], [], [""])
    assert len(view.recurring(3).counts) == len(view.word_hashes) == 0
