"""
Scores out of a judge's reply, whatever shape it has: JSON in any state of repair, or lines of text.

A score may be `4`, `4.0`, `"4"`, `"4/5"`, `{"score": 4}`, below "scores", in a list of names and scores, or
in a line such as "**Creativity**: 4 - because". It counts only inside the criterion's range, and one
criterion without a score makes the whole reply unfit: what is wrong comes back, for the judge to mend.

    >>> parse_scores('{"correct": "4/5"}', [Criterion(name="correct", description="Is it right?")])
    {'correct': 4.0}
    >>> parse_scores("Good!", [Criterion(name="correct", description="Is it right?")])
    'correct: no score'
"""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from utils.config.answers import Criterion
from utils.generate.loose_json import json_values
from utils.generate.reply import split_thinking

_NUMBER = re.compile(
    r"[\s*`]*+([-+]?\d{1,12}(?:\.\d{1,12})?)(?![\w%]|[.,:]\d|\s?[-\u2013]\s?\d)"
    r"(?:[\s*`]*+(?:/|out of)\s*+(\d{1,12}(?:\.\d+)?))?"
)
_SEPARATOR = (
    r"""["'_\s]*+(?:\([^)\n]{0,80}\)\s*+)?+(?:score\s*+)?+(?:[:=|\u2013\u2014]|(?<=\s)-(?=\s)|\bis\b)"""
    r"""(?:[\s"'_|]*+(?:score|rating)\s*+[:=])?+["'_|\s]*+"""
)
_CUT_NUMBER = re.compile(r"(?<![\d./+-])[\d./+-]+\Z")
_EMPHASIS = re.compile(r"[*`]+")
_NOT_NAME = re.compile(r"[^a-z0-9]+")
_NAME_KEYS = ("name", "criterion", "criteria")
_SCORE_KEYS = ("score", "rating", "value")
_DEEPEST = 8


class Score(NamedTuple):
    """A number and what it was said to be out of, None when nothing was said."""

    number: float
    out_of: float | None


Found = dict[str, Score | None]
"""Criterion to score; None where something else than a number stood."""


def parse_scores(text: str, criteria: list[Criterion], is_cut: bool = False) -> dict[str, float] | str:
    """
    Every criterion's score, or what is wrong with the reply. Never raises.

    `is_cut`: the reply ended at its limit, so a number at its very end may be half a number.
    """
    text = split_thinking(text)[0]
    faults = []
    for found in _readings(_CUT_NUMBER.sub("", text) if is_cut else text, _names(criteria)):
        wrong = [fault for fault in (_fault(criterion, found) for criterion in criteria) if fault]
        if not wrong:
            return {criterion.name: found[criterion.name].number for criterion in criteria}
        faults.append(wrong)
    return "; ".join(min(faults, key=len))


def _names(criteria: list[Criterion]) -> dict[str, str]:
    """The spellings to look for and the criteria they mean; a single one may just be called the score."""
    alone = dict.fromkeys(_SCORE_KEYS, criteria[0].name) if len(criteria) == 1 else {}
    return alone | {_simple(criterion.name): criterion.name for criterion in criteria}


def _simple(name: object) -> str:
    return _NOT_NAME.sub("_", str(name).lower()).strip("_")


def _readings(text: str, names: dict[str, str]) -> Iterator[Found]:
    """What each JSON value says, then what the lines say."""
    for value in json_values(text):
        found: Found = {}
        _collect(value, names, found, 0)
        yield found
    yield _from_lines(_EMPHASIS.sub("", text), names)


def _collect(value: object, names: dict[str, str], found: Found, depth: int) -> None:
    """Scores from anywhere in a JSON value; those below "scores" before those in the reasons beside it."""
    if depth > _DEEPEST or not isinstance(value, (list, dict)):
        return
    if isinstance(value, list):
        for item in value:
            _collect(item, names, found, depth + 1)
        return
    for key in _NAME_KEYS:
        if key in value and _simple(value[key]) in names:
            _note(names[_simple(value[key])], _score_in(value), found)
            return
    for key, part in sorted(value.items(), key=lambda pair: _simple(pair[0]) != "scores"):
        name = names.get(_simple(key), "")
        if name:
            _note(name, _score(part), found)
        else:
            _collect(part, names, found, depth + 1)


def _note(name: str, score: Score | None, found: Found) -> None:
    if found.get(name) is None:
        found[name] = score


def _score(part: object) -> Score | None:
    if isinstance(part, dict):
        return _score_in(part)
    if isinstance(part, str):
        number = _NUMBER.match(part)
        return _score_of(number) if number else None
    if isinstance(part, bool) or not isinstance(part, (int, float)):
        return None
    try:
        return Score(float(part), None)
    except OverflowError:
        return Score(math.inf, None)


def _score_in(value: dict) -> Score | None:
    return next((_score(value[key]) for key in _SCORE_KEYS if key in value), None)


def _score_of(number: re.Match[str]) -> Score:
    return Score(float(number[1]), float(number[2]) if number[2] else None)


def _from_lines(text: str, names: dict[str, str]) -> Found:
    """Scores of lines such as "creativity: 4"; a later line corrects an earlier one."""
    found: Found = {}
    for line in _line_pattern(tuple(names)).finditer(text):
        number = _NUMBER.match(text, line.end())
        if number:
            found[names[_simple(line[1])]] = _score_of(number)
        else:
            found.setdefault(names[_simple(line[1])], None)
    bare = _NUMBER.match(text)
    if bare and not found and len(set(names.values())) == 1:
        found[next(iter(names.values()))] = _score_of(bare)
    return found


@lru_cache(maxsize=64)
def _line_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(name.replace("_", r"[\s_-]") for name in longest_first)
    return re.compile(rf"(?<![^\W_])(?<![^\W_]_)({either})(?![^\W_]){_SEPARATOR}", re.IGNORECASE)


def _fault(criterion: Criterion, found: Found) -> str:
    """What is wrong with one criterion's score, `""` when nothing is."""
    score = found.get(criterion.name)
    if score is None:
        return f"{criterion.name}: {'not a number' if criterion.name in found else 'no score'}"
    scale = f"{criterion.lowest:g} to {criterion.highest:g}"
    if not criterion.lowest <= score.number <= criterion.highest:
        return f"{criterion.name}: {score.number:g} is outside {scale}"
    if score.out_of not in (None, criterion.highest):
        return f"{criterion.name}: {score.number:g}/{score.out_of:g} is not on the scale {scale}"
    return ""
