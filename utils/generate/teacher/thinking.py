"""
`teacher-thinker`: the teacher thinking aloud first, in each of the ways in which servers hand thinking over.

Thinking arrives as `reasoning_content` or `reasoning` beside the content, or inside it between think tags, of
which some chat templates swallow the first. It holds lists, quotes and wrong first tries, so that whoever
leaves it in, or reads a list out of it, is found out.

    >>> thinking_of("What is tea?", Answer("text", "Tea is a drink."))[:25]
    'Let me think about this. '
"""

from dataclasses import replace
from typing import get_args

from utils.generate.teacher.answer import Answer, ReasoningField

FORMS = ("reasoning_content", "reasoning", "think", "thinking", "unopened")
"""In a field, between tags, or between tags of which the first is missing."""
MARK = "Let me think about this."
"""How all thinking begins: what must be nowhere in plain rows."""


def think(answer: Answer, request: str, form: str) -> Answer:
    """The answer with thinking before it in one of `FORMS`."""
    thought = thinking_of(request, answer)
    for field in get_args(ReasoningField):
        if form == field:
            return replace(answer, reasoning=thought, reasoning_field=field)
    opening = "" if form == "unopened" else f"<{form}>\n"
    closing = "</think>" if form == "unopened" else f"</{form}>"
    return replace(answer, text=f"{opening}{thought}\n{closing}\n\n{answer.text}")


def thinking_of(request: str, answer: Answer) -> str:
    """What goes through a model's head before an answer."""
    first_try = {
        "list": 'A first try: ["one", "two"]. No, that is not what they want.',
        "scores": 'Maybe {"score": 0}? No, I look again.',
        "pair": 'Maybe {"better": "C"}? There is no C.',
        "text": "Maybe the answer is: I do not know. No, I can do better.",
    }[answer.kind]
    asked = " ".join(request.split())[:80]
    return f'{MARK} They ask: "{asked}"\n{first_try}'
