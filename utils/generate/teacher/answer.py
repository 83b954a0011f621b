"""
One answer of the teacher before it becomes an HTTP response: its text, and what the text was made from.

The parts beside the text exist so that a scheduled fault can write the same list or the same scores in
another form, and so that thinking can travel in a field of its own.

    Answer("list", '["cats"]', entries=("cats",))
"""

from dataclasses import dataclass
from typing import Literal

ReasoningField = Literal["reasoning_content", "reasoning"]
Kind = Literal["text", "list", "scores", "pair"]


@dataclass(frozen=True)
class Score:
    """The value of one criterion, and the highest value that its rubric allows."""

    name: str
    value: float
    highest: float


@dataclass(frozen=True)
class Answer:
    """`entries` belong to a list, `scores` to scores; `finish` is the `finish_reason` of OpenAI."""

    kind: Kind
    text: str
    entries: tuple[str, ...] = ()
    scores: tuple[Score, ...] = ()
    finish: str = "stop"
    reasoning: str = ""
    reasoning_field: ReasoningField = "reasoning_content"
