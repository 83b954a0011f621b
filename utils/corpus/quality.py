"""
Quality rules: a document leaves with the first rule it breaks, so that the counts of reasons add up.

A rule measures one number of a `TextView` (utils/corpus/measures.py) and compares it with an interval;
presets give the intervals, a config replaces them one by one. `line_rules` is the exception: it drops lines
and goes on with what is left.

    >>> rules = resolve_rules("short", {"too_few_words": 8})
    >>> judge("too short", rules).broken
    Broken(rule='too_few_words', measured=2, threshold=8)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from utils.config.corpus_sources import RULE_NAMES
from utils.corpus.line_rules import drop_lines
from utils.corpus.measures import MEASURES
from utils.corpus.textview import TextView

Limits = tuple[float, float]
Threshold = float | tuple[float, float] | str
OFF, UNBOUNDED = "off", float("inf")
NGRAM_RULES_FROM_WORDS = {"web": 0, "prose": 0, "short": 100}
_LOWER_BOUNDS = ("too_few_words", "alphabetic_words", "stop_words", "too_few_sentences", "line_punctuation")
_REPETITION: dict[str, Threshold] = {
    "repeated_lines": 0.30, "repeated_paragraphs": 0.30,
    "repeated_line_characters": 0.20, "repeated_paragraph_characters": 0.20,
    "top_2gram": 0.20, "top_3gram": 0.18, "top_4gram": 0.16,
    "repeated_5gram": 0.15, "repeated_6gram": 0.14, "repeated_7gram": 0.13, "repeated_8gram": 0.12,
    "repeated_9gram": 0.11, "repeated_10gram": 0.10,
}  # fmt: skip
_PROSE: dict[str, Threshold] = _REPETITION | {
    "too_few_words": 20, "too_many_words": OFF, "word_length": (3, 10),
    "hash_ratio": 0.1, "ellipsis_ratio": 0.1, "bullet_lines": 0.9, "ellipsis_lines": 0.3,
    "alphabetic_words": 0.7, "stop_words": 2,
    "line_rules": OFF, "lorem_ipsum": 0, "curly_bracket": OFF, "too_few_sentences": OFF,
    "line_punctuation": OFF, "short_lines": OFF, "duplicate_line_characters": OFF, "newline_ratio": OFF,
}  # fmt: skip
PRESETS: dict[str, dict[str, Threshold]] = {
    "prose": _PROSE,
    "web": _PROSE | {
        "too_few_words": 50, "too_many_words": 100_000, "alphabetic_words": 0.8,
        "line_rules": 1_000, "curly_bracket": 0, "too_few_sentences": 5, "line_punctuation": 0.12,
        "short_lines": 0.67, "duplicate_line_characters": 0.01, "newline_ratio": 0.3,
    },
    "short": _PROSE | {
        "too_few_words": 5, "word_length": (2, 12), "hash_ratio": 0.2, "ellipsis_ratio": 0.2,
        "bullet_lines": OFF, "ellipsis_lines": OFF, "alphabetic_words": 0.5, "stop_words": OFF,
    },
}  # fmt: skip


class Broken(NamedTuple):
    """Which rule a document broke, what was measured, and the bound it crossed."""

    rule: str
    measured: float
    threshold: float


@dataclass(frozen=True)
class Rule:
    """
    A rule with the closed interval in which its measure must lie, the shortest text it is applied to, and the
    language of which alone a text is asked it ("" = any).
    """

    name: str
    limits: Limits
    from_words: int
    language: str = ""


class Judgement(NamedTuple):
    """The rule that was broken, or None; the text as the line rules left it; how many lines they dropped."""

    broken: Broken | None
    view: TextView
    dropped_lines: int


def resolve_rules(
    preset: str, overrides: Mapping[str, Threshold], languages: Sequence[str] = ("en",)
) -> list[Rule]:
    """
    Return the active rules in the order in which they are tried.

    The stop words are English: unless overridden, that rule holds only where English is kept, and where other
    languages are kept too, for texts in English only.
    """
    thresholds, language_of = dict(PRESETS[preset]), {}
    if "en" not in languages:
        thresholds["stop_words"] = OFF
    elif len(set(languages)) > 1 and "stop_words" not in overrides:
        language_of["stop_words"] = "en"
    thresholds |= overrides
    rules = []
    for name in RULE_NAMES:
        if thresholds[name] != OFF:
            from_words = NGRAM_RULES_FROM_WORDS[preset] if name.endswith("gram") else 0
            limits = _limits(name, thresholds[name])
            rules.append(Rule(name, limits, from_words, language_of.get(name, "")))
    return rules


def _limits(name: str, threshold: Threshold) -> Limits:
    if isinstance(threshold, (tuple, list)):
        return float(threshold[0]), float(threshold[1])
    return (threshold, UNBOUNDED) if name in _LOWER_BOUNDS else (-UNBOUNDED, threshold)


def judge(text: str, rules: Sequence[Rule]) -> Judgement:
    """Return the first rule that the text breaks, with the text that the rules left of it."""
    view, dropped = TextView(text), 0
    for rule in rules:
        if rule.name == "line_rules":
            text, dropped = drop_lines(view, longest_word=int(rule.limits[1]))
            view = TextView(text) if dropped else view
            continue
        if rule.from_words and len(view.words) < rule.from_words:
            continue
        measured = MEASURES[rule.name](view)
        if not rule.limits[0] <= measured <= rule.limits[1]:
            bound = rule.limits[0] if measured < rule.limits[0] else rule.limits[1]
            return Judgement(Broken(rule.name, measured, bound), view, dropped)
    return Judgement(None, view, dropped)
