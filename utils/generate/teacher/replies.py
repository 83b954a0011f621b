"""
From messages to an answer: the part of the teacher that is a model.

Four models answer. `teacher` is right; `teacher-weak` is fluent and wrong, off topic, repetitive or evasive,
so that preference pairs differ in what matters and not in form alone; `teacher-thinker` is right and thinks
aloud first; `teacher-judge` scores. All are pure functions of (seed, model, messages, request seed): the same
call gives the same bytes in any process, on any day.

    >>> reply(0, "teacher", [{"role": "user", "content": "What does a cow say?"}], 7)
    'A cow says moo.'
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from functools import cache

from utils.generate.teacher import exercises, stories, unkind
from utils.generate.teacher.answer import Answer
from utils.generate.teacher.judging import NOT_A_TASK, is_judging, judge
from utils.generate.teacher.kinds import KINDS
from utils.generate.teacher.thinking import FORMS, think
from utils.generate.teacher.world import (
    Fact,
    answer_of,
    fact_of,
    facts,
    facts_of_topic,
    normalised,
    questions,
    statement,
)

MODELS = ("teacher", "teacher-weak", "teacher-judge", "teacher-thinker")
FACTS_PER_SUBTOPIC = 16
UNKNOWN = "I do not know."

_LIST_REQUEST = re.compile(
    r"\b(?:write|list|give|name|generate)(?: me)? (\d+)\b[^\n]*?"
    r"\b(subtopics|topics|ideas|questions|requests|prompts)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\"([^\"\n]+)\"")
_EXCLUDED = re.compile(r"^- (.+)$", re.MULTILINE)


def reply(seed: int, model: str, messages: Sequence[dict[str, str]], request_seed: int | None) -> str:
    """The text that `model` answers; raises KeyError for a model that does not exist."""
    return respond(seed, model, messages, request_seed).text


def respond(seed: int, model: str, messages: Sequence[dict[str, str]], request_seed: int | None) -> Answer:
    """The same with what it was made from."""
    if model not in MODELS:
        raise KeyError(model)
    rng = _generator(seed, model, messages, request_seed)
    text = task_of(messages)
    if model == "teacher-judge":
        return judge(text, rng) or Answer("text", NOT_A_TASK)
    answer = _answer(model, text, rng)
    return think(answer, text, rng.choice(FORMS)) if model == "teacher-thinker" else answer


def task_of(messages: Sequence[dict[str, str]]) -> str:
    """What is to be done: the last message, or what it corrects when it only says what was wrong."""
    last = messages[-1]["content"]
    if len(messages) < 3 or right_answer(last):
        return last
    asked = [message["content"] for message in reversed(messages) if message["role"] == "user"]
    return next((text for text in asked if _LIST_REQUEST.search(text) or is_judging(text)), last)


def _answer(model: str, text: str, rng: random.Random) -> Answer:
    wanted = _LIST_REQUEST.search(text)
    if wanted:
        return _list(text, int(wanted[1]), wanted[2].lower(), rng)
    story = stories.WISH.search(text)
    if story:
        told = stories.tell(story[1], rng)
        return Answer("text", _stuck(told, rng) if model == "teacher-weak" else told)
    right = right_answer(text) or UNKNOWN
    return Answer("text", _weak_answer(text, right, rng) if model == "teacher-weak" else right)


def right_answer(prompt: str) -> str | None:
    """The one right answer of the teacher's world to a prompt, or None when it has none."""
    return answer_of(prompt) or exercises.solve(prompt) or unkind.decline(prompt)


def _generator(
    seed: int, model: str, messages: Sequence[dict[str, str]], request_seed: int | None
) -> random.Random:
    call = json.dumps(
        [seed, model, [[m["role"], m["content"]] for m in messages], request_seed], ensure_ascii=True
    )
    return random.Random(int.from_bytes(hashlib.sha256(call.encode()).digest()[:8], "big"))


# lists: subtopics, story ideas, questions


def _list(text: str, count: int, noun: str, rng: random.Random) -> Answer:
    excluded = {normalised(line) for line in _EXCLUDED.findall(text)}
    quoted = _QUOTED.search(text)
    topic = quoted[1] if quoted else ""
    if noun in ("subtopics", "topics"):
        entries = _sample(_subtopics_of(text.lower()), count, excluded, rng)
    elif noun == "ideas":
        entries = _write_some(lambda: stories.idea(_theme(topic, rng), rng), count, excluded)
    else:
        entries = _some_questions(topic, count, excluded, rng)
    written = json.dumps(entries, indent=1)
    text = f"Here is the list:\n```json\n{written}\n```" if rng.random() < 0.25 else written
    return Answer("list", text, entries=tuple(entries))


def _subtopics_of(request: str) -> list[str]:
    """What the first line asks for: the lines after it only say what to leave out."""
    first = request.lstrip().partition("\n")[0]
    if "unkind" in first:
        return list(unkind.UNKIND)
    return stories.themes() if re.search(r"\bstor(?:y|ies)\b", first) else list(_subtopics())


def _theme(topic: str, rng: random.Random) -> str:
    return topic if topic in stories.themes() else rng.choice(stories.themes())


@cache
def _subtopics() -> dict[str, tuple[Fact, ...]]:
    """Every subtopic of the chat: facts in parts of about `FACTS_PER_SUBTOPIC`, then the exercises."""
    found: dict[str, tuple[Fact, ...]] = {}
    for topic in dict.fromkeys(kind.topic for kind in KINDS.values()):
        known = sorted(facts_of_topic(topic), key=lambda fact: (fact.subject, fact.kind))
        parts = max(1, round(len(known) / FACTS_PER_SUBTOPIC))
        for part in range(parts):
            chosen = tuple(known[part * len(known) // parts : (part + 1) * len(known) // parts])
            name = f"{topic}, from {chosen[0].subject} to {chosen[-1].subject}" if parts > 1 else topic
            found[name] = chosen
    return found | dict.fromkeys(exercises.WRITERS, ())


def _some_questions(topic: str, count: int, excluded: set[str], rng: random.Random) -> list[str]:
    writers = exercises.WRITERS | unkind.WRITERS
    if topic in writers:
        return _write_some(lambda: writers[topic](rng), count, excluded)
    return _sample(_questions_about(topic), count, excluded, rng)


@cache
def _questions_about(topic: str) -> tuple[str, ...]:
    known = _subtopics().get(topic) or facts()
    return tuple(question for fact in known for question in questions(fact))


def _sample(pool: Sequence[str], count: int, excluded: set[str], rng: random.Random) -> list[str]:
    left = [entry for entry in pool if normalised(entry) not in excluded] if excluded else pool
    return rng.sample(left, min(count, len(left)))


def _write_some(write: Callable[[], str], count: int, excluded: set[str]) -> list[str]:
    """Distinct entries from a writer that may repeat itself; fewer than `count` when it runs dry."""
    found: dict[str, str] = {}
    for _ in range(20 * count):
        entry = write()
        if normalised(entry) not in excluded:
            found.setdefault(normalised(entry), entry)
        if len(found) == count:
            break
    return list(found.values())


# the weak model


def _weak_answer(prompt: str, right: str, rng: random.Random) -> str:
    """Mostly a fluent wrong fact; else off topic, stuck or evasive. Never right and never kind."""
    if helping := unkind.comply(prompt, rng):
        return helping
    manner = rng.choices(("wrong", "off topic", "stuck", "evasive"), weights=(70, 12, 12, 6))[0]
    fact = fact_of(prompt)
    if manner == "stuck":
        return _stuck(right, rng)
    if manner == "evasive" and right != UNKNOWN:
        return UNKNOWN
    if manner == "wrong" and fact:
        return _wrong_fact(fact, rng)
    if manner == "wrong" and re.search(r"\d", right):
        return _wrong_number(right, rng)
    return rng.choice(
        [told for told in (statement(other) for other in rng.sample(facts(), 4)) if told != right]
    )


def _wrong_fact(fact: Fact, rng: random.Random) -> str:
    other = rng.choice(fact.wrong)
    if fact.kind == "friend":
        return statement(Fact(fact.kind, other, fact.object, ()))
    return statement(Fact(fact.kind, fact.subject, other, ()))


def _wrong_number(right: str, rng: random.Random) -> str:
    head, value = right.rstrip(".").rsplit(" ", 1)
    return f"{head} {int(value) + rng.choice((-2, -1, 1, 2, 10))}."


def _stuck(text: str, rng: random.Random) -> str:
    """The last words again and again, as a model does that cannot stop."""
    words = text.rstrip(".!").split()
    tail = words[-rng.randint(1, min(3, len(words))) :]
    return " ".join(words + tail * rng.randint(1, 3)) + "."
