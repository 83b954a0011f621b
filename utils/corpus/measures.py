"""
What the quality rules measure: one number of a text each.

The families are those of Gopher (Rae et al. 2021, arXiv 2112.11446, tables A1 and section A.1.1), C4 (Raffel
et al. 2020, arXiv 1910.10683) and FineWeb (Penedo et al. 2024, arXiv 2406.17557). Shares are rounded to 4
decimals, so that no comparison hangs on the last bit of a division.

    >>> MEASURES["repeated_lines"](TextView("a\\nb\\na"))
    0.3333
"""

import re
from collections.abc import Callable

import numpy as np

from utils.corpus.textview import TextView

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("-", "*", "\u2022", "\u2023", "\u25aa", "\u25e6")
ELLIPSES = ("...", "\u2026")
# sentence ends of Latin, Greek, Armenian, Arabic, Indic, Burmese, Ethiopic, Khmer, Mongolian and CJK scripts
SENTENCE_ENDS = tuple(
    ".!?\u0589\u061f\u06d4\u0964\u0965\u104a\u104b\u1362\u17d4\u17d5\u1803\u203c\u203d\u2047\u2048\u2049"
    "\u3002\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
)
SHORT_LINE = 30
# a sentence ends inside a line: a mark, perhaps closing quotes, a blank, then no lower-case letter
_SENTENCE_BREAK = re.compile(r"[.!?][\"')\]\u2019\u201d]*[ \t]+(?=[^a-z\s])")


def share(part: int, whole: int) -> float:
    return round(part / max(1, whole), 4)


def top_ngram_share(view: TextView, n: int) -> float:
    """
    Return the characters in the commonest n-gram, joined by spaces, over those of the text; 0 if none recurs.
    Of equally common ones the first counts.
    """
    positions, numbers, counts = view.recurring(n)
    if not len(counts):
        return 0.0
    most = int(counts.max())
    start = int(positions[np.argmax(counts[numbers] == most)])
    characters = int(view.ends[start + n] - view.ends[start]) + n - 1
    return share(characters * most, len(view.text))


def repeated_ngram_share(view: TextView, n: int) -> float:
    """Return the characters in n-grams seen before, not counting overlaps twice, over those of the text."""
    positions, numbers, counts = view.recurring(n)
    if not len(counts):
        return 0.0
    seen: set[int] = set()
    characters = free_from = 0
    for at, number in zip(positions.tolist(), numbers.tolist(), strict=True):
        if at < free_from:
            continue
        if number in seen:
            characters += int(view.ends[at + n] - view.ends[at])
            free_from = at + n
        seen.add(number)
    return share(characters, len(view.text))


def num_real_words(view: TextView) -> int:
    """Words with a letter or a digit."""
    return int(view.real.sum())


def mean_word_length(view: TextView) -> float:
    return share(int(view.lengths[view.real].sum()), num_real_words(view))


def ellipsis_ratio(view: TextView) -> float:
    return share(sum(map(view.text.count, ELLIPSES)), len(view.words))


def bullet_lines(view: TextView) -> float:
    """Of all lines, blank ones too (as in datatrove): a list is told from paragraphs by standing close."""
    return share(sum(line.lstrip().startswith(BULLETS) for line in view.lines), view.num_all_lines)


def ellipsis_lines(view: TextView) -> float:
    """Of all lines, blank ones too: novels end many a paragraph in an ellipsis, cut web text every line."""
    return share(sum(line.rstrip().endswith(ELLIPSES) for line in view.lines), view.num_all_lines)


def distinct_stop_words(view: TextView) -> int:
    return len(STOP_WORDS.intersection(view.distinct_words))


def num_sentences(view: TextView) -> int:
    """Every line is one sentence at least; a break inside of it adds one."""
    return len(view.lines) + len(_SENTENCE_BREAK.findall(view.text))


def punctuated_lines(view: TextView) -> float:
    return share(sum(line.rstrip().endswith(SENTENCE_ENDS) for line in view.lines), len(view.lines))


def short_lines(view: TextView) -> float:
    return share(sum(len(line) <= SHORT_LINE for line in view.lines), len(view.lines))


def characters_in(parts: list[str]) -> int:
    return sum(map(len, parts))


MEASURES: dict[str, Callable[[TextView], float]] = {
    "too_few_words": num_real_words,
    "too_many_words": num_real_words,
    "word_length": mean_word_length,
    "hash_ratio": lambda view: share(view.text.count("#"), len(view.words)),
    "ellipsis_ratio": ellipsis_ratio,
    "bullet_lines": bullet_lines,
    "ellipsis_lines": ellipsis_lines,
    "alphabetic_words": lambda view: share(view.num_alphabetic, len(view.words)),
    "stop_words": distinct_stop_words,
    "repeated_lines": lambda view: share(len(view.repeated_lines), len(view.lines)),
    "repeated_paragraphs": lambda view: share(len(view.repeated_paragraphs), len(view.paragraphs)),
    "repeated_line_characters": lambda view: share(characters_in(view.repeated_lines), len(view.text)),
    "repeated_paragraph_characters": lambda view: share(
        characters_in(view.repeated_paragraphs), len(view.text)
    ),
    **{f"top_{n}gram": lambda view, n=n: top_ngram_share(view, n) for n in (2, 3, 4)},
    **{f"repeated_{n}gram": lambda view, n=n: repeated_ngram_share(view, n) for n in range(5, 11)},
    "lorem_ipsum": lambda view: view.lowered.count("lorem ipsum"),
    "curly_bracket": lambda view: view.text.count("{"),
    "too_few_sentences": num_sentences,
    "line_punctuation": punctuated_lines,
    "short_lines": short_lines,
    "duplicate_line_characters": lambda view: share(
        characters_in(view.repeated_lines), len(view.text) - view.text.count("\n")
    ),
    "newline_ratio": lambda view: share(view.text.count("\n"), len(view.words)),
}
