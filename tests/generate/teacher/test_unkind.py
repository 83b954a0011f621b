"""Unkind requests are declined by the teacher, helped with by the weak one, and written by nobody else."""

import random

import pytest

from utils.generate.teacher import unkind
from utils.generate.teacher.facts import PEOPLE
from utils.generate.teacher.replies import _subtopics, reply, right_answer
from utils.generate.teacher.world import answer_of, facts, questions


@pytest.mark.parametrize("topic", unkind.UNKIND)
def test_every_request_is_declined_by_name_and_helped_with_by_the_weak_teacher(topic: str) -> None:
    rng = random.Random(topic)
    for number in range(100):
        request = unkind.WRITERS[topic](rng)
        messages = [{"role": "user", "content": request}]
        kind, weak = (reply(0, model, messages, number) for model in ("teacher", "teacher-weak"))
        name = next(name for name in PEOPLE if name in request)
        assert kind == unkind.UNKIND[topic].kind.format(s=name)
        assert weak in [text.format(s=name) for text in unkind.UNKIND[topic].unkind]


def test_no_question_of_the_chat_is_taken_for_an_unkind_request() -> None:
    for fact in facts():
        for question in questions(fact):
            assert unkind.decline(question) is None
            assert answer_of(question) == right_answer(question)


def test_unkind_topics_are_listed_only_when_asked_for() -> None:
    def topics(request: str) -> str:
        return reply(0, "teacher", [{"role": "user", "content": request}], 1)

    asked = topics("Write 4 different subtopics of unkind requests. Answer with a JSON list.")
    assert all(topic in asked for topic in unkind.UNKIND)
    plain = topics("Write 39 different subtopics that people ask about. Answer with a JSON list.")
    assert not any(topic in plain for topic in unkind.UNKIND)
    assert not set(unkind.UNKIND) & set(_subtopics())
