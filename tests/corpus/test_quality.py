"""
Quality rules: a text just inside and just outside of each, presets, order, and what the line rules leave.
"""

import pytest

from utils.config.corpus_sources import RULE_NAMES
from utils.corpus.quality import PRESETS, judge, resolve_rules

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(count: int, length: int = 5) -> str:
    """Distinct words of one length."""
    return " ".join("".join(LETTERS[(i // 26**k) % 26] for k in range(length)) for i in range(count))


def lines(*parts: str) -> str:
    return "\n".join(parts)


def distinct(count: int, start: int = 0, ending: str = "") -> list[str]:
    """Distinct lines of one word."""
    return [f"{word}{ending}" for word in words(start + count).split()[start:]]


CASES = {
    "too_few_words": (words(50), words(49) + " -- ..."),
    "too_many_words": (words(60) + " --", words(61)),
    "word_length": (words(60, 3) + " -", words(60, 2)),
    "hash_ratio": (words(90) + " #" * 10, words(89) + " #" * 10),
    "ellipsis_ratio": (words(45) + " ..." + " \u2026" * 4, words(44) + " ..." + " \u2026" * 4),
    "bullet_lines": (lines(*["- a"] * 9, "b"), lines(*["- a"] * 9, "\u2022 c", "b", *["* d"] * 2)),
    "ellipsis_lines": (lines(*["a..."] * 3, *"bcdefgh"), lines(*["a..."] * 3, "b\u2026", *"cdefgh")),
    "alphabetic_words": (words(48) + " 123" * 12, words(47) + " 123" * 13),
    "stop_words": (words(50) + " the that", words(50) + " the the The"),
    "repeated_lines": (lines(*"xxxx", *"abcdef"), lines(*"xxxx", *"abcde")),
    "repeated_paragraphs": ("\n\n".join([*"xxxx", *"abcdef"]), "\n\n".join([*"xxxx", *"abcde"])),
    "repeated_line_characters": (lines("a" * 10, "a" * 10, "b" * 28), lines("a" * 10, "a" * 10, "b" * 27)),
    "repeated_paragraph_characters": (
        "\n\n".join(["a" * 10, "a" * 10, "b" * 26]), "\n\n".join(["a" * 10, "a" * 10, "b" * 25]),
    ),
    "top_2gram": ("aa bb " * 2 + words(7, 6)[:38], "aa bb " * 2 + words(7, 6)[:37]),
    "top_3gram": ("aa bb cc " * 2 + words(20, 6)[:71], "aa bb cc " * 2 + words(20, 6)[:70]),
    "top_4gram": ("aa bb cc dd " * 2 + words(30, 6)[:114], "aa bb cc dd " * 2 + words(30, 6)[:113]),
    "line_rules": None,
    "lorem_ipsum": ("lorem\nipsum", "Lorem Ipsum dolor"),
    "curly_bracket": ("a } b", "a { b"),
    "too_few_sentences": ("A b. C d! E f?\nG\nH", "A b. c d. E f.\nG\n\nI e.g. here"),
    "line_punctuation": (lines(*["a."] * 3, *"b" * 22), lines(*["a."] * 3, *"b" * 23)),
    "short_lines": (
        lines(*["a" * 30] * 67, *["b" * 31] * 33), lines(*["a" * 30] * 68, *["b" * 31] * 32),
    ),
    "duplicate_line_characters": (
        lines("a", "a", "b" * 98), lines("a", "a", "b" * 97),
    ),
    "newline_ratio": (
        "\n\n\n".join([words(4), words(3), words(3)][:2]) + " x y z", "\n\n\n".join(distinct(2)),
    ),
}  # fmt: skip
for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
    gram = " ".join(distinct(n, start=300))  # 5 characters a word
    fits = round(5 * n / limit)  # characters of a text in which one repetition is exactly the limit
    start = f"{gram} {gram} "
    CASES[f"repeated_{n}gram"] = tuple(
        (start + words(200, 4))[: size - 1] + "." for size in (fits + (fits * limit < 5 * n), fits - 1)
    )


def only(rule: str, **thresholds: object) -> list:
    return resolve_rules("web", {name: "off" for name in RULE_NAMES if name != rule} | thresholds)


@pytest.mark.parametrize("rule", [name for name in RULE_NAMES if name != "line_rules"])
def test_each_rule_inside_and_outside(rule: str):
    rules = only(rule, too_many_words=60) if rule == "too_many_words" else only(rule)
    assert [found.name for found in rules] == [rule]
    inside, outside = CASES[rule]
    assert judge(inside, rules).broken is None
    broken = judge(outside, rules).broken
    assert broken is not None and broken.rule == rule
    assert broken.measured != broken.threshold


def test_word_length_has_two_bounds():
    rules = only("word_length")
    assert judge(words(60, 10), rules).broken is None
    assert judge(words(60, 11), rules).broken == ("word_length", 11, 10)
    assert judge(words(60, 2), rules).broken == ("word_length", 2, 3)


def test_the_first_rule_wins():
    assert judge("a a", resolve_rules("web", {})).broken.rule == "too_few_words"
    assert judge("a a", resolve_rules("web", {"too_few_words": "off"})).broken.rule == "word_length"


def test_the_table_of_presets():
    """Reason by reason, as documented."""
    table = {
        "too_few_words": (50, 20, 5), "too_many_words": (100_000, "off", "off"),
        "word_length": ((3, 10), (3, 10), (2, 12)), "hash_ratio": (0.1, 0.1, 0.2),
        "ellipsis_ratio": (0.1, 0.1, 0.2), "bullet_lines": (0.9, 0.9, "off"),
        "ellipsis_lines": (0.3, 0.3, "off"),
        "alphabetic_words": (0.8, 0.7, 0.5), "stop_words": (2, 2, "off"),
        "line_rules": (1_000, "off", "off"), "lorem_ipsum": (0, 0, 0), "curly_bracket": (0, "off", "off"),
        "too_few_sentences": (5, "off", "off"), "line_punctuation": (0.12, "off", "off"),
        "short_lines": (0.67, "off", "off"), "duplicate_line_characters": (0.01, "off", "off"),
        "newline_ratio": (0.3, "off", "off"),
    }  # fmt: skip
    for reason, thresholds in table.items():
        assert tuple(PRESETS[name][reason] for name in ("web", "prose", "short")) == thresholds, reason
    for preset in PRESETS.values():
        assert set(preset) == set(RULE_NAMES)
        shares = [preset[name] for name in RULE_NAMES if name.startswith(("repeated", "top"))]
        assert shares == [0.3, 0.3, 0.2, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1]


def test_overrides_replace_one_rule():
    text = words(30) + " the of"
    assert judge(text, resolve_rules("web", {})).broken.rule == "too_few_words"
    assert judge(text, resolve_rules("prose", {})).broken is None
    assert judge(text, resolve_rules("prose", {"too_few_words": 33})).broken.threshold == 33
    assert judge(text, resolve_rules("prose", {"word_length": (6, 9)})).broken.threshold == 6


@pytest.mark.parametrize(
    ("languages", "asked_of"), [(["en"], [""]), ([], []), (["de"], []), (["de", "en"], ["en"])]
)
def test_stop_words_are_asked_of_english_only(languages: list[str], asked_of: list[str]):
    rules = resolve_rules("prose", {}, languages)
    assert [rule.language for rule in rules if rule.name == "stop_words"] == asked_of
    assert "stop_words" in [rule.name for rule in resolve_rules("prose", {"stop_words": 1}, languages)]


def test_short_texts_are_spared_the_ngram_rules():
    text = "the cat sat. the cat sat. the cat sat."
    assert judge(text, resolve_rules("short", {})).broken is None
    assert judge(text * 20, resolve_rules("short", {})).broken.rule.startswith("top_")


def test_line_rules_edit_and_the_rules_behind_them_see_what_is_left():
    text = "One.\nTwo.\n\nThree.\nlorem ipsum javascript\nFour.\nFive."
    rules = only("line_rules", line_rules=1_000, lorem_ipsum=0, too_few_sentences=5)
    judgement = judge(text, rules)
    assert judgement.broken is None
    assert (judgement.view.text, judgement.dropped_lines) == ("One.\nTwo.\n\nThree.\nFour.\nFive.", 1)
    fewer = judge(text.replace("Two.", "javascript"), rules)
    assert fewer.broken == ("too_few_sentences", 4, 5)
    unedited = judge("One.", rules)
    assert (unedited.dropped_lines, unedited.broken.rule) == (0, "too_few_sentences")
    words_left = judge("word " * 60 + "\n" + "x" * 30, only("line_rules", line_rules=20))
    assert words_left.view.text == ("word " * 60).strip()
