"""What --dry-run says: counts that follow from the config, and sums of what is assumed."""

import pytest

from tests.generate.helpers import Session, small_document
from utils.config.generate import GenerateConfig
from utils.generate.estimate import ANSWER_TOKENS, ENTRY_TOKENS, Estimate, Made, Part, estimate
from utils.generate.given import Given
from utils.generate.recorded import still_standing
from utils.pipeline.workspace import STAGES, Workspace


def config(datasets: dict | None = None, **more: object) -> GenerateConfig:
    lab = {"base_url": "http://127.0.0.1:1/v1", "max_in_flight": 10}
    prices = {"prompt_price": 1.0, "completion_price": 10.0}
    names = ("main", "rejected", "judge")
    document = {
        "output": "data/x",
        "main_topic": "cows",
        "datasets": datasets or {"chat": {"mode": "sft", "rows": 1000, "num_subtopics": 10}},
        "providers": {"lab": lab},
        "models": {name: {"provider": "lab", "model": name} | prices for name in names},
    }
    return GenerateConfig.model_validate(document | more)


def calls(found: Estimate) -> dict[str, int]:
    return {part.step: part.calls for part in found.parts}


def part(found: Estimate, step: str) -> Part:
    return next(part for part in found.parts if part.step == step)


def test_calls_of_each_step():
    """10 subtopics with 15 % on top are one list; 100 prompts of each are 115, three lists."""
    assert calls(estimate(config())) == {"subtopics": 1, "prompts": 30, "chosen": 1000}


def test_lists_ask_for_as_many_entries_as_the_config_says():
    found = estimate(config(refill={"entries_per_call": 10, "over_generation_buffer": 0}))
    assert calls(found) == {"subtopics": 1, "prompts": 100, "chosen": 1000}
    assert part(found, "prompts").completion_tokens == 10 * ENTRY_TOKENS


@pytest.mark.parametrize(
    "spec, judge, expected",
    [
        ({"mode": "dpo"}, {}, {"rejected": 100}),
        ({"mode": "dpo", "judge": {"min_margin": 1}}, {}, {"rejected": 100, "judge": 200}),
        ({"mode": "dpo", "judge": {"min_chosen": 3}}, {}, {"rejected": 100, "judge": 100}),
        ({"mode": "dpo", "judge": {"min_chosen": 3, "max_rejected": 2}}, {}, {"rejected": 100, "judge": 200}),
        ({"mode": "mo_dpo"}, {"num_judges": 3}, {"rejected": 100, "judge": 600}),
        (
            {"mode": "mo_dpo", "judge": {"pairwise": True}},
            {},
            {"rejected": 100, "judge": 200, "judge_pair": 200},
        ),
        (
            {"mode": "mo_dpo", "judge": {"pairwise": True}},
            {"num_judges": 3},
            {"rejected": 100, "judge": 600, "judge_pair": 600},
        ),
        ({"mode": "sft", "judge": {"min_chosen": 3}}, {}, {"judge": 100}),
    ],
)
def test_calls_of_pairs_and_judges(spec, judge, expected):
    datasets = {"d": {"rows": 100, "num_subtopics": 1} | spec}
    rubric = {"criteria": [{"name": "right", "description": "Is it right?"}]} | judge
    found = calls(estimate(config(datasets, **({"judge": rubric} if "judge" in expected else {}))))
    assert {
        step: n for step, n in found.items() if step not in ("subtopics", "prompts", "chosen")
    } == expected


def test_given_topics_and_prompts_are_not_asked_for():
    found = estimate(config({"c": {"mode": "sft", "rows": 1000}}, topics_file="topics.txt"), num_topics=20)
    assert calls(found) == {"prompts": 20 * 2, "chosen": 1000}
    assert calls(estimate(config({"c": {"mode": "sft", "rows": 7}}, prompts_file="p.txt"))) == {"chosen": 7}


def test_rows_that_a_topics_file_decides():
    datasets = {"c": {"mode": "sft", "num_prompts_per_subtopic": 5}}
    assert calls(estimate(config(datasets, topics_file="t.txt"), num_topics=12))["chosen"] == 60


def test_cost_follows_from_prices():
    found = estimate(config({"c": {"mode": "sft", "rows": 100}}, prompts_file="p.txt"))
    (chosen,) = found.parts
    assert chosen.completion_tokens == ANSWER_TOKENS
    assert found.cost == pytest.approx(100 * (chosen.prompt_tokens + 10 * ANSWER_TOKENS) / 1e6)
    assert found.highest_cost == pytest.approx(100 * (chosen.prompt_tokens + 10 * 1024) / 1e6)
    assert found.tokens == 100 * (chosen.prompt_tokens + ANSWER_TOKENS)


@pytest.mark.parametrize(
    "provider, model, minutes",
    [
        ({}, {}, 1000 * 5.5 / 10 / 60),
        ({"rate_limit_per_minute": 50}, {}, 20),
        ({}, {"rate_limit_per_minute": 40}, 25),
        ({}, {"max_in_flight": 2}, 1000 * 5.5 / 2 / 60),
        ({"tokens_per_minute": 10_000}, {}, 1000 * 274 / 10_000),
    ],
)
def test_time_follows_from_the_tightest_limit(provider, model, minutes):
    """1,000 answers of 250 tokens at 50 tokens/s are 5.5 s each."""
    document = config().model_dump()
    lab = document["providers"]["lab"] | provider
    models = {"main": document["models"]["main"] | model}
    found = estimate(
        config(
            {"c": {"mode": "sft", "rows": 1000}}, prompts_file="p.txt", providers={"lab": lab}, models=models
        )
    )
    assert found.minutes == pytest.approx(minutes + 5.5 / 60, rel=0.02)


def test_what_is_there_is_not_estimated_again():
    found = estimate(config(), made={"chat": Made(rows=400, subtopics=10, prompts=100)})
    assert calls(found) == {"prompts": 20, "chosen": 600}
    assert "not in it are rows that are there: chat 400" in found.text()
    assert calls(estimate(config(), made={"chat": Made(rows=1000, subtopics=10)})) == {}
    assert calls(estimate(config(), made={"other": Made(rows=5)})) == calls(estimate(config()))


def test_a_dataset_that_is_partly_made_costs_what_is_left(tmp_path):
    workspace = Workspace(tmp_path, STAGES)
    document = small_document(chat=20) | {"output": "data/toy/generated"}
    Session(workspace.path("data/toy/generated.partial"), workspace=workspace).run(document)

    def made(document: dict) -> dict[str, Made]:
        wanted = GenerateConfig.model_validate(document)
        standing = still_standing(wanted, Given.read(wanted, workspace), workspace)
        return {name: Made.of(state) for name, state in standing.items()}

    document["datasets"]["chat"]["rows"] = 60
    assert made(document)["chat"].rows == 20 and made(document)["chat"].subtopics == 8
    found = estimate(GenerateConfig.model_validate(document), made=made(document))
    assert calls(found)["chosen"] == 40 and "subtopics" not in calls(found)
    assert made(document | {"seed": 9}) == {} == made(document | {"output": "data/toy/other"})


def test_an_offline_teacher_is_fast():
    models = {name: {"provider": "t", "model": "teacher"} for name in ("main", "rejected", "judge")}
    found = estimate(config(providers={"t": {"kind": "offline-teacher"}}, models=models))
    assert found.minutes * 60 == pytest.approx(1.031, rel=0.05)


def test_the_text_says_what_was_counted_and_assumed():
    text = estimate(config(budget={"max_cost": 1, "max_tokens": 100_000, "max_minutes": 1})).text()
    lines = text.splitlines()
    assert lines[0].split() == ["dataset", "step", "model", "calls", "prompt", "tok", "answer", "tok", "cost"]
    assert lines[3].split()[:4] == ["chat", "chosen", "main", "1,000"] and lines[3].split()[5] == "250,000"
    assert len({len(line) for line in lines[:4]}) == 1, "columns are aligned"
    assert (
        "about 1,031 calls" in text
        and "minutes" in text
        and "if every answer takes max_output_tokens" in text
    )
    for name in ("max_cost = 1", "max_tokens = 100,000", "max_minutes = 1"):
        assert f"budget.{name}" in text
    assert "assumed: 250 tokens an answer, 12 an entry of a list, 0.5 s + 1 s per 50 tokens a call" in text
    assert "budget." not in estimate(config()).text()
