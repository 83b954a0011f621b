"""
Quality rules: a text just inside and just outside of each, and the n-gram rules against a plain computation.
"""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.corpus import RULE_NAMES
from utils.corpus.quality import (
    PRESETS,
    TextView,
    first_broken_rule,
    repeated_ngram_share,
    resolve_rules,
    top_ngram_share,
)


def words(count: int, length: int = 5) -> str:
    """Distinct words of one length."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(letters[(i // 26**k) % 26] for k in range(length)) for i in range(count))


CASES = {
    "too_few_words": (words(50), words(49)),
    "too_many_words": (words(60), words(61)),
    "word_length": (words(60, 3), words(60, 2)),
    "alphabetic_words": (words(48) + " 123" * 12, words(47) + " 123" * 13),
    "repeated_lines": (
        "\n".join([words(60), "x", "x", *map(str, range(7))]),
        "\n".join([words(60), *"xxxx", *"abcd"]),
    ),
    "repeated_line_characters": (
        "\n".join([words(60), words(10), words(10)]),
        "\n".join([words(60), words(30), words(30)]),
    ),
    "top_2gram": (words(60) + " alpha beta" * 2, words(60) + " alpha beta" * 12),
    "top_3gram": (words(60) + " alpha beta gamma" * 2, words(60) + " alpha beta gamma" * 7),
    "top_4gram": (words(60) + " alpha beta gamma delta" * 2, words(60) + " alpha beta gamma delta" * 4),
}
for n in range(5, 11):
    CASES[f"repeated_{n}gram"] = (words(100), f"{words(100)} {words(40)} {words(40)}")


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_each_rule_inside_and_outside(rule: str):
    only = {name: "off" for name in RULE_NAMES if name != rule}
    if rule == "too_many_words":
        only[rule] = 60
    rules = resolve_rules("web", only)
    assert [r.name for r in rules] == [rule]
    inside, outside = CASES[rule]
    assert first_broken_rule(inside, rules) is None
    broken = first_broken_rule(outside, rules)
    assert broken is not None
    assert broken.rule == rule
    assert broken.measured != broken.threshold


def test_the_first_rule_wins():
    assert first_broken_rule("a a", resolve_rules("web", {})).rule == "too_few_words"


def test_presets_differ_and_overrides_replace_one_rule():
    text = words(30)
    assert first_broken_rule(text, resolve_rules("web", {})).rule == "too_few_words"
    assert first_broken_rule(text, resolve_rules("prose", {})) is None
    assert first_broken_rule(text, resolve_rules("prose", {"too_few_words": 31})).threshold == 31
    assert first_broken_rule(text, resolve_rules("web", {"too_few_words": "off"})) is None
    assert set(PRESETS) == {"web", "prose", "short"}


def test_short_texts_are_spared_the_ngram_rules():
    text = "the cat sat. the cat sat. the cat sat."
    assert first_broken_rule(text, resolve_rules("short", {})) is None
    assert first_broken_rule(text * 20, resolve_rules("short", {})).rule.startswith("top_")


small_words = st.lists(st.sampled_from(["a", "bb", "ccc", "d"]), min_size=1, max_size=40)


@settings(deadline=None)
@given(small_words, st.integers(2, 4))
def test_top_ngram_equals_counting(tokens: list[str], n: int):
    grams = [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    count = max(Counter(grams).values(), default=0)
    expected = {
        round(len(gram) * count / len(" ".join(tokens)), 4)
        for gram, c in Counter(grams).items()
        if c == count
    }
    share = top_ngram_share(TextView(" ".join(tokens)), n)
    assert share in expected if count > 1 else share == 0


@settings(deadline=None)
@given(small_words, st.integers(2, 6))
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
