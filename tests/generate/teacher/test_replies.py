"""Lists: as many as asked for, for the demo's templates and the built-in ones, without what is known."""

import pytest

from utils.config.generate_templates import BUILT_IN
from utils.generate.teacher import stories, unkind
from utils.generate.teacher.answer import Answer
from utils.generate.teacher.replies import _subtopics, reply, respond, right_answer
from utils.generate.templates import render


def ask(text: str, request_seed: int = 1) -> Answer:
    return respond(0, "teacher", [{"role": "user", "content": text}], request_seed)


def built_in(step: str, **variables: object) -> Answer:
    names = {"main_topic": "", "subtopic": "", "prompt": "", "count": 5, "exclude": [], "is_retry": False}
    return respond(0, "teacher", render(BUILT_IN[step], names | {"index": 0} | variables), 1)


def test_the_built_in_templates_get_what_the_demos_own_get():
    topics = built_in("subtopics", main_topic="the small world of children", count=39)
    assert topics.kind == "list" and set(topics.entries) == set(_subtopics())
    ideas = built_in("ideas", subtopic="lost things", count=20)
    assert len(ideas.entries) == 20 and all(
        stories.share_of_idea(idea, "") is not None for idea in ideas.entries
    )
    prompts = built_in("prompts", subtopic=topics.entries[0], count=20)
    assert len(set(prompts.entries)) == 20 and all(right_answer(prompt) for prompt in prompts.entries)
    told = built_in("text", prompt=ideas.entries[0]).text
    assert (
        60 <= len(told.split()) <= 140 and built_in("answer", prompt="What is tea?").text == "Tea is a drink."
    )


@pytest.mark.parametrize(
    ("request_text", "known"),
    [
        ('Write 5 different subtopics of "history".', set(_subtopics())),
        ('Write 5 different topics that people ask about in "life".', set(_subtopics())),
        ('Give me 5 subtopics for short stories about "life".', set(stories.themes())),
        ('List 4 subtopics of unkind requests in "life".', set(unkind.UNKIND)),
    ],
)
def test_topics_are_those_of_what_is_asked_for(request_text, known):
    found = ask(request_text).entries
    assert set(found) <= known and len(set(found)) == len(found) >= 4


def test_topics_that_are_left_out_do_not_change_what_is_asked_for():
    request = (
        'Write 39 different subtopics of "life".\nLeave these out:\n- stories about people\n- Opposites!'
    )
    found = ask(request).entries
    assert set(found) == set(_subtopics()) - {"stories about people", "opposites"} and len(found) < 39


@pytest.mark.parametrize("topic", ["animal sounds", "adding bigger numbers"])
def test_prompts_that_are_known_are_left_out(topic):
    request = f'Write 30 different prompts about "{topic}". Answer with a JSON list.'
    first = ask(request).entries
    second = ask(request + "\nLeave these out:\n" + "\n".join(f"- {entry}" for entry in first)).entries
    assert len(first) == len(second) == 30 and not set(first) & set(second)


def test_an_unknown_topic_is_asked_about_anyway():
    assert all(right_answer(prompt) for prompt in ask('Write 9 questions about "quantum physics".').entries)


def test_a_list_is_given_again_when_told_what_was_wrong():
    messages = [
        {"role": "user", "content": 'Write 7 different questions about "opposites".'},
        {"role": "assistant", "content": "Sure!"},
        {"role": "user", "content": "There is no list in this. Answer with a list only."},
    ]
    assert len(respond(0, "teacher", messages, 1).entries) == 7


def test_a_talk_goes_on_with_its_last_question():
    messages = [
        {"role": "user", "content": 'Write 7 different questions about "opposites".'},
        {"role": "assistant", "content": "[]"},
        {"role": "user", "content": "What does a cow say?"},
    ]
    assert reply(0, "teacher", messages, 1) == "A cow says moo."


def test_a_model_that_is_not_there():
    with pytest.raises(KeyError, match="gpt"):
        reply(0, "gpt", [{"role": "user", "content": "Hi!"}], 1)
