"""Filling a dataset: exact counts, order that no timing can change, refill, and honest failure."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable

import pytest

from utils.config.generate import GenerateConfig
from utils.generate.calls import Request
from utils.generate.client import Reply
from utils.generate.dataset import Dataset
from utils.generate.errors import CallFailed
from utils.generate.rows import Row
from utils.generate.validate import normalised
from utils.pipeline.errors import StageError

Model = Callable[[Request], str]


def config(mode: str = "sft", rows: int = 20, num_subtopics: int = 4, **sections: dict) -> GenerateConfig:
    steps = {"subtopics": "t", "prompts": "t", "chosen": "t"} | ({"rejected": "t"} if mode == "dpo" else {})
    return GenerateConfig.model_validate(
        {
            "output": "x",
            "main_topic": "animals",
            "datasets": {
                "d": {"mode": mode, "rows": rows, "num_subtopics": num_subtopics, "templates": steps}
            },
            "providers": {"p": {"kind": "offline-teacher"}},
            "models": {"main": {"provider": "p", "model": "a"}, "rejected": {"provider": "p", "model": "b"}},
            "templates": {"t": {"user": "{{ count }}|{{ subtopic }}|{{ prompt }}|{{ exclude | join('/') }}"}},
        }
        | sections
    )


class Calls:
    """Stands for the calls of a run: `model` answers, after a random time."""

    def __init__(self, model: Model, seed: int = 0) -> None:
        self.model, self.rng, self.asked = model, random.Random(seed), Counter()

    async def ask(self, request: Request) -> Reply:
        self.asked[request.step] += 1
        await asyncio.sleep(self.rng.random() / 500)
        text = self.model(request)
        if text.startswith("!"):
            raise CallFailed(text[1:], "seen", 1)
        return Reply(text, "length" if text == "cut" else "stop", 1, 1)


def parts(request: Request) -> tuple[int, str, str, list[str]]:
    count, subtopic, prompt, excluded = request.messages[-1]["content"].split("|")
    return int(count), subtopic, prompt, excluded.split("/")


def plain_model(request: Request) -> str:
    """Offers as many entries as asked for, numbered from what is excluded."""
    count, subtopic, prompt, excluded = parts(request)
    if request.step in ("subtopics", "prompts"):
        first = len([entry for entry in excluded if entry]) + 100 * request.sample
        return json.dumps([f"{subtopic or 'topic'} number {first + n}" for n in range(count)])
    return f"{request.step} {prompt} {request.sample}"


def fill(model: Model, configured: GenerateConfig, seed: int = 0) -> tuple[list[Row], Dataset, Calls]:
    calls = Calls(model, seed)

    async def run() -> tuple[list[Row], Dataset, Calls]:
        dataset = Dataset(configured, "d", calls)
        return await dataset.fill(), dataset, calls

    return asyncio.run(run())


@pytest.mark.parametrize("mode", ["text", "sft", "dpo"])
@pytest.mark.parametrize(("rows", "num_subtopics"), [(1, 1), (20, 4), (23, 7), (300, 3)])
def test_counts_are_exact_and_even(mode, rows, num_subtopics):
    made, dataset, _ = fill(plain_model, config(mode, rows, num_subtopics))
    assert len(made) == rows and len(dataset.subtopics) == num_subtopics
    sizes = [len(subtopic.rows) for subtopic in dataset.subtopics]
    assert max(sizes) - min(sizes) <= 1
    assert len({row.prompt.text for row in made}) == rows


def test_the_order_of_arrival_changes_nothing():
    runs = [fill(moody_model, config("dpo", 40, 5), seed)[0] for seed in range(4)]
    assert all(run == runs[0] for run in runs)


def moody_model(request: Request) -> str:
    """Fails, repeats itself and cuts answers, always for the same calls."""
    _, _, prompt, _ = parts(request)
    luck = random.Random(f"{request.step}{request.unit}{request.sample}").random()
    if request.step == "chosen" and luck < 0.3:
        return "" if luck < 0.1 else "cut" if luck < 0.2 else "!http_400"
    if request.step == "rejected" and luck < 0.2:
        return f"chosen {prompt} 0"
    return plain_model(request)


def test_what_fails_is_replaced_and_told():
    made, dataset, _ = fill(moody_model, config("dpo", 40, 5))
    assert len(made) == 40 and all(row.chosen and row.rejected for row in made)
    assert all(normalised(row.chosen) != normalised(row.rejected) for row in made)
    known = {"empty", "truncated", "http_400", "equals_chosen"}
    assert dataset.failures and {failure.reason for failure in dataset.failures} <= known


def test_an_empty_answer_is_asked_again_with_the_next_sample():
    made, dataset, calls = fill(
        lambda r: "" if r.step == "chosen" and r.sample == 0 else plain_model(r), config(rows=8)
    )
    assert [row.chosen.split()[-1] for row in made] == ["1"] * 8
    assert calls.asked["chosen"] == 16 and not dataset.failures


def test_a_rejected_answer_equal_to_the_chosen_one_is_asked_again():
    def same_first(request: Request) -> str:
        _, _, prompt, _ = parts(request)
        if request.step == "chosen":
            return f"same {prompt}"
        return (
            f"Same {prompt}!" if (request.step, request.sample) == ("rejected", 0) else plain_model(request)
        )

    made, dataset, _ = fill(same_first, config("dpo", 6, 2))
    assert (
        len(made) == 6 and not dataset.failures and all(row.rejected.startswith("rejected") for row in made)
    )


def test_duplicate_prompts_and_rows_are_refilled():
    def repeating(request: Request) -> str:
        entries = plain_model(request)
        if request.step == "prompts":
            listed = json.loads(entries)
            return json.dumps([listed[0].upper() + "!", *listed, "What is COMMON to all?"])
        return "the same text" if request.step == "chosen" and request.unit.endswith("1") else entries

    made, dataset, _ = fill(repeating, config("text", 20, 4))
    assert len(made) == 20 and len({normalised(row.chosen) for row in made}) == 20
    assert dataset.reasons()["duplicate_row"] >= 1 and dataset.reasons()["duplicate_prompt"] >= 4


def test_a_subtopic_that_runs_dry_passes_its_rows_on():
    def dry(request: Request) -> str:
        if request.step == "prompts" and parts(request)[1].endswith("number 0"):
            return '["only one"]'
        return plain_model(request)

    made, dataset, _ = fill(dry, config(rows=20, num_subtopics=4))
    assert len(made) == 20 and len(dataset.subtopics[0].rows) == 1


def test_short_at_the_end_is_an_error_that_says_what_is_missing():
    def dry(request: Request) -> str:
        return json.dumps(["a", "b", "c"]) if request.step == "prompts" else plain_model(request)

    with pytest.raises(
        StageError, match=r'"d" stopped at 3 of 20 rows; not accepted: duplicate_prompt \d+'
    ) as caught:
        fill(dry, config(rows=20, num_subtopics=2))
    assert "rerun" in caught.value.fix


def test_no_answer_at_all_is_never_success():
    with pytest.raises(StageError, match="0 of 20 rows; not accepted: .*http_400"):
        fill(lambda r: "!http_400" if r.step == "chosen" else plain_model(r), config())
    with pytest.raises(StageError, match="0 of 4 subtopics; not accepted: list_http_400"):
        fill(lambda r: "!http_400", config())


def test_rows_start_before_all_prompts_are_there():
    """A slow list does not hold up the rows of subtopics before it."""
    order: list[str] = []

    class Slow(Calls):
        async def ask(self, request: Request) -> Reply:
            if request.step == "prompts" and parts(request)[1].endswith("number 1"):
                await asyncio.sleep(0.2)
            reply = await super().ask(request)
            order.append(f"{request.step} {request.unit}")
            return reply

    async def run() -> None:
        await Dataset(config(rows=4, num_subtopics=2), "d", Slow(plain_model)).fill()

    asyncio.run(run())
    first_row = min(i for i, call in enumerate(order) if call.startswith("chosen"))
    assert first_row < max(i for i, call in enumerate(order) if call.startswith("prompts"))


def test_exclusions_are_sent_in_later_rounds_and_bounded():
    seen: list[list[str]] = []

    def picky(request: Request) -> str:
        if request.step == "prompts":
            seen.append([entry for entry in parts(request)[3] if entry])
            return json.dumps([f"{request.unit} {n}" for n in range(3)])
        return plain_model(request)

    fill(picky, config(rows=30, num_subtopics=1, refill={"max_excluded": 5, "entries_per_call": 10}))
    assert seen[0] == [] and max(map(len, seen)) == 5
