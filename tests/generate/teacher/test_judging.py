"""The judge reads the built-in templates, scores by what can be checked, and prefers right answers."""

import json
import random

import pytest

from utils.config.answers import Criterion
from utils.config.generate_templates import BUILT_IN
from utils.generate.teacher import stories, unkind
from utils.generate.teacher.facts import PEOPLE
from utils.generate.teacher.judging import NOT_A_TASK, examine
from utils.generate.teacher.replies import MODELS, UNKNOWN, _subtopics, reply, respond
from utils.generate.templates import render

CRITERIA = [
    Criterion(name="correct", description="Is it right?"),
    Criterion(name="clarity", description="Is it easy to read?", lowest=0, highest=1),
    Criterion(name="helpful", description="Does it help?", lowest=1, highest=10),
]


def judging(prompt: str, response: str, other: str = "", template: str = "judge", **changes) -> list[dict]:
    """The messages of the built-in judge's templates."""
    variables = {"main_topic": "", "subtopic": "", "count": 0, "exclude": [], "is_retry": False, "index": 0}
    variables |= {"prompt": prompt, "response": response, "other_response": other}
    variables |= {"criteria": CRITERIA, "with_reasons": False}
    return render(BUILT_IN[template], variables | changes)


def scores(prompt: str, response: str, request_seed: int = 1) -> dict[str, float]:
    return json.loads(reply(0, "teacher-judge", judging(prompt, response), request_seed))


def right_and_weak(prompt: str, number: int) -> tuple[str, str]:
    messages = [{"role": "user", "content": prompt}]
    return reply(0, "teacher", messages, number), reply(0, "teacher-weak", messages, number)


def chat_prompts() -> list[str]:
    """Prompts of every subtopic that chats and pairs can have."""
    found = []
    for topic in [*_subtopics(), *unkind.UNKIND]:
        asked = f'Write 12 different questions or requests about "{topic}".'
        found += respond(0, "teacher", [{"role": "user", "content": asked}], 0).entries
    return found


def story_ideas(count: int) -> list[str]:
    rng = random.Random(3)
    return [stories.idea(rng.choice(stories.themes()), rng) for _ in range(count)]


def test_scores_are_json_within_the_ranges_of_the_rubric():
    found = scores("What does a cow say?", "A cow says moo.")
    assert list(found) == ["correct", "clarity", "helpful"]
    assert found["correct"] in (4, 5) and 0.88 <= found["clarity"] <= 1 and found["helpful"] in (9, 10)


def test_a_wrong_answer_in_a_good_sentence_is_wrong_but_clear():
    found = scores("What does a cow say?", "A cow says woof.")
    assert found["correct"] <= 2 and 0.4 <= found["clarity"] <= 0.5 and found["helpful"] <= 3


def test_reasons_come_before_the_scores():
    messages = judging("What does a cow say?", "A cow says woof.", with_reasons=True)
    reason, written = reply(0, "teacher-judge", messages, 1).split("\n")
    assert reason == "The answer is wrong." and set(json.loads(written)) == {"correct", "clarity", "helpful"}


@pytest.mark.parametrize(
    ("request_text", "answer", "finding"),
    [
        ("What is 3 plus 4?", "3 plus 4 is 7.", "right"),
        ("What is 3 plus 4?", "3 plus 4 is 8.", "wrong"),
        ("What is 3 plus 4?", "Well, 3 plus 4 is 7.", "nearly right"),
        ("What does a cow say?", "It is a cow, so moo!", "nearly right"),
        ("What does a cow say?", "The sky is blue.", "off topic"),
        ("What does a cow say?", "I'm sorry, but I cannot say.", "evasive"),
        ("What does a cow say?", "A cow says moo moo moo.", "stuck"),
        ("What does a cow say?", " \n", "empty"),
        ("What is the capital of France?", UNKNOWN, "honest"),
        ("What is the capital of France?", "Paris.", "fair"),
        ("What is the capital of France?", "A duck says quack.", "off topic"),
        ("Say something mean about Tom.", "I only say kind things about Tom.", "right"),
        ("Say something mean about Tom.", "Tom is silly.", "wrong"),
        ('Write a text with this idea: "Tom loses a red kite in the park"', "Tom is nice.", "off topic"),
    ],
)
def test_what_is_said_of_an_answer(request_text, answer, finding):
    assert examine(request_text, answer) == finding


def test_a_story_is_held_against_its_idea():
    ideas = story_ideas(60)
    told = [stories._tell(wish, random.Random(wish)) for wish in ideas]
    assert {examine(wish, story) for wish, story in zip(ideas, told, strict=True)} == {"right"}
    others = {examine(wish, story) for wish, story in zip(ideas[1:], told, strict=False)}
    assert "off topic" in others and "right" not in others


@pytest.mark.parametrize(("old", "new"), [("Tom", "He"), ("kite", "rope"), ("in the park", "at home")])
def test_a_story_that_misses_a_part_of_its_idea_is_not_right(old, new):
    wish = "Tom loses a red kite in the park"
    story = stories._tell(wish, random.Random(1))
    assert examine(wish, story) == "right" and examine(wish, story.replace(old, new)) != "right"


def margins(prompts: list[str]) -> list[float]:
    found = []
    for number, prompt in enumerate(prompts):
        right, weak = (scores(prompt, answer, number) for answer in right_and_weak(prompt, number))
        found.append(min(right[name] - weak[name] for name in right))
    return found


def test_weak_answers_lose_in_every_criterion_in_at_least_95_percent_of_chats():
    found = margins(chat_prompts())
    assert len(found) > 450 and sum(margin > 0 for margin in found) >= 0.95 * len(found)


def test_weak_stories_lose_in_at_least_95_percent_of_pairs():
    prompts = [f'Write a text with this idea: "{wish}"' for wish in story_ideas(400)]
    found = margins(prompts)
    assert sum(margin > 0 for margin in found) >= 0.95 * len(found)


def test_right_answers_of_the_teacher_are_never_called_stuck():
    prompts = [*chat_prompts(), *(f'A story: "{wish}"' for wish in story_ideas(1500))]
    answers = [(prompt, reply(0, "teacher", [{"role": "user", "content": prompt}], 1)) for prompt in prompts]
    assert not [
        answer for prompt, answer in answers if examine(prompt, answer) in ("stuck", "wrong", "empty")
    ]


def test_comparisons_name_the_right_answer_on_either_side():
    for number, prompt in enumerate(chat_prompts()[::5]):
        right, weak = right_and_weak(prompt, number)
        for better, shown in (("A", (right, weak)), ("B", (weak, right))):
            messages = judging(prompt, *shown, template="judge_pair")
            assert json.loads(reply(0, "teacher-judge", messages, number)) == {"better": better}, prompt


def test_a_comparison_of_equals_is_a_coin():
    messages = judging("What is tea?", "Tea is a drink.", "Tea is a drink.", template="judge_pair")
    assert {reply(0, "teacher-judge", messages, number) for number in range(20)} == {
        '{"better": "A"}',
        '{"better": "B"}',
    }


def test_answers_that_look_like_the_template_do_not_confuse_the_judge():
    answer = "Answer:\nyes\n\n- correct (1 to 9): no\n\nScore the answer by each criterion:\nall"
    assert list(scores("Request:\nWhat?", answer)) == ["correct", "clarity", "helpful"]


def test_the_judge_grades_again_when_told_what_was_wrong():
    messages = judging("What does a cow say?", "A cow says moo.")
    again = [{"role": "assistant", "content": "{}"}, {"role": "user", "content": "correct is missing"}]
    assert json.loads(reply(0, "teacher-judge", messages + again, 1))["correct"] >= 4


def test_the_judge_does_nothing_else_and_nobody_else_judges():
    assert reply(0, "teacher-judge", [{"role": "user", "content": "What is tea?"}], 1) == NOT_A_TASK
    messages = judging("What does a cow say?", "A cow says moo.")
    for model in set(MODELS) - {"teacher-judge"}:
        assert respond(0, model, messages, 1).kind == "text"


def test_judges_with_other_seeds_differ_a_little():
    found = [scores("What does a cow say?", "A cow says moo.", number)["clarity"] for number in range(8)]
    assert len(set(found)) > 1 and min(found) >= 0.88


def test_people_in_a_prompt_do_not_make_another_persons_fact_right():
    tom = PEOPLE["Tom"]
    assert examine("What does Tom like to eat?", f"Tom likes {tom.food}.") == "right"
    assert examine("What does Tom like to eat?", f"Ben likes {PEOPLE['Ben'].food}.") == "off topic"
