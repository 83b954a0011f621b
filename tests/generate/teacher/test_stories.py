"""Stories: how long, how many different ones, how many words, and true to the world."""

import math
import random
import re
from collections import Counter
from functools import cache

import pytest

from utils.generate.teacher import stories
from utils.generate.teacher.facts import PEOPLE
from utils.generate.teacher.kinds import KINDS
from utils.generate.teacher.plots import NARRATOR, OPENINGS, PLOTS
from utils.generate.teacher.world import answer_of, facts, questions, statement, story_questions


@pytest.fixture(scope="module")
def told() -> list[str]:
    """6,000 stories for different ideas."""
    found = []
    for number in range(6000):
        rng = random.Random(number)
        found.append(stories.tell(stories.idea(rng.choice(stories.themes()), rng), rng))
    return found


def test_length_is_60_to_140_words(told):
    lengths = [len(story.split()) for story in told]
    assert min(lengths) >= 60 and max(lengths) <= stories.LONGEST_WORDS == 140


def test_vocabulary_of_stories_and_chats_is_1200_to_2000_words(told):
    chats = [text for fact in facts() for text in (*questions(fact), statement(fact))]
    words = {word for text in (*told, *chats) for word in re.findall(r"[a-z'-]+", text.lower())}
    assert 1200 <= len(words) <= 2000, len(words)


def test_there_are_more_than_a_billion_stories():
    """Counted low: no weather, no optional beats, one lesson of the two or three that every story has."""
    total = 0
    for plot in PLOTS.values():
        ideas = len(PEOPLE) * len(NARRATOR["adjective"]) * len(plot.things) * len(NARRATOR["where"])
        needed = [
            len(set(beat))
            for number, beat in enumerate(plot.beats)
            if number not in plot.optional and beat != ("{LESSON}",)
        ]
        lessons = sum(len(set(story_questions(fact))) for fact in facts())
        total += ideas * len(OPENINGS) * len(NARRATOR["when"]) * math.prod(needed) * lessons
    assert total > 1e9 * 1e3


def test_stories_for_one_idea_hardly_ever_repeat():
    wish = stories.idea("lost things", random.Random(0))
    told = Counter(stories._tell(wish, random.Random(number)) for number in range(3000))
    assert max(told.values()) == 1


def test_about_three_percent_repeat_exactly_and_five_nearly(told):
    favourites = {stories._favourite(number) for number in range(stories.FAVOURITES)}
    exact = sum(story in favourites for story in told) / len(told)
    assert 0.02 < exact < 0.04
    others = [story for story in told if story not in favourites]
    near = {story for story in others if _is_near_one_of(story, favourites)}
    assert 0.035 < len([story for story in others if story in near]) / len(told) < 0.065
    assert max(Counter(story for story in others if story not in near).values()) == 1


def _is_near_one_of(story: str, favourites: set[str]) -> bool:
    """Whether more than 0.8 of the five-word runs of two stories are the same."""
    runs = _runs(story)
    return any(
        len(runs & other) > 0.8 * len(runs | other) for other in map(_runs, favourites) if runs & other
    )


@cache
def _runs(story: str) -> frozenset[tuple[str, ...]]:
    words = story.lower().split()
    return frozenset(zip(*(words[shift:] for shift in range(5)), strict=False))


def test_what_stories_say_about_people_is_true(told):
    true = {statement(fact) for fact in facts()}
    frames = [
        KINDS[kind].answer.split("{o}")[0].replace("{s} ", "")
        for kind in ("food", "pet", "home", "dream", "fear")
    ]
    claims = [
        sentence
        for story in told
        for sentence in re.findall(r"[A-Z][^.!?\"]*\.", story)
        if sentence.split()[0] in PEOPLE
        and any(sentence.split(" ", 1)[1].startswith(frame) for frame in frames)
    ]
    assert len(claims) > 3000 and set(claims) <= true


def test_no_chat_question_occurs_in_a_story(told):
    text = "\n".join(told[:1000])
    assert not [question for fact in facts() for question in questions(fact) if question in text]


def test_every_story_teaches_two_or_three_facts_by_question_and_answer(told):
    answers = [re.findall(r'\basked, "([^"]+)" [\w ]+ said, "([^"]+)"', story) for story in told]
    assert {len(found) for found in answers} == {2, 3}
    assert all(answer_of(question) == answer for found in answers for question, answer in found)


def test_a_story_is_about_its_idea():
    rng = random.Random(5)
    for _ in range(50):
        wish = stories.idea(rng.choice(stories.themes()), rng)
        story = stories._tell(wish, rng)
        assert wish.split()[0] in story and stories._understand(wish)[2]["where"] in story


def test_no_slot_is_left_open(told):
    assert not [story for story in told if "{" in story or "}" in story]
