r"""
Content faults: the same list, scores or text in another form, as models write them on a bad day.

Every form of a list still holds its entries (`list-truncated` all but the last), and every form of scores
still holds the scores, except `score-range`, `score-missing` and `score-prose`, which must be asked again.

    >>> reshape(Answer("list", "", entries=("a", "b")), "list-lines", "").text
    '1. a\n2. b'
"""

import json
from collections.abc import Callable
from dataclasses import replace

from utils.generate.teacher.answer import Answer, Score
from utils.generate.teacher.thinking import think

REFUSAL = "I\u2019m sorry, but I cannot help with that."
_BECAUSE = "because of what the answer says"


def _dumped(entries: tuple[str, ...]) -> str:
    return json.dumps(list(entries))


def _single_quotes(entries: tuple[str, ...]) -> str:
    return "[" + ", ".join("'" + entry.replace("'", "\\'") + "'" for entry in entries) + "]"


def _smart_quotes(entries: tuple[str, ...]) -> str:
    return "[" + ", ".join(f"\u201c{entry}\u201d" for entry in entries) + "]"


def _comments(entries: tuple[str, ...]) -> str:
    lines = [f"  {json.dumps(entry)}, // number {number}" for number, entry in enumerate(entries, 1)]
    return "\n".join(["[", "  /* as you asked */", *lines, "]"])


def _raw_newlines(entries: tuple[str, ...]) -> str:
    return "[" + ", ".join(json.dumps(entry).replace(" ", "\n", 1) for entry in entries) + "]"


def _truncated(entries: tuple[str, ...]) -> str:
    """Cut inside the last entry."""
    last = entries[-1] if entries else ""
    return _dumped(entries)[: -2 - (len(last) + 1) // 2]


def _two(entries: tuple[str, ...]) -> str:
    half = (len(entries) + 1) // 2
    return f"The first ones:\n{_dumped(entries[:half])}\n\nAnd the others:\n{_dumped(entries[half:])}"


LISTS: dict[str, Callable[[tuple[str, ...]], str]] = {
    "list-single-quotes": _single_quotes,
    "list-trailing-comma": lambda entries: _dumped(entries)[:-1] + ",]",
    "list-fence": lambda entries: f"Sure!\n```json\n{_dumped(entries)}\n```\nI hope this helps.",
    "list-smart-quotes": _smart_quotes,
    "list-comments": _comments,
    "list-raw-newlines": _raw_newlines,
    "list-lines": lambda entries: "\n".join(f"{n}. {entry}" for n, entry in enumerate(entries, 1)),
    "list-bullets": lambda entries: "\n".join(f"- {entry}" for entry in entries),
    "list-truncated": _truncated,
    "list-objects": lambda entries: json.dumps([{"entry": entry} for entry in entries], indent=1),
    "list-wrapped": lambda entries: json.dumps({"topics": list(entries)}),
    "list-sic": lambda entries: f"As you said [sic], here they are: {_dumped(entries)}",
    "list-two": _two,
}


def _object(scores: tuple[Score, ...], write: Callable[[Score], object]) -> str:
    return json.dumps({score.name: write(score) for score in scores})


SCORES: dict[str, Callable[[tuple[Score, ...]], str]] = {
    "score-string": lambda scores: _object(scores, lambda score: f"{score.value:g}"),
    "score-fraction": lambda scores: _object(scores, lambda score: f"{score.value:g}/{score.highest:g}"),
    "score-float": lambda scores: _object(scores, lambda score: float(score.value)),
    "score-object": lambda scores: _object(scores, lambda s: {"score": s.value, "reason": _BECAUSE}),
    "score-nested": lambda scores: f'{{"scores": {_object(scores, lambda score: score.value)}}}',
    "score-lines": lambda scores: "\n".join(f"{s.name}: {s.value:g} - {_BECAUSE}" for s in scores),
    "score-fence": lambda scores: f"```json\n{_object(scores, lambda score: score.value)}\n```",
    "score-range": lambda scores: _object(scores, lambda score: score.highest + 5),
    "score-missing": lambda scores: _object(scores[1:], lambda score: score.value),
    "score-prose": lambda scores: "It is rather good, I would say.",
}
PAIRS: dict[str, Callable[[str], str]] = {
    "score-fence": lambda better: f'```json\n{{"better": "{better}"}}\n```',
    "score-missing": lambda better: '{"better": "both"}',
    "score-prose": lambda better: "They are rather good, I would say.",
}
THINKING = {"think": "think", "think-unopened": "unopened", "reasoning-field": "reasoning_content"}
"""Fault -> form of `thinking.FORMS`, for any model."""


def _half(answer: Answer) -> Answer:
    words = answer.text.split(" ")
    return replace(answer, text=" ".join(words[: (len(words) + 1) // 2]), finish="length")


WHOLE: dict[str, Callable[[Answer], Answer]] = {
    "content-filter": lambda answer: replace(answer, text="", finish="content_filter"),
    "empty-content": lambda answer: replace(answer, text=""),
    "refusal": lambda answer: replace(answer, text=REFUSAL),
    "length": _half,
}


def reshape(answer: Answer, kind: str, request: str) -> Answer:
    """The answer as the content fault `kind` leaves it; `request` is what thinking quotes."""
    if kind in WHOLE:
        return WHOLE[kind](answer)
    if kind in THINKING:
        return think(answer, request, THINKING[kind])
    if kind in LISTS:
        finish = "length" if kind == "list-truncated" else "stop"
        return replace(answer, text=LISTS[kind](answer.entries), finish=finish)
    if answer.kind == "pair":
        return replace(answer, text=PAIRS[kind](answer.entries[0]))
    return replace(answer, text=SCORES[kind](answer.scores))


def content_kinds(answer_kind: str) -> tuple[str, ...]:
    """The content faults that an answer of this kind can suffer."""
    own = {"list": tuple(LISTS), "scores": tuple(SCORES), "pair": tuple(PAIRS), "text": ()}[answer_kind]
    return (*WHOLE, *THINKING, *own)
