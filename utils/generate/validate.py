"""
Is an answer fit to become part of a row? Each check has a reason by name, and a key that switches it off.

Defaults are meant to drop no good answer: code, tables, one word, any script. So what looks for a pattern in
the text itself (refusals, loops) asks for strong evidence.

    >>> fault_of(Reply("I'm sorry, but I can't help with that.", "", "stop", 9, 9), ValidationSpec())
    'refusal'
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

from utils.config.answers import ValidationSpec
from utils.generate.refusals import is_refusal
from utils.generate.reply import Reply

Side = Literal["chosen", "rejected"]
_INVISIBLE = " \n\t\u200b\u200c\u200d\u2060\ufeff"
_LONELY = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_HAS_LONELY = re.compile(f"[{_LONELY}]")
_WORD = re.compile(rf"[{_LONELY}]|[^\s{_LONELY}]+")
"""Thai, Lao, Burmese, Khmer, kana and Han are written without blanks: each character counts as a word."""
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LOOP_WORDS = 40
_GRAM_WORDS = 4
_LANGUAGE_WORDS = 20
_LANGUAGE_CHARACTERS = 2000
_NO_LANGUAGE = "zxx"
"""What py3langid calls code, numbers and the like."""


def answer_text(reply: Reply) -> str:
    """What a row keeps of a reply."""
    return reply.content.strip()


def fault_of(reply: Reply, spec: ValidationSpec, side: Side = "chosen") -> str:
    """Why an answer cannot be used, or `""`. A rejected answer may decline and need not match."""
    if reply.finish_reason == "content_filter":
        return "content_filter"
    if reply.finish_reason == "length" and not spec.accept_truncated:
        return "truncated"
    text = answer_text(reply)
    if not text.strip(_INVISIBLE):
        return "empty"
    if spec.refusals and side == "chosen" and is_refusal(text, spec.refusal_patterns):
        return "refusal"
    return _fault_of_form(text, spec) or _fault_of_content(text, spec, side)


def _fault_of_form(text: str, spec: ValidationSpec) -> str:
    if len(text) < spec.min_characters:
        return "too_short"
    if spec.max_characters and len(text) > spec.max_characters:
        return "too_long"
    found = words(text)
    if len(found) < spec.min_words:
        return "too_few_words"
    if spec.max_words and len(found) > spec.max_words:
        return "too_many_words"
    return "repetitive" if _is_loop(found, spec.max_repetition) else ""


def _fault_of_content(text: str, spec: ValidationSpec, side: Side) -> str:
    if spec.languages and not _is_in(text, frozenset(spec.languages)):
        return "language"
    if any(_pattern(pattern).search(text) for pattern in spec.forbidden_patterns):
        return "forbidden_pattern"
    if spec.must_match and side == "chosen" and not _pattern(spec.must_match).search(text):
        return "no_match"
    return ""


def words(text: str) -> list[str]:
    """Words as blanks part them; where a script has no blanks, its characters."""
    return _WORD.findall(text) if not text.isascii() and _HAS_LONELY.search(text) else text.split()


def _is_loop(found: list[str], most: float) -> bool:
    """Whether one word 4-gram is more than `most` of all; one without a letter (a matrix, a rule) is none."""
    grams = len(found) - _GRAM_WORDS + 1
    if most >= 1 or len(found) < _LOOP_WORDS or max(Counter(found).values()) <= most * grams:
        return False
    counts = Counter(zip(*(found[start:] for start in range(_GRAM_WORDS)), strict=False))
    gram, count = counts.most_common(1)[0]
    return count > most * grams and any(letter.isalpha() for word in gram for letter in word)


def _is_in(text: str, languages: frozenset[str]) -> bool:
    """Whether the prose of a text is in one of the languages, as far as there is enough to tell."""
    prose = _FENCED.sub(" ", text)[:_LANGUAGE_CHARACTERS]
    if len(words(prose)) < _LANGUAGE_WORDS:
        return True
    import py3langid

    found, _ = py3langid.classify(prose)
    return found == _NO_LANGUAGE or found in languages


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


def too_similar(chosen: str, rejected: str, spec: ValidationSpec) -> bool:
    """Whether two answers say the same: equal when normalised, or with too many word 3-grams in common."""
    first, second = normalised(chosen), normalised(rejected)
    if first == second:
        return True
    if spec.max_similarity >= 1:
        return False
    shingles, others = _shingles(first), _shingles(second)
    common = len(shingles & others)
    return common > spec.max_similarity * (len(shingles) + len(others) - common)


def _shingles(text: str) -> set[tuple[str, str, str]]:
    found = words(text)
    return set(zip(found, found[1:], found[2:], strict=False))


_ASCII_PUNCTUATION = b"!\"#%&'()*,-./:;?@[\\]_{}"
_PUNCTUATION = re.compile(
    "[\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010-\u2027\u2030-\u205e\u3001-\u3003\u3008-\u3011]"
)
_SIGN = re.compile(r"(?<![\w)])-(?=\d)")


def normalised(text: str) -> str:
    """
    The form in which two texts count as the same: NFKC, case, blanks and punctuation do not matter; the sign
    of a number does.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    if "-" in folded:
        folded = _SIGN.sub("\u2212", folded)
    bare = folded.encode("utf-8", "surrogatepass").translate(None, _ASCII_PUNCTUATION)
    bare = bare.decode("utf-8", "surrogatepass")
    if not text.isascii():
        bare = _PUNCTUATION.sub("", bare)
    return " ".join(bare.split()) or " ".join(folded.split())
