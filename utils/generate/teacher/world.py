"""
Questions about the teacher's world, each with its one right answer.

A fact is a kind (opposite, sound, food, ...), a subject and an object. A kind has several phrasings of its
question, one canonical answer sentence, and two phrasings that only stories use: a chat question never occurs
word for word in a story, so a held-out question really is held out.

    >>> answer_of("What does a cow say?")
    'A cow says moo.'
"""

from dataclasses import dataclass
from functools import cache

from utils.generate.teacher.facts import PAIRS, PEOPLE
from utils.generate.teacher.kinds import KINDS


@dataclass(frozen=True)
class Fact:
    """One true statement; `wrong` lists the objects of the same kind that would be false here."""

    kind: str
    subject: str
    object: str
    wrong: tuple[str, ...]


_AN = tuple("aeiou")
_PLAIN = frozenset(  # nouns without an article: a crowd, a stuff, or the only one of its sort
    ["money", "sand", "bread", "cheese", "wine", "jam", "tea", "juice", "water", "coffee", "milk"]
)


def with_article(noun: str) -> str:
    """`cow` -> `a cow`, `owl` -> `an owl`, `bread` -> `bread`."""
    if noun in _PLAIN:
        return noun
    return f"{'an' if noun.startswith(_AN) else 'a'} {noun}"


@cache
def fill(pattern: str, subject: str, object_: str) -> str:
    """Put subject and object into a pattern; `{a s}` adds an article, `{A s}` starts a sentence."""
    noun = with_article(subject)
    text = (
        pattern.replace("{s}", subject).replace("{a s}", noun).replace("{A s}", noun[:1].upper() + noun[1:])
    )
    return text.replace("{o}", object_).replace("{a o}", with_article(object_))


def statement(fact: Fact) -> str:
    """The canonical answer sentence."""
    return fill(KINDS[fact.kind].answer, fact.subject, fact.object)


def questions(fact: Fact) -> list[str]:
    """Every chat phrasing of the question that this fact answers."""
    return [fill(pattern, fact.subject, fact.object) for pattern in KINDS[fact.kind].questions]


def story_questions(fact: Fact) -> list[str]:
    """The phrasings that only stories use."""
    return [fill(pattern, fact.subject, fact.object) for pattern in KINDS[fact.kind].in_stories]


@cache
def facts() -> tuple[Fact, ...]:
    """All facts of the world, in a fixed order."""
    tables = {kind: dict(table) for kind, table in PAIRS.items()}
    for attribute in ("food", "pet", "home", "dream", "fear", "hobby"):
        tables[attribute] = {name: getattr(person, attribute) for name, person in PEOPLE.items()}
    found = [_fact(kind, s, o, table) for kind, table in tables.items() for s, o in table.items()]
    friends = {person.friend: name for name, person in PEOPLE.items()}
    names = tuple(PEOPLE)
    return tuple(found) + tuple(
        # The subject answers ("Lily is the best friend of Tom."), so it is what a wrong answer changes.
        Fact("friend", s, o, tuple(n for n in names if n not in (s, o)))
        for s, o in friends.items()
    )


def _fact(kind: str, subject: str, object_: str, table: dict[str, str]) -> Fact:
    others = dict.fromkeys(table.values())
    return Fact(kind, subject, object_, tuple(other for other in others if other not in (object_, subject)))


@cache
def facts_of_topic(topic: str) -> tuple[Fact, ...]:
    """The facts behind one subtopic of the chat, `()` when the topic is not about facts."""
    return tuple(fact for fact in facts() if KINDS[fact.kind].topic == topic)


@cache
def facts_about(name: str) -> tuple[Fact, ...]:
    """What the world knows about one person."""
    return tuple(f for f in facts() if f.subject == name)


def normalised(question: str) -> str:
    """Case, blanks and the final mark do not change a question."""
    return " ".join(question.lower().split()).rstrip("?.! ")


@cache
def _by_question() -> dict[str, Fact]:
    index: dict[str, Fact] = {}
    for fact in facts():
        for question in questions(fact) + story_questions(fact):
            known = index.setdefault(normalised(question), fact)
            assert statement(known) == statement(fact), f"two answers to: {question}"
    return index


def fact_of(question: str) -> Fact | None:
    """The fact that a question asks for, or None when the world does not know it."""
    return _by_question().get(normalised(question))


def answer_of(question: str) -> str | None:
    """The canonical answer, or None when the world does not know it."""
    fact = fact_of(question)
    return statement(fact) if fact else None
