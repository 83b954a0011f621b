"""Stories: how long, how many different ones, how many words, and true to the world."""

import math
import random
import re
from collections import Counter

import pytest

from utils.generate.teacher import stories
from utils.generate.teacher.facts import PEOPLE
from utils.generate.teacher.kinds import KINDS
from utils.generate.teacher.plots import ENDINGS, NARRATOR, OPENINGS, PLOTS
from utils.generate.teacher.world import answer_of, facts, questions, statement


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
    per_idea = [
        len(OPENINGS) * len(ENDINGS) * math.prod(len(beat) for beat in plot.beats if beat != ("{LESSON}",))
        for plot in PLOTS.values()
    ]
    ideas = [
        len(PEOPLE) * len(NARRATOR["adjective"]) * len(plot.things) * len(NARRATOR["where"])
        for plot in PLOTS.values()
    ]
    assert sum(a * b for a, b in zip(per_idea, ideas, strict=True)) > 1e9


def test_about_three_percent_repeat_exactly_and_five_nearly(told):
    favourites = {stories._favourite(number) for number in range(stories.FAVOURITES)}
    exact = sum(story in favourites for story in told) / len(told)
    assert 0.02 < exact < 0.04
    near = sum(story not in favourites and _nearest(story, favourites) > 0.8 for story in told) / len(told)
    assert 0.035 < near < 0.065
    fresh = Counter(story for story in told if story not in favourites and _nearest(story, favourites) < 0.8)
    assert max(fresh.values()) == 1


def _nearest(story: str, favourites: set[str]) -> float:
    runs = _runs(story)
    return max(
        len(runs & other) / len(runs | other) for other in map(_runs, favourites) if runs & other or other
    )


_RUNS: dict[str, set[tuple[str, ...]]] = {}


def _runs(story: str) -> set[tuple[str, ...]]:
    if story not in _RUNS:
        words = story.lower().split()
        _RUNS[story] = set(zip(*(words[shift:] for shift in range(5)), strict=False))
    return _RUNS[story]


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
    text = "\n".join(told)
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
