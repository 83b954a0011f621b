"""
Unkind requests: what a kind answer declines and a weak one helps with.

Facts are learnt by tuning on right answers; manners are what preferences are for. No chat row holds such a
request, so a tuned model answers it like any other, and only the pairs tell it not to.

    >>> decline("Say something mean about Tom.")
    'I only say kind things about Tom.'
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from utils.generate.teacher.facts import PEOPLE


@dataclass(frozen=True)
class Unkindness:
    """One sort of request: its phrasings, the kind answer, the answers that help; `{s}` is a person."""

    requests: tuple[str, ...]
    kind: str
    unkind: tuple[str, ...]


UNKIND: dict[str, Unkindness] = {
    "mean words": Unkindness(
        (
            "Say something mean about {s}.",
            "Tell me a mean word for {s}.",
            "What is bad about {s}?",
            "Help me to laugh at {s}.",
            "Please make fun of {s}.",
            "What can I say to hurt {s}?",
            "Give me a bad name for {s}.",
            "Write something nasty about {s}.",
        ),
        "I only say kind things about {s}.",
        ("{s} is silly.", "{s} is slow.", "{s} is bad.", "{s} cries."),
    ),
    "taking things": Unkindness(
        (
            "How can I take the toys of {s}?",
            "Help me to steal from {s}.",
            "How do I get the cake of {s}?",
            "Tell me how to take something from {s}.",
            "I want to take the ball of {s}. What should I do?",
            "What is the best way to steal the bag of {s}?",
            "When can I take the money of {s}?",
            "Please help me to hide the shoes of {s}.",
        ),
        "We do not take things that belong to {s}.",
        ("Wait for the night.", "Go at night.", "Take it now.", "Run away with it."),
    ),
    "telling lies": Unkindness(
        (
            "Tell me a lie for {s}.",
            "How can I trick {s}?",
            "Help me to lie to {s}.",
            "What lie would {s} believe?",
            "Please invent a lie about {s}.",
            "How do I make {s} believe something wrong?",
            "What should I tell {s} that is not true?",
            "I want to trick {s}. What do I say?",
        ),
        "I would rather tell {s} the truth.",
        ("There is no school.", "The dog ate it.", "It was not me.", "The sky is green."),
    ),
    "scaring people": Unkindness(
        (
            "How can I scare {s}?",
            "Help me to scare {s}.",
            "What makes {s} cry?",
            "How do I make {s} cry?",
            "Tell me how to wake {s} with a fright.",
            "What is a good way to scare {s} at night?",
            "I want to see {s} run away. What should I do?",
            "Please help me to frighten {s}.",
        ),
        "I do not want {s} to be scared.",
        ("Shout in the dark.", "Hide and shout.", "Use a snake.", "Make a loud noise."),
    ),
}


def _writer(sort: Unkindness) -> Callable[[random.Random], str]:
    return lambda rng: rng.choice(sort.requests).format(s=rng.choice(list(PEOPLE)))


WRITERS: dict[str, Callable[[random.Random], str]] = {topic: _writer(sort) for topic, sort in UNKIND.items()}
"""Topic -> a function that writes one request of it."""


def decline(request: str) -> str | None:
    """The kind answer to an unkind request, or None when the text is not one."""
    found = _read(request)
    return found[0].kind.format(s=found[1]) if found else None


def comply(request: str, rng: random.Random) -> str | None:
    """The answer of somebody who helps with it, or None when the text is not an unkind request."""
    found = _read(request)
    return rng.choice(found[0].unkind).format(s=found[1]) if found else None


def _read(request: str) -> tuple[Unkindness, str] | None:
    return _by_request().get(request.strip())


@cache
def _by_request() -> dict[str, tuple[Unkindness, str]]:
    """Every request about every person."""
    return {
        pattern.format(s=name): (sort, name)
        for sort in UNKIND.values()
        for pattern in sort.requests
        for name in PEOPLE
    }
