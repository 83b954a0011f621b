"""
`teacher-judge`: scores answers by what the world knows, so that good and bad can be checked and not guessed.

It reads the built-in templates `judge` and `judge_pair`: request, answer or answers, and the rubric with the
name and the range of every criterion. An answer is examined once and scored in the band of what was found: a
right answer is always above a weak one in every criterion, by how much depends on the call. Criteria of form
(clarity, style, ...) forgive a wrong fact in a good sentence to a degree, all others do not.

    >>> examine("What does a cow say?", "A cow says woof.")
    'wrong'
"""

import json
import random
import re
from dataclasses import dataclass
from functools import cache

from utils.generate.teacher import exercises, stories, unkind
from utils.generate.teacher.answer import Answer, Score
from utils.generate.teacher.world import answer_of, fact_of, facts, normalised, statement

NOT_A_TASK = "I only grade answers to requests."

_SCORED = re.compile(
    r"Request:\n(.*?)\n\nAnswer:\n(.*)\n\nScore the answer by each criterion:\n(.*)", re.DOTALL
)
_COMPARED = re.compile(
    r"Request:\n(.*?)\n\nAnswer A:\n(.*?)\n\nAnswer B:\n(.*)\n\nWhich answer is better by these criteria\?",
    re.DOTALL,
)
_CRITERION = re.compile(r"^- (\w+) \((-?[\d.]+) to (-?[\d.]+)\): ", re.MULTILINE)
_ABOUT_FORM = re.compile(r"clear|clar|fluen|style|gramm|read|form|languag|concis")
_DECLINING = re.compile(
    r"i do not know|i'm sorry|i\u2019m sorry|i am sorry|sorry|i cannot|i can't", re.IGNORECASE
)


@dataclass(frozen=True)
class _Band:
    """Lowest and highest share of a criterion's range, for criteria of content and of form."""

    content: tuple[float, float]
    form: tuple[float, float]
    reason: str


_BANDS = {
    "right": _Band((0.85, 1.0), (0.88, 1.0), "The answer is right and to the point."),
    "nearly right": _Band((0.6, 0.75), (0.7, 0.85), "The answer is right at its heart, but not well put."),
    "honest": _Band((0.55, 0.7), (0.7, 0.85), "The answer says that it does not know, which is fair here."),
    "fair": _Band((0.45, 0.6), (0.6, 0.8), "The answer can be read, but nobody can check it."),
    "evasive": _Band((0.15, 0.3), (0.4, 0.5), "The answer does not help."),
    "off topic": _Band((0.2, 0.3), (0.4, 0.5), "The answer is about something else."),
    "wrong": _Band((0.0, 0.2), (0.4, 0.5), "The answer is wrong."),
    "stuck": _Band((0.0, 0.1), (0.0, 0.1), "The answer repeats itself."),
    "empty": _Band((0.0, 0.0), (0.0, 0.0), "There is no answer."),
}


def judge(text: str, rng: random.Random) -> Answer | None:
    """The verdict on what a judge's prompt shows, or None when the text is no such prompt."""
    if shown := _COMPARED.search(text):
        return _pair(shown[1], shown[2], shown[3], rng)
    if shown := _SCORED.search(text):
        return _scores(shown[1], shown[2], shown[3], rng)
    return None


def is_judging(text: str) -> bool:
    """Whether a text is a judge's prompt."""
    return bool(_COMPARED.search(text) or _SCORED.search(text))


def examine(request: str, answer: str) -> str:
    """What is to be said of an answer: right, nearly right, wrong, stuck, ..."""
    answer = answer.strip()
    if not answer:
        return "empty"
    if is_stuck(answer):
        return "stuck"
    right = answer_of(request) or exercises.solve(request) or unkind.decline(request)
    if right:
        return _against(right, request, answer)
    quoted = stories.WISH.search(request)
    share = stories.share_of_idea(quoted[1] if quoted else request, answer)
    if share is not None:
        return "right" if share == 1 else "nearly right" if share >= 0.7 else "off topic"
    return _unchecked(request, answer)


def is_stuck(answer: str) -> bool:
    """Whether an answer ends in the same one, two or three words twice."""
    words = [word.strip('.,!?"') for word in answer.lower().split()]
    return any(len(words) >= 2 * n and words[-n:] == words[-2 * n : -n] for n in (1, 2, 3))


def _against(right: str, request: str, answer: str) -> str:
    if normalised(answer) == normalised(right):
        return "right"
    if _DECLINING.match(answer):
        return "evasive"
    if normalised(right) in normalised(answer):
        return "nearly right"
    fact = fact_of(request)
    if fact and _mentions(answer, fact.subject) and _mentions(answer, fact.object):
        return "nearly right"
    return "off topic" if answer in _statements() and not _shares_words(request, answer) else "wrong"


def _unchecked(request: str, answer: str) -> str:
    if _DECLINING.match(answer):
        return "honest"
    return "off topic" if answer in _statements() and not _shares_words(request, answer) else "fair"


def _mentions(answer: str, what: str) -> bool:
    return re.search(rf"\b{re.escape(what)}\b", answer, re.IGNORECASE) is not None


def _shares_words(request: str, answer: str) -> bool:
    """Whether a word of five letters or more, or a name, stands in both."""
    long = {word for word in re.findall(r"\w+", request.lower()) if len(word) >= 5}
    return bool(long & set(re.findall(r"\w+", answer.lower())))


@cache
def _statements() -> frozenset[str]:
    return frozenset(statement(fact) for fact in facts())


def _scores(request: str, answer: str, rubric: str, rng: random.Random) -> Answer | None:
    criteria = _CRITERION.findall(rubric)
    if not criteria:
        return None
    band = _BANDS[examine(request, answer)]
    scores = tuple(_score(name, float(low), float(high), band, rng) for name, low, high in criteria)
    written = json.dumps({score.name: score.value for score in scores})
    with_reasons = "sentence of reasons" in rubric
    return Answer("scores", f"{band.reason}\n{written}" if with_reasons else written, scores=scores)


def _score(name: str, low: float, high: float, band: _Band, rng: random.Random) -> Score:
    """Whole numbers where the range has whole ends and room for three of them, else two decimals."""
    share = rng.uniform(*(band.form if _ABOUT_FORM.search(name) else band.content))
    value = low + share * (high - low)
    whole = low.is_integer() and high.is_integer() and high - low >= 2
    return Score(name, round(value) if whole else round(value, 2), high)


def _pair(request: str, first: str, second: str, rng: random.Random) -> Answer:
    """Which of two answers is better; a coin decides between two of a kind, so a swap finds them out."""
    order = list(_BANDS)
    ranks = [order.index(examine(request, answer)) for answer in (first, second)]
    better = rng.choice("AB") if ranks[0] == ranks[1] else "AB"[ranks.index(min(ranks))]
    return Answer("pair", json.dumps({"better": better}), entries=(better,))
