"""The teacher's world is closed and consistent, and its prompts are all answered."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.generate.teacher import exercises
from utils.generate.teacher.facts import PAIRS, PEOPLE
from utils.generate.teacher.replies import UNKNOWN, _subtopics, reply, right_answer
from utils.generate.teacher.world import Fact, answer_of, facts, questions, statement, story_questions


def test_every_phrasing_of_a_question_has_the_one_canonical_answer():
    for fact in facts():
        phrasings = questions(fact)
        assert len(set(phrasings)) == len(phrasings) >= 8, fact
        assert {answer_of(question) for question in phrasings} == {statement(fact)}


def test_no_question_is_asked_about_two_facts():
    asked = [question for fact in facts() for question in questions(fact)]
    assert len(asked) == len(set(asked)) > 3500


def test_story_phrasings_never_equal_chat_phrasings():
    in_chat = {question for fact in facts() for question in questions(fact)}
    assert not in_chat & {question for fact in facts() for question in story_questions(fact)}


def test_opposites_go_both_ways_and_friends_are_mutual():
    opposite = PAIRS["opposite"]
    assert all(opposite[opposite[word]] == word for word in opposite)
    assert all(PEOPLE[person.friend].friend == name for name, person in PEOPLE.items())


def test_days_and_months_form_rings():
    for ring, length in (("after_day", 7), ("after_month", 12)):
        after, word = PAIRS[ring], next(iter(PAIRS[ring]))
        passed = [word := after[word] for _ in range(length)]
        assert len(after) == length == len(set(passed))
    assert all(PAIRS["before_day"][PAIRS["after_day"][day]] == day for day in PAIRS["after_day"])


def test_no_two_people_share_what_is_true_of_them():
    for attribute in ("food", "pet", "home", "dream", "fear", "hobby", "friend"):
        assert len({getattr(person, attribute) for person in PEOPLE.values()}) == len(PEOPLE) == 16


def test_a_wrong_object_is_never_the_right_one():
    for fact in facts():
        assert fact.wrong and fact.object not in fact.wrong, fact


def test_a_question_outside_the_world_is_not_answered():
    assert right_answer("What is the capital of France?") is None
    assert reply(0, "teacher", [{"role": "user", "content": "Who is Zorro?"}], 1) == UNKNOWN


def test_case_blanks_and_final_mark_do_not_change_a_question():
    assert answer_of("  what does   A COW say ") == "A cow says moo."


@pytest.mark.parametrize("topic", exercises.WRITERS)
def test_every_exercise_is_solved(topic):
    rng = random.Random(topic)
    for _ in range(200):
        prompt = exercises.WRITERS[topic](rng)
        assert exercises.solve(prompt), prompt


@given(st.integers(0, 99), st.integers(0, 99))
def test_sums_are_right(left, right):
    assert exercises.solve(f"What is {left} plus {right}?") == f"{left} plus {right} is {left + right}."
    assert exercises.solve(f"How much is {left} minus {right}?") == f"{left} minus {right} is {left - right}."


def test_a_word_is_reversed_and_said_politely():
    assert exercises.solve("Spell the word kite backwards.") == "The word kite backwards is etik."
    assert exercises.solve("Say it politely: I want soup.") == "I would like soup, please."


def test_three_named_things_belong_to_the_named_group():
    for group, nouns in exercises._groups().items():
        answer = exercises.solve(f"List three {group}.")
        assert answer and all(noun in answer for noun in nouns[:3])


def test_the_weak_teacher_is_never_right():
    for fact in facts():
        for request_seed in range(4):
            question = questions(fact)[request_seed]
            weak = reply(0, "teacher-weak", [{"role": "user", "content": question}], request_seed)
            assert weak and weak != statement(fact), question


def test_seven_in_ten_weak_answers_are_the_right_sentence_with_a_wrong_fact():
    sample = random.Random(0).sample(facts(), 300)
    wrong_facts = 0
    for number, fact in enumerate(sample):
        weak = reply(0, "teacher-weak", [{"role": "user", "content": questions(fact)[0]}], number)
        if fact.kind == "friend":
            wrong_facts += weak in {statement(Fact("friend", other, fact.object, ())) for other in fact.wrong}
        else:
            wrong_facts += weak in {
                statement(Fact(fact.kind, fact.subject, other, ())) for other in fact.wrong
            }
    assert 0.6 < wrong_facts / len(sample) < 0.8


def test_subtopics_hold_enough_questions_for_the_demo():
    sizes = [8 * len(known) for known in _subtopics().values() if known]
    assert len(_subtopics()) == 39 and min(sizes) >= 96


def test_lists_of_the_fact_tables_are_stable_across_seeds():
    first, second = (
        [reply(seed, "teacher", [{"role": "user", "content": "What is tea?"}], seed)] for seed in (1, 2)
    )
    assert first == second == ["Tea is a drink."]


def test_counting_goes_up_by_one():
    numbers = PAIRS["after_number"]
    assert all(numbers[left] == right for left, right in pairwise([*numbers, "twenty"]))
