"""Totals, margins, thresholds, policies and comparisons of the judge; what it asks, and when."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config.answers import Criterion, FilterSpec, JudgeSpec
from utils.config.generate_templates import BUILT_IN
from utils.generate.calls import Request
from utils.generate.errors import CallFailed, Draining
from utils.generate.judge import Judge, Judgement
from utils.generate.judge_calls import better_of
from utils.generate.reply import Reply
from utils.pipeline.errors import StageError

RUBRIC = [
    Criterion(name="correct", description="Is it right?", weight=3),
    Criterion(name="kind", description="Is it kind?", lowest=0, highest=10),
]
VARIABLES = {
    "main_topic": "numbers",
    "subtopic": "sums",
    "prompt": "2 + 2?",
    "count": 1,
    "exclude": [],
    "is_retry": False,
    "index": 0,
}
GOOD, BAD = "Four.", "Five."
OPEN = FilterSpec()


def scores(correct: float, kind: float) -> str:
    return json.dumps({"correct": correct, "kind": kind})


@dataclass
class Bench:
    """A judge over a model that is a function of the request; `asked` holds every request in order."""

    say: Callable[[Request], object]
    asked: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    _under_way: int = 0

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            said = self.say(request)
            said = await said if asyncio.iscoroutine(said) else said
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self._under_way -= 1
        if isinstance(said, BaseException):
            raise said
        return said if isinstance(said, Reply) else Reply(said, "", "stop", 10, 10)

    def judge(self, mode: str = "dpo", **spec: object) -> Judge:
        return Judge(JudgeSpec(criteria=RUBRIC, **spec), BUILT_IN, self.ask, "pairs", mode)

    def row(
        self, filter: FilterSpec = OPEN, mode: str = "dpo", rejected: str | None = BAD, **spec: object
    ) -> Judgement:
        return asyncio.run(self.judge(mode, **spec).judge_row(VARIABLES, GOOD, rejected, filter))

    def asked_about(self, answer: str) -> list[Request]:
        return [request for request in self.asked if judged(request) == answer]


def judged(request: Request) -> str:
    """The answer that a scoring request shows, or the first of two."""
    text = next(message["content"] for message in request.messages if message["role"] == "user")
    return re.search(r"\nAnswer(?: A)?:\n(.*?)\n\n", text, re.DOTALL)[1]


def by_answer(**said: object) -> Callable[[Request], object]:
    """A model that says one thing of the good answer and another of the bad one."""
    return lambda request: said["good" if judged(request) == GOOD else "bad"]


CLEAR = by_answer(good=scores(5, 8), bad=scores(2, 4))


def test_totals_are_weighted_means_and_the_margin_their_difference():
    made = Bench(CLEAR).row(mode="mo_dpo")
    assert asdict(made) == {
        "verdict": "keep",
        "reason": "",
        "chosen_scores": {"correct": 5.0, "kind": 8.0},
        "rejected_scores": {"correct": 2.0, "kind": 4.0},
        "chosen_total": 5.75,
        "rejected_total": 2.5,
        "margin": 3.25,
    }


def test_a_margin_of_nothing_and_one_below_it_are_margins_too():
    assert Bench(lambda request: scores(3, 3)).row(mode="mo_dpo").margin == 0.0
    made = Bench(by_answer(good=scores(1, 0), bad=scores(5, 10))).row(mode="mo_dpo")
    assert (made.verdict, made.chosen_total, made.rejected_total, made.margin) == ("keep", 0.75, 6.25, -5.5)


@given(st.lists(st.tuples(st.integers(10, 50), st.integers(0, 100)), min_size=2, max_size=2))
@settings(max_examples=50)
def test_totals_have_no_dust(both):
    (a, b), (c, d) = both
    made = Bench(by_answer(good=scores(a / 10, b / 10), bad=scores(c / 10, d / 10))).row(mode="mo_dpo")
    assert made.chosen_total == round((3 * a + b) / 40, 6)
    assert made.margin == round((3 * a + b - 3 * c - d) / 40, 6)


@pytest.mark.parametrize(
    ("filter", "reason"),
    [
        ({"min_chosen": 5.75}, ""),
        ({"min_chosen": 5.8}, "min_chosen"),
        ({"max_rejected": 2.5}, ""),
        ({"max_rejected": 2.4}, "max_rejected"),
        ({"min_margin": 3.25}, ""),
        ({"min_margin": 3.3}, "min_margin"),
        ({"min_chosen": 5.8, "max_rejected": 2.4, "min_margin": 3.3}, "min_chosen"),
        ({"min_chosen": 5.0, "max_rejected": 2.4, "min_margin": 3.3}, "max_rejected"),
        ({"min_chosen": 5.0, "max_rejected": 3.0, "min_margin": 3.3}, "min_margin"),
        ({"min_chosen": 5.0, "max_rejected": 3.0, "min_margin": 3.0}, ""),
    ],
)
def test_thresholds_keep_what_just_meets_them(filter, reason):
    made = Bench(CLEAR).row(FilterSpec(**filter))
    assert (made.verdict, made.reason) == ("drop" if reason else "keep", reason)


@pytest.mark.parametrize(
    ("filter", "mode", "asked"),
    [
        ({"min_chosen": 1}, "dpo", [GOOD]),
        ({"max_rejected": 6}, "dpo", [BAD]),
        ({"min_margin": 0}, "dpo", [GOOD, BAD]),
        ({"min_chosen": 1, "max_rejected": 6}, "kto", [GOOD, BAD]),
        ({}, "mo_dpo", [GOOD, BAD]),
        ({"min_chosen": 1}, "mo_dpo", [GOOD, BAD]),
    ],
)
def test_only_what_is_needed_is_asked(filter, mode, asked):
    bench = Bench(CLEAR)
    assert bench.row(FilterSpec(**filter), mode).verdict == "keep"
    assert [judged(request) for request in bench.asked] == asked


def test_an_answer_without_a_rejected_one_is_judged_alone():
    bench = Bench(CLEAR)
    made = bench.row(FilterSpec(min_chosen=5, pairwise=True), "sft", rejected=None)
    assert (made.verdict, made.chosen_total, made.rejected_scores, made.margin) == ("keep", 5.75, {}, 0.0)
    assert len(bench.asked) == 1


def test_a_request_holds_the_rubric_the_answer_and_a_schema():
    bench = Bench(CLEAR)
    bench.row(mode="mo_dpo", with_reasons=True, model="grader")
    request = bench.asked[0]
    assert (request.dataset, request.step, request.model) == ("pairs", "judge", "grader")
    assert (request.unit, request.sample) == ("2 + 2?", 0)
    text = request.messages[1]["content"]
    assert "Request:\n2 + 2?" in text and "- kind (0.0 to 10.0): Is it kind?" in text
    assert "one sentence of reasons" in text
    assert request.schema == {
        "type": "object",
        "properties": {
            "reasons": {"type": "string"},
            "correct": {"type": "number"},
            "kind": {"type": "number"},
        },
        "required": ["reasons", "correct", "kind"],
        "additionalProperties": False,
    }
    bench.row(mode="mo_dpo")
    assert (
        "reasons" not in bench.asked[-1].schema["properties"]
        and "sentence" not in bench.asked[-1].messages[1]["content"]
    )


def test_several_judges_give_the_median_of_each_criterion():
    said = [scores(5, 0), scores(1, 10), scores(4, 6)]
    bench = Bench(lambda request: said[request.sample])
    made = bench.row(mode="mo_dpo", num_judges=3)
    assert made.chosen_scores == {"correct": 4.0, "kind": 6.0} == made.rejected_scores
    assert sorted(request.sample for request in bench.asked_about(GOOD)) == [0, 1, 2]
    assert (
        Bench(lambda request: said[request.sample]).row(mode="mo_dpo", num_judges=2).chosen_scores["correct"]
        == 3
    )


def test_both_sides_and_all_judges_are_asked_at_the_same_time():
    bench = Bench(CLEAR)
    bench.row(mode="mo_dpo", num_judges=3)
    assert bench.most_at_once == 6


def test_rows_are_judged_at_the_same_time():
    async def many() -> None:
        judge = bench.judge("mo_dpo")
        rows = (judge.judge_row(VARIABLES | {"prompt": f"{n}?"}, GOOD, BAD, OPEN) for n in range(10))
        made = await asyncio.gather(*rows)
        assert {judgement.margin for judgement in made} == {3.25}

    bench = Bench(CLEAR)
    asyncio.run(many())
    assert bench.most_at_once == 20


def test_a_bad_reply_is_asked_for_again_with_the_error_shown():
    bench = Bench(lambda request: scores(5, 8) if len(request.messages) > 2 else scores(6, 8))
    made = bench.row(FilterSpec(min_chosen=1))
    assert made.chosen_scores == {"correct": 5.0, "kind": 8.0}
    first, again = bench.asked
    assert again.messages[:2] == first.messages and again.sample == first.sample == 0
    assert again.messages[2] == {"role": "assistant", "content": scores(6, 8)}
    assert again.messages[3]["role"] == "user"
    assert "correct: 6 is outside 1 to 5" in again.messages[3]["content"]


def test_the_error_is_shown_also_when_the_judge_said_nothing():
    bench = Bench(lambda request: scores(5, 8) if len(request.messages) > 2 else "")
    assert bench.row(FilterSpec(min_chosen=1)).verdict == "keep"
    assert bench.asked[1].messages[2] == {"role": "assistant", "content": "-"}


def test_a_score_at_the_very_end_of_a_cut_reply_does_not_count():
    cut = Reply("correct: 5\nkind: 1", "", "length", 10, 10)
    bench = Bench(lambda request: scores(5, 10) if len(request.messages) > 2 else cut)
    assert bench.row(FilterSpec(min_chosen=1)).chosen_scores["kind"] == 10


def test_retry_then_drop_tries_once_afresh_and_then_drops():
    fresh = Bench(lambda request: scores(5, 8) if request.sample == 2 else "I like it.")
    made = fresh.row(FilterSpec(min_chosen=1), num_judges=1)
    assert (made.verdict, made.reason) == ("drop", "judge_error")
    assert [(request.sample, len(request.messages)) for request in fresh.asked] == [
        (0, 2),
        (0, 4),
        (1, 2),
        (1, 4),
    ]
    fresh = Bench(lambda request: scores(5, 8) if request.sample >= 1 else "I like it.")
    assert fresh.row(FilterSpec(min_chosen=1)).verdict == "keep"
    assert [request.sample for request in fresh.asked] == [0, 0, 1]


def test_each_of_several_judges_has_a_fresh_try_of_its_own():
    bench = Bench(lambda request: scores(5, 8) if request.sample not in (0, 1) else "I like it.")
    assert bench.row(FilterSpec(min_chosen=1), num_judges=2).verdict == "keep"
    assert sorted(request.sample for request in bench.asked) == [0, 0, 1, 1, 2, 3]


@pytest.mark.parametrize("mode", ["dpo", "mo_dpo"])
def test_keep_unscored_keeps_all_but_rows_whose_scores_are_written(mode):
    bench = Bench(lambda request: "I like it.")
    made = bench.row(FilterSpec(min_margin=1), mode, on_judge_error="keep_unscored")
    assert made == Judgement("unscored" if mode == "dpo" else "drop", "judge_error")
    assert {request.sample for request in bench.asked} == {0}


def test_fail_stops_the_run_and_says_why():
    bench = Bench(lambda request: "I like it.")
    with pytest.raises(
        StageError, match='the judge "judge" gave no usable opinion of "2 \\+ 2\\?": correct: no score'
    ) as caught:
        bench.row(FilterSpec(min_chosen=1), on_judge_error="fail")
    assert "judge.on_judge_error" in caught.value.fix


def test_one_judge_of_several_without_an_opinion_is_an_error():
    bench = Bench(lambda request: "I like it." if request.sample in (1, 4) else scores(5, 8))
    assert bench.row(FilterSpec(min_chosen=1), num_judges=3).reason == "judge_error"


def test_a_call_that_was_given_up_is_an_error_of_the_judge():
    bench = Bench(lambda request: CallFailed("http_500", "oops", 7))
    assert bench.row(FilterSpec(min_chosen=1)).reason == "judge_error"
    assert [request.sample for request in bench.asked] == [0, 1]
    with pytest.raises(StageError, match="http_500 after 7 attempts: oops"):
        bench.row(FilterSpec(min_chosen=1), on_judge_error="fail")


@pytest.mark.parametrize("end", [Draining(), StageError("the key is refused")])
def test_the_end_of_a_run_is_no_error_of_the_judge(end):
    bench = Bench(by_answer(good=end, bad=scores(1, 1)))
    with pytest.raises(type(end)):
        bench.row(FilterSpec(min_margin=1), on_judge_error="keep_unscored")


def test_what_ended_the_run_comes_before_the_draining_that_follows():
    bench = Bench(by_answer(good=Draining(), bad=StageError("the key is refused")))
    with pytest.raises(StageError, match="the key is refused"):
        bench.row(FilterSpec(min_margin=1))


def test_a_low_chosen_answer_ends_the_matter_whatever_the_other_side_says():
    for bad in (scores(5, 10), "I like it.", CallFailed("http_500", "oops", 7)):
        bench = Bench(by_answer(good=scores(1, 0), bad=bad))
        made = bench.row(FilterSpec(min_chosen=3, max_rejected=2), on_judge_error="fail")
        assert made == Judgement("drop", "min_chosen", {"correct": 1.0, "kind": 0.0}, chosen_total=0.75)


def test_a_high_rejected_answer_ends_the_matter_but_not_before_a_low_chosen_one():
    for good in (scores(5, 8), "I like it."):
        bench = Bench(by_answer(good=good, bad=scores(5, 10)))
        made = bench.row(FilterSpec(max_rejected=2, min_margin=1), on_judge_error="fail")
        assert made == Judgement(
            "drop", "max_rejected", {}, {"correct": 5.0, "kind": 10.0}, rejected_total=6.25
        )
    low = scores(1, 0)
    bench = Bench(
        lambda request: scores(5, 10) if judged(request) == BAD else low if request.sample else "Fine!"
    )
    assert bench.row(FilterSpec(max_rejected=2, min_chosen=3)).reason == "min_chosen"
    assert len(bench.asked_about(GOOD)) == 3


async def slowly(said: object) -> object:
    for _ in range(50):
        await asyncio.sleep(0)
    return said


async def at_once(said: object) -> object:
    return said


@pytest.mark.parametrize("slow", [GOOD, BAD])
def test_what_need_not_be_known_is_not_asked_any_more(slow):
    decided, other = (BAD, GOOD) if slow == GOOD else (GOOD, BAD)
    settled = {GOOD: scores(1, 0), BAD: scores(5, 10)}[decided]
    bench = Bench(lambda request: slowly("I like it.") if judged(request) == slow else settled)
    filter = (
        FilterSpec(min_chosen=3, min_margin=0)
        if decided == GOOD
        else FilterSpec(max_rejected=2, min_margin=0)
    )
    made = bench.row(filter, num_judges=2)
    assert made.reason == ("min_chosen" if decided == GOOD else "max_rejected")
    assert len(bench.asked) == 2 and not bench.asked_about(other)


@given(st.data())
@settings(max_examples=150)
def test_what_comes_first_changes_nothing(data):
    replies = st.sampled_from([scores(5, 10), scores(3, 5), scores(1, 0), "I like it."])
    thresholds = st.sampled_from(["off", 2.0, 4.0])
    filter = FilterSpec(
        min_chosen=data.draw(thresholds), max_rejected=data.draw(thresholds), min_margin=data.draw(thresholds)
    )
    said = {GOOD: data.draw(replies), BAD: data.draw(replies)}
    policy = data.draw(st.sampled_from(["retry_then_drop", "keep_unscored"]))
    made = []
    for slow in (GOOD, BAD):
        late = {answer: slowly if answer == slow else at_once for answer in said}
        bench = Bench(lambda request, late=late: late[judged(request)](said[judged(request)]))
        made.append(bench.row(filter, on_judge_error=policy))
    assert made[0] == made[1]


def pair_model(prefers: Callable[[str, str], str]) -> Callable[[Request], object]:
    """Scores clearly, and compares by a function of the first and the second answer."""

    def say(request: Request) -> object:
        if request.step == "judge":
            return CLEAR(request)
        shown = re.search(
            r"Answer A:\n(.*?)\n\nAnswer B:\n(.*?)\n\n", request.messages[1]["content"], re.DOTALL
        )
        return prefers(shown[1], shown[2])

    return say


def names(answer: str) -> Callable[[str, str], str]:
    return lambda first, second: json.dumps({"better": "A" if first == answer else "B"})


@pytest.mark.parametrize(
    ("prefers", "verdict", "reason"),
    [
        (names(GOOD), "keep", ""),
        (names(BAD), "drop", "rejected_preferred"),
        (lambda first, second: '{"better": "A"}', "drop", "judges_disagree"),
        (lambda first, second: '{"better": "B"}', "drop", "judges_disagree"),
        (lambda first, second: "Both are fine.", "drop", "judge_error"),
    ],
)
def test_a_pair_stays_when_both_orders_name_the_chosen_answer(prefers, verdict, reason):
    bench = Bench(pair_model(prefers))
    made = bench.row(FilterSpec(min_margin=1, pairwise=True))
    assert (made.verdict, made.reason, made.margin) == (verdict, reason, 3.25)
    compared = [request for request in bench.asked if request.step == "judge_pair"]
    assert [judged(request) for request in compared[:2]] == [GOOD, BAD]
    assert compared[0].schema["properties"]["better"]["enum"] == ["A", "B"]


@pytest.mark.parametrize(
    ("judges", "verdict", "reason"),
    [
        ("ccr", "keep", ""),
        ("crr", "drop", "rejected_preferred"),
        ("c1r", "drop", "judges_disagree"),
        ("cc1", "keep", ""),
        ("c1", "drop", "judges_disagree"),
    ],
)
def test_a_pair_stays_when_most_judges_name_the_chosen_answer_both_times(judges, verdict, reason):
    """c and r name the chosen and the rejected answer, 1 whichever is shown first."""
    bench = Bench(CLEAR)

    def say(request: Request) -> object:
        if request.step == "judge":
            return CLEAR(request)
        liked = {"c": GOOD, "r": BAD, "1": judged(request)}[judges[request.sample]]
        return json.dumps({"better": "A" if judged(request) == liked else "B"})

    bench.say = say
    made = bench.row(FilterSpec(min_margin=1, pairwise=True), num_judges=len(judges))
    assert (made.verdict, made.reason) == (verdict, reason)
    assert sum(request.step == "judge_pair" for request in bench.asked) == 2 * len(judges)


def test_a_comparison_is_asked_for_again_with_the_error_shown():
    bench = Bench(pair_model(names(GOOD)))
    sensible = bench.say
    bench.say = lambda request: (
        "Both!" if request.step == "judge_pair" and len(request.messages) == 2 else sensible(request)
    )
    assert bench.row(FilterSpec(min_margin=1, pairwise=True)).verdict == "keep"
    assert "it does not say which answer is better" in bench.asked[-1].messages[3]["content"]


@pytest.mark.parametrize("mode", ["dpo", "mo_dpo"])
def test_a_comparison_that_cannot_be_had_falls_under_the_policy(mode):
    bench = Bench(pair_model(lambda first, second: "Both are fine."))
    made = bench.row(FilterSpec(min_margin=1, pairwise=True), mode, on_judge_error="keep_unscored")
    assert (made.verdict, made.reason) == ("unscored" if mode == "dpo" else "drop", "judge_error")
    with pytest.raises(StageError, match="it does not say which answer is better"):
        bench.row(FilterSpec(min_margin=1, pairwise=True), on_judge_error="fail")


def test_a_row_that_its_scores_drop_is_not_compared():
    bench = Bench(pair_model(names(GOOD)))
    assert bench.row(FilterSpec(min_margin=4, pairwise=True)).reason == "min_margin"
    assert {request.step for request in bench.asked} == {"judge"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ('{"better": "A"}', "A"),
        ('{"better": "Answer B"}', "B"),
        ('{"winner": "b"}', "B"),
        ("{'better': 'A',}", "A"),
        ('```json\n{"better": "B"}\n```', "B"),
        ('It is right. {"better": "B"}', "B"),
        ("A", "A"),
        ("**B**.", "B"),
        ("Answer A", "A"),
        ("Better: B, because it is right.", "B"),
        ("**Better**: **A**", "A"),
        ('{"better": "both"}', ""),
        ('{"better": "C"}', ""),
        ('{"better": null}', ""),
        ("Better: An answer that is right.", ""),
        ("A or B", ""),
        ("", ""),
    ],
)
def test_the_better_answer_is_found(text, letter):
    found = better_of(text)
    assert found == letter if letter else "which answer is better" in found.text


def test_a_row_that_is_given_up_takes_its_calls_with_it():
    async def given_up() -> None:
        row = asyncio.create_task(bench.judge("mo_dpo").judge_row(VARIABLES, GOOD, BAD, OPEN))
        await asyncio.sleep(0.01)
        row.cancel()
        with pytest.raises(asyncio.CancelledError):
            await row
        assert len(asyncio.all_tasks()) == 1

    bench = Bench(lambda request: asyncio.sleep(30))
    asyncio.run(given_up())
