"""Rejected answers one row at a time: what is asked, what counts as an answer, what is written."""

import asyncio
import json
from pathlib import Path

import pytest

from utils.config.providers import BudgetSpec
from utils.config.transform import SFTToDPOConfig
from utils.generate.budget import Budget
from utils.generate.calls import Request
from utils.generate.errors import CallFailed, Draining
from utils.generate.reply import Reply
from utils.generate.transform import (
    FAILURES,
    Failure,
    Pair,
    PairWriter,
    RejectedMaker,
    SourceRow,
    messages_for,
    pair_record,
    samples_tried,
)
from utils.generate.transform_run import _Run, in_order
from utils.pipeline.errors import StageError

DOCUMENT = {
    "output": "data/toy/pairs",
    "sources": [{"name": "mine", "kind": "local", "paths": ["raw/*.jsonl"]}],
    "providers": {"lab": {"base_url": "http://127.0.0.1:1/v1"}},
    "models": {"rejected": {"provider": "lab", "model": "small"}},
}
TURNS = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What does a cow say?"},
    {"role": "assistant", "content": "<think>easy</think>Moo."},
    {"role": "user", "content": "And a cat?"},
)
ROW = SourceRow(1, "mine, row 1", TURNS, "<think>\nhm\n</think>\n\nA cat says meow.")


def config(**more: object) -> SFTToDPOConfig:
    return SFTToDPOConfig.model_validate(DOCUMENT | more)


def reply(content: str, reasoning: str = "", finish_reason: str = "stop") -> Reply:
    return Reply(content, reasoning, finish_reason, 7, 3)


class Scripted:
    """Answers by sample; `journal` holds the samples that were answered before."""

    def __init__(self, *answers: Reply | Exception, journal: int = 0) -> None:
        self.answers, self.journal = answers, journal
        self.asked: list[Request] = []

    async def ask(self, request: Request) -> Reply:
        self.asked.append(request)
        answer = self.answers[request.sample]
        if isinstance(answer, Exception):
            raise answer
        self.journal = max(self.journal, request.sample + 1)
        return answer

    def knows(self, request: Request) -> bool:
        return request.sample < self.journal

    def make(
        self, row: SourceRow = ROW, tried: dict[int, int] | None = None, **more: object
    ) -> Pair | Failure:
        maker = RejectedMaker(config(**more), self.ask, self.knows, tried or {})
        return asyncio.run(maker.make(row))


def test_the_history_stays_in_the_prompt_and_thinking_out_of_it() -> None:
    asked = Scripted(reply("A cat says woof."))
    made = asked.make()
    assert made == Pair(ROW, "A cat says woof.")
    assert asked.asked[0].messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What does a cow say?"},
        {"role": "assistant", "content": "Moo."},
        {"role": "user", "content": "And a cat?"},
    ]
    assert asked.asked[0].step == "rejected" and asked.asked[0].dataset == "pairs"


def test_the_template_stands_around_the_last_user_turn() -> None:
    template = {"system": "Be wrong.", "user": "{{ prompt }} Not: {{ response }} ({{ index }}{{ is_retry }})"}
    messages = messages_for(ROW, config(template=template), sample=1)
    assert messages[0] == {"role": "system", "content": "Be wrong.\n\nBe kind."}
    assert messages[-1]["content"] == "And a cat? Not: A cat says meow. (1True)"
    assert len(messages) == 4


def test_a_system_text_of_the_template_is_put_first_where_there_is_none() -> None:
    row = SourceRow(1, "", TURNS[1:2], "Moo.")
    messages = messages_for(row, config(template={"system": "Be wrong.", "user": "{{ prompt }}"}), 0)
    assert [message["role"] for message in messages] == ["system", "user"]


def test_rows_are_message_lists_without_thinking() -> None:
    record = pair_record(Pair(ROW, "Woof.", "dogs"), config())
    assert record["prompt"][2] == {"role": "assistant", "content": "Moo."} and len(record["prompt"]) == 4
    assert record["chosen"] == [{"role": "assistant", "content": "A cat says meow."}]
    assert record["rejected"] == [{"role": "assistant", "content": "Woof."}]
    assert "think" not in json.dumps(record) and len(record["id"]) == 32


def test_thinking_is_kept_on_both_sides_when_asked_for() -> None:
    record = pair_record(Pair(ROW, "Woof.", "dogs"), config(reasoning="keep"))
    assert record["prompt"] == list(TURNS)
    assert record["chosen"][0]["content"] == ROW.chosen
    assert record["rejected"][0]["content"] == "<think>\ndogs\n</think>\n\nWoof."
    assert pair_record(Pair(ROW, "Woof."), config(reasoning="keep"))["rejected"][0]["content"] == "Woof."


def test_plain_rows_are_texts_and_only_of_single_questions() -> None:
    row = SourceRow(2, "", TURNS[1:2], "Moo.")
    record = pair_record(Pair(row, "Woof."), config(conversational=False, include_id=False))
    assert record == {"prompt": "What does a cow say?", "chosen": "Moo.", "rejected": "Woof."}
    made = Scripted().make(conversational=False)
    assert isinstance(made, Failure) and made.reason == "not_a_single_question"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (SourceRow(1, "x", problem="bad_order", detail="two user turns"), "bad_order"),
        (SourceRow(1, "x", TURNS[:1], "Moo."), "no_user_turn"),
        (SourceRow(1, "x", TURNS[1:2], "<think>never said"), "empty_chosen"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_failure_without_a_call(row: SourceRow, reason: str) -> None:
    asked = Scripted()
    made = asked.make(row)
    assert isinstance(made, Failure) and made.reason == reason and asked.asked == []


def test_an_answer_that_does_not_do_is_asked_for_again_with_the_next_sample() -> None:
    asked = Scripted(reply("A cat says MEOW!"), reply("Woof."))
    assert asked.make() == Pair(ROW, "Woof.")
    assert [request.sample for request in asked.asked] == [0, 1]


def test_a_refusal_may_be_the_rejected_answer() -> None:
    said = "I'm sorry, but I cannot help with that."
    assert Scripted(reply(said)).make() == Pair(ROW, said)


def test_after_the_last_attempt_the_row_fails_with_what_was_seen() -> None:
    asked = Scripted(reply(""), reply("A cat says meow."), reply("Woof."))
    made = asked.make()
    assert made == Failure(1, "mine, row 1", "And a cat?", "equals_chosen", "A cat says meow.", samples=2)


def test_a_call_that_is_given_up_is_a_failure_that_used_no_reply_up() -> None:
    made = Scripted(CallFailed("http_400", "bad request", 1)).make()
    assert isinstance(made, Failure) and (made.reason, made.samples) == ("http_400", 0)


def test_a_rerun_of_a_failed_row_gets_new_attempts_and_pays_for_no_old_one() -> None:
    asked = Scripted(reply(""), reply(""), reply(""), reply("Woof."), journal=2)
    assert asked.make(tried={1: 2}) == Pair(ROW, "Woof.")
    assert [request.sample for request in asked.asked] == [0, 1, 2, 3]
    assert Scripted(reply(""), reply(""), reply(""), reply(""), journal=2).make(tried={1: 2}).samples == 4


def test_a_killed_run_gets_no_attempt_more_than_one_that_was_not() -> None:
    """One of two replies was journalled when it died; nothing was noted as failed."""
    asked = Scripted(reply(""), reply(""), reply("Woof."), journal=1)
    made = asked.make()
    assert isinstance(made, Failure) and made.samples == 2


def test_a_good_reply_beyond_the_attempts_is_found_again() -> None:
    """A row that got through on a rerun stays, also when a later run starts without notes of its failure."""
    asked = Scripted(reply(""), reply(""), reply("Woof."), journal=3)
    assert asked.make() == Pair(ROW, "Woof.")


def test_failures_of_a_complete_pass_are_remembered_and_those_of_a_broken_one_are_not(tmp_path: Path) -> None:
    writer = PairWriter(config(), tmp_path)
    writer.add(Failure(7, "x", "u", "empty", "", samples=2))
    writer.close()
    assert samples_tried(tmp_path) == {}
    writer = PairWriter(config(), tmp_path)
    writer.add(Failure(7, "x", "u", "empty", "", samples=2))
    writer.add(Pair(ROW, "Woof."))
    writer.finish()
    assert samples_tried(tmp_path) == {7: 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [FAILURES, "pairs"]
    assert writer.rows == 1 and writer.reasons == {"empty": 1}


@pytest.mark.parametrize(("asked", "outcome"), [(True, None), (False, StageError)])
def test_a_stop_that_was_asked_for_is_one_also_when_the_budget_is_reached(
    asked: bool, outcome: type | None, tmp_path: Path
) -> None:
    budget = Budget(BudgetSpec(max_tokens=5), {"rejected": config().models["rejected"]})
    budget.charge("lab", "rejected", "rejected", reply("Moo."))
    run = _Run(config(), [], 9, tmp_path, None, budget, lambda *_: None, lambda: asked)
    writer = PairWriter(config(), tmp_path)
    writer.close()
    if outcome is None:
        assert run._stopped(writer) is None
    else:
        with pytest.raises(outcome, match=r"budget reached: 0 of 9 rows; max_tokens 5 reached"):
            run._stopped(writer)


def ordered(rows, make, window: int = 4, drain_seconds: float = 5.0) -> tuple[list, asyncio.Event]:
    taken: list = []

    async def run() -> asyncio.Event:
        closing = asyncio.Event()
        try:
            await in_order(rows, make, taken.append, window, closing, drain_seconds)
        except Exception as error:
            taken.append(type(error))
        return closing

    return taken, asyncio.run(run())


def test_rows_with_the_same_chat_have_ids_of_their_own_that_stay(tmp_path: Path) -> None:
    def ids() -> list[str]:
        writer = PairWriter(config(), tmp_path)
        for number in (1, 2, 3):
            writer.add(Pair(SourceRow(number, f"file {number}", TURNS, "Meow."), f"Moo {number}."))
        writer.add(Pair(SourceRow(4, "file 4", TURNS, "Purr."), "Moo."))
        writer.finish()
        return [json.loads(line)["id"] for line in (tmp_path / "pairs" / "dataset.jsonl").open()]

    first = ids()
    assert len(set(first)) == 4 and ids() == first
    assert first[0] == pair_record(Pair(SourceRow(9, "elsewhere", TURNS, "Meow."), "x"), config())["id"]


def test_results_come_in_the_order_of_the_rows_and_few_rows_are_read_ahead() -> None:
    read, most_ahead = [], []

    def rows():
        for number in range(30):
            read.append(number)
            yield number

    async def make(number: int) -> int:
        await asyncio.sleep(0.002 * (number % 5))
        most_ahead.append(len(read) - number)
        return number

    taken, _ = ordered(rows(), make)
    assert taken == list(range(30)) and max(most_ahead) <= 4


def test_after_a_stop_calls_in_flight_finish_first() -> None:
    finished = []

    async def make(number: int) -> int:
        if number == 0:
            raise Draining
        await asyncio.sleep(0.05)
        finished.append(number)
        return number

    taken, closing = ordered(range(3), make)
    assert taken == [Draining] and sorted(finished) == [1, 2] and closing.is_set()


def test_calls_that_do_not_finish_in_time_are_left() -> None:
    left = []

    async def make(number: int) -> int:
        if number == 0:
            raise Draining
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            left.append(number)
            raise
        return number

    taken, _ = ordered(range(3), make, drain_seconds=0.01)
    assert taken == [Draining] and sorted(left) == [1, 2]


def test_the_error_behind_a_stop_is_the_one_that_is_told() -> None:
    async def make(number: int) -> int:
        if number == 1:
            raise KeyError(number)
        raise Draining

    assert ordered(range(3), make)[0] == [KeyError]


def test_an_error_of_the_rows_themselves_is_told_after_calls_in_flight_finished() -> None:
    finished = []

    def rows():
        yield 0
        raise OSError("the file is gone")

    async def make(number: int) -> int:
        await asyncio.sleep(0.02)
        finished.append(number)
        return number

    assert ordered(rows(), make)[0] == [OSError] and finished == [0]
