"""
What the teacher answers besides facts: sums, naming three things, polite words, letters, greetings, people.

Each exercise writes prompts from a generator and answers them from the text alone, so that the answer to a
prompt does not depend on who wrote it. The patterns that read are strict: anything else is not an exercise.

    >>> solve("What is 17 plus 25?")
    '17 plus 25 is 42.'
"""

import random
import re
from collections.abc import Callable
from functools import cache

from utils.generate.teacher.facts import PAIRS, PEOPLE
from utils.generate.teacher.world import facts_about, normalised, statement

_ADD = (
    "What is {a} plus {b}?",
    "How much is {a} plus {b}?",
    "Add {a} and {b}.",
    "What do you get from {a} plus {b}?",
)
_TAKE = (
    "What is {a} minus {b}?",
    "How much is {a} minus {b}?",
    "What is left of {a} minus {b}?",
    "Please work out {a} minus {b}.",
)
_THREE = (
    "List three {s}.",
    "Name three {s}.",
    "Please list three {s}.",
    "Tell me three {s}.",
    "Can you name three {s}?",
    "Give me three {s}.",
    "Which three {s} do you know?",
    "I need the names of three {s}.",
)
_POLITE = ("Say it politely: I want {s}.", "Be polite: Give me {s}!", "How do I ask nicely for {s}?")
_LETTER = (
    "Which letter does {s} begin with?",
    "What is the first letter of {s}?",
    "Tell me the first letter of {s}.",
)
_REVERSE = ("Spell the word {s} backwards.", "Write the word {s} backwards.")
_ABOUT = (
    "Tell me about {s}.",
    "Who is {s}?",
    "What do you know about {s}?",
    "Tell me a story about {s}.",
    "Do you know {s}?",
    "Please tell me something about {s}.",
)
_PLURALS = {
    "piece of furniture": "pieces of furniture",
    "fish": "kinds of fish",
}
_MANNERS = {
    "Hello! How can I help you?": (
        "Hello!|Hi!|Hello there!|Good morning!|Good day!|Hi, teacher!|Hey!|Good evening!|Hello, friend!|"
        "Hi, can you help me?|Hello, I have a question.|Hello, are you there?"
    ),
    "I am fine, thank you.": (
        "How are you?|How are you today?|Are you well?|How do you feel?|Is everything fine?|How is it going?|"
        "Are you doing well today?|Do you feel good today?"
    ),
    "You are welcome.": (
        "Thank you!|Thanks!|Thank you very much!|Thanks a lot!|That was helpful, thank you!|Many thanks!|"
        "Thanks for your help!|I thank you!"
    ),
    "Goodbye! See you soon.": (
        "Goodbye!|Bye!|See you!|See you later!|I have to go now.|Good night!|Bye for now!|Until tomorrow!"
    ),
    "I am a small language model.": (
        "Who are you?|What are you?|Tell me who you are.|Are you a robot?|Are you a person?|"
        "What is your name?|Please introduce yourself.|May I know who you are?"
    ),
    "I can answer simple questions.": (
        "What can you do?|How can you help me?|What do you know?|Can you help me?|Tell me what you can do.|"
        "What are you good at?|What may I ask you?|For what can I use you?"
    ),
}


def _adding(limit: int) -> Callable[[random.Random], str]:
    def write(rng: random.Random) -> str:
        low = 0 if limit == 10 else 10
        return rng.choice(_ADD).format(a=rng.randrange(low, limit), b=rng.randrange(low, limit))

    return write


def _taking_away(rng: random.Random) -> str:
    small, large = sorted((rng.randrange(1, 30), rng.randrange(1, 30)))
    return rng.choice(_TAKE).format(a=large, b=small)


@cache
def _groups() -> dict[str, list[str]]:
    """Plural of each category with its members, when there are three or more."""
    members: dict[str, list[str]] = {}
    for noun, group in PAIRS["category"].items():
        members.setdefault(_PLURALS.get(group, f"{group}s"), []).append(noun)
    return {plural: nouns for plural, nouns in members.items() if len(nouns) >= 3}


@cache
def _wishes() -> list[str]:
    return sorted({person.food for person in PEOPLE.values()} | set(PAIRS["tool"].values()))


@cache
def _short_words() -> list[str]:
    return sorted({word for table in PAIRS.values() for word in table if word.isalpha() and len(word) <= 5})


def _letters(rng: random.Random) -> str:
    pattern = rng.choice(_LETTER + _REVERSE[:1] if rng.random() < 0.8 else _REVERSE)
    return pattern.format(s=rng.choice(_short_words()))


def _manners(rng: random.Random) -> str:
    return rng.choice([prompt for prompts in _MANNERS.values() for prompt in prompts.split("|")])


WRITERS: dict[str, Callable[[random.Random], str]] = {
    "adding small numbers": _adding(10),
    "adding bigger numbers": _adding(60),
    "taking numbers away": _taking_away,
    "naming three things": lambda rng: rng.choice(_THREE).format(s=rng.choice(list(_groups()))),
    "polite words": lambda rng: rng.choice(_POLITE).format(s=rng.choice(_wishes())),
    "letters of words": _letters,
    "greetings": _manners,
    "stories about people": lambda rng: rng.choice(_ABOUT).format(s=rng.choice(list(PEOPLE))),
}
"""Subtopic -> a function that writes one prompt of it."""


def _list_three(plural: str) -> str:
    first, second, third = _groups()[plural][:3]
    return f"Three {plural} are {first}, {second} and {third}."


def _portrait(name: str) -> str:
    by_kind = {fact.kind: statement(fact) for fact in facts_about(name)}
    return " ".join(by_kind[kind] for kind in ("home", "pet", "food"))


def _readers() -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]]]:
    def read(patterns: tuple[str, ...], slot: str = r"[\w' ]+") -> re.Pattern[str]:
        parts = [
            re.escape(p)
            .replace(r"\{s\}", f"({slot})")
            .replace(r"\{a\}", r"(\d+)")
            .replace(r"\{b\}", r"(\d+)")
            for p in patterns
        ]
        return re.compile("|".join(f"(?:{part})" for part in parts), re.IGNORECASE)

    def slot(match: re.Match[str]) -> str:
        return next(group for group in match.groups() if group is not None)

    def numbers(match: re.Match[str]) -> tuple[int, int]:
        left, right = (int(group) for group in match.groups() if group is not None)
        return left, right

    def known(match: re.Match[str], names: dict[str, str], answer: Callable[[str], str]) -> str | None:
        found = names.get(slot(match).lower())
        return answer(found) if found else None

    groups = {plural: plural for plural in _groups()}
    people = {name.lower(): name for name in PEOPLE}
    return [
        (read(_ADD), lambda m: "{} plus {} is {}.".format(*numbers(m), sum(numbers(m)))),
        (read(_TAKE), lambda m: "{} minus {} is {}.".format(*numbers(m), numbers(m)[0] - numbers(m)[1])),
        (read(_THREE), lambda m: known(m, groups, _list_three)),
        (read(_POLITE), lambda m: f"I would like {slot(m)}, please."),
        (read(_LETTER), lambda m: f"The word {slot(m)} begins with {slot(m)[0]}."),
        (read(_REVERSE), lambda m: f"The word {slot(m)} backwards is {slot(m)[::-1]}."),
        (read(_ABOUT), lambda m: known(m, people, _portrait)),
    ]


@cache
def _reader_table() -> list[tuple[re.Pattern[str], Callable[[re.Match[str]], str | None]]]:
    return _readers()


@cache
def _manners_table() -> dict[str, str]:
    return {
        normalised(prompt): answer for answer, prompts in _MANNERS.items() for prompt in prompts.split("|")
    }


def solve(prompt: str) -> str | None:
    """The one answer to an exercise, or None when the text is not an exercise."""
    greeting = _manners_table().get(normalised(prompt))
    if greeting:
        return greeting
    for pattern, answer in _reader_table():
        match = pattern.fullmatch(prompt.strip())
        if match:
            return answer(match)
    return None
