"""
Filling a dataset: exact counts, an order that neither timing nor a kill changes, refill, honest failure.
"""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.generate.helpers import Asked, Engine, config, plain_model
from utils.config.generate import GenerateConfig
from utils.generate.journal import Scan
from utils.generate.state import deal
from utils.generate.validate import normalised
from utils.pipeline.errors import ConfigError, StageError


@pytest.fixture
def engine(tmp_path):
    return Engine(tmp_path)


def moody_model(asked: Asked) -> str:
    """Fails, repeats itself and cuts answers, always for the same calls."""
    luck = random.Random(str(asked)).random()
    if asked.step == "prompts":
        offered = json.loads(plain_model(asked))
        if luck < 0.2:
            return "no list at all" if luck < 0.1 else "!http_400"
        if luck < 0.5:
            return json.dumps([*offered[: len(offered) // 2], "common prompt"])
        return json.dumps([offered[0].upper() + "!", *offered, "common prompt"])
    if asked.step == "chosen" and luck < 0.3:
        return "" if luck < 0.1 else "cut" if luck < 0.2 else "!http_400"
    if asked.step == "chosen" and luck < 0.4:
        return "the same answer every time"
    if asked.step == "rejected" and luck < 0.2:
        return f"chosen {asked.prompt} 0"
    return plain_model(asked)


def moody_config() -> GenerateConfig:
    return config("dpo", 40, 5, refill={"entries_per_call": 4})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    engine = Engine(tmp_path_factory.mktemp("whole"))
    engine.fill(moody_config(), moody_model)
    return engine


# counts


@pytest.mark.parametrize("mode", ["text", "sft", "dpo", "kto"])
@pytest.mark.parametrize(("rows", "num_subtopics"), [(1, 1), (20, 4), (23, 7), (130, 3)])
def test_counts_are_exact_and_even(engine, mode, rows, num_subtopics):
    configured = config(mode, rows, num_subtopics)
    engine.fill(configured)
    state, _ = engine.read(configured)
    sizes = [len(subtopic.rows) for subtopic in state.subtopics]
    assert (sum(sizes), len(sizes)) == (rows, num_subtopics) and max(sizes) - min(sizes) <= 1
    made = engine.rows(configured)
    assert len(made) == rows * (2 if mode == "kto" else 1) and len({row["id"] for row in made}) == len(made)


def test_counts_follow_from_prompts_for_each_subtopic(engine):
    configured = config(rows=0, num_subtopics=3, dataset={"num_prompts_per_subtopic": 4})
    engine.fill(configured)
    state, _ = engine.read(configured)
    assert [len(subtopic.rows) for subtopic in state.subtopics] == [4, 4, 4]


def test_a_call_is_made_once_and_none_in_vain(engine):
    """The buffer of prompts costs nothing but its share of a list."""
    client = engine.fill(config("dpo", 200, 5))
    assert set(client.bodies.values()) == {1}
    assert (client.asked["chosen"], client.asked["rejected"]) == (200, 200)


def test_few_tasks_wait_however_many_rows_are_wanted(engine):
    """Slots of the test engine: 64."""
    client = engine.fill(config(rows=600, num_subtopics=2), seconds=0.01)
    assert 32 <= client.most_in_flight <= 64


# order


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_order_of_arrival_changes_nothing(engine, uninterrupted, seed):
    engine.fill(moody_config(), moody_model, seed, seconds=0.004)
    assert engine.rows(moody_config()) == uninterrupted.rows(moody_config())
    assert engine.failures(moody_config()) == uninterrupted.failures(moody_config())


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_any_line_it_ends_with_the_same_rows_and_pays_nothing_twice(engine, uninterrupted, seed):
    rng, paid = random.Random(seed), 0
    lines = len(list(Scan(uninterrupted.folder / "log" / "journal.jsonl")))
    for _ in range(3):
        engine.fill(moody_config(), moody_model, rng.random(), stop_after_lines=rng.randrange(1, lines // 2))
    engine.fill(moody_config(), moody_model, rng.random())
    assert engine.rows(moody_config()) == uninterrupted.rows(moody_config())
    assert engine.failures(moody_config()) == uninterrupted.failures(moody_config())
    entries = list(Scan(engine.folder / "log" / "journal.jsonl"))
    identities = [entry.fields[0] for entry in entries if entry.kind == "reply"]
    assert len(set(identities)) == len(identities) > paid


def test_a_finished_dataset_asks_nothing_again(engine):
    engine.fill(moody_config(), moody_model)
    rows = engine.rows(moody_config())
    assert not engine.fill(moody_config(), moody_model).asked and engine.rows(moody_config()) == rows


def test_decisions_that_are_lost_are_made_again_from_replies(engine, uninterrupted):
    path = engine.folder / "log" / "journal.jsonl"
    path.parent.mkdir()
    whole = (uninterrupted.folder / "log" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in whole if b" reply " in line[:30]))
    client = engine.fill(moody_config(), moody_model)
    told = "calls that failed are made again, and a prompt that two lists offer may start a row in vain"
    assert client.asked["subtopics"] == 0 and client.asked["rejected"] <= 5, told
    assert engine.rows(moody_config()) == uninterrupted.rows(moody_config())


@pytest.mark.parametrize("kind", ["reply", "row", "prompts", "deal"])
def test_a_line_that_is_damaged_is_made_again_and_nothing_else_is_paid_for(engine, kind):
    configured = config("dpo", 20, 2)
    engine.fill(configured)
    rows = engine.rows(configured)
    path = engine.folder / "log" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    chosen = [number for number, line in enumerate(lines) if f" {kind} ".encode() in line[:30]]
    place = next(n for n in chosen if kind != "reply" or b" main chosen " in lines[n])
    lines[place] = lines[place].replace(b'"', b"'")
    path.write_bytes(b"".join(lines))
    client = engine.fill(configured)
    assert dict(client.asked) == ({"chosen": 1} if kind == "reply" else {})
    assert engine.rows(configured) == rows
    assert not engine.fill(configured).asked and engine.rows(configured) == rows


def test_levels_overlap(engine):
    """A slow list holds up neither the rows of subtopics before it nor those after it."""
    order: list[str] = []

    def noting(asked: Asked) -> str:
        order.append(f"{asked.step} {asked.subtopic or asked.prompt}")
        return plain_model(asked)

    configured = config(rows=60, num_subtopics=12, refill={"entries_per_call": 4})
    engine.fill(configured, noting, seconds=0.05)
    first_row = next(i for i, call in enumerate(order) if call.startswith("chosen"))
    last_list = max(i for i, call in enumerate(order) if call.startswith("prompts"))
    last_topic = max(i for i, call in enumerate(order) if call.startswith("subtopics"))
    first_list = next(i for i, call in enumerate(order) if call.startswith("prompts"))
    assert first_row < last_list and first_list < last_topic + len(order)


# refill


def test_what_fails_is_replaced_and_told(uninterrupted):
    made, failed = uninterrupted.rows(moody_config()), uninterrupted.failures(moody_config())
    assert len(made) == 40 and all(row["chosen"] and row["rejected"] for row in made)
    assert all(normalised(row["chosen"]) != normalised(row["rejected"]) for row in made)
    known = {"empty", "truncated", "http_400", "equals_chosen", "duplicate_row", "no_list"}
    assert failed and {failure["reason"] for failure in failed} <= known
    assert set(failed[0]) == {"dataset", "unit", "reason", "excerpt", "attempts"}


def test_an_empty_answer_is_asked_again_with_the_next_sample(engine):
    configured = config(rows=8)
    client = engine.fill(configured, lambda a: "" if a.step == "chosen" and a.index == 0 else plain_model(a))
    assert all(row["messages"][1]["content"].endswith(" 1") for row in engine.rows(configured))
    assert client.asked["chosen"] == 16 and not engine.failures(configured)


def test_a_rejected_answer_equal_to_the_chosen_one_is_asked_again(engine):
    def same_first(asked: Asked) -> str:
        if asked.step == "chosen":
            return f"same {asked.prompt}"
        return f"Same {asked.prompt}!" if (asked.step, asked.index) == ("rejected", 0) else plain_model(asked)

    configured = config("dpo", 6, 2)
    engine.fill(configured, same_first)
    made = engine.rows(configured)
    assert len(made) == 6 and not engine.failures(configured)
    assert all(row["rejected"].startswith("rejected") for row in made)


def test_a_list_that_cannot_be_read_is_asked_for_once_more_with_what_is_wrong(engine):
    configured = config(rows=8, num_subtopics=2)
    client = engine.fill(
        configured, lambda a: plain_model(a) if a.is_again or a.step == "chosen" else "I would rather not."
    )
    assert (client.asked["subtopics"], client.asked["prompts"]) == (2, 4) and len(
        engine.rows(configured)
    ) == 8


def test_duplicate_prompts_and_rows_are_refilled(engine):
    def repeating(asked: Asked) -> str:
        entries = plain_model(asked)
        if asked.step == "prompts":
            listed = json.loads(entries)
            return json.dumps([listed[0].upper() + "!", *listed, "What is COMMON to all?"])
        return "the same text" if asked.step == "chosen" and asked.prompt.endswith("1") else entries

    configured = config("text", 20, 4)
    engine.fill(configured, repeating)
    made = engine.rows(configured)
    state, _ = engine.read(configured)
    assert len(made) == 20 and len({normalised(row["text"]) for row in made}) == 20
    assert state.reasons["duplicate_row"] >= 1 and state.reasons["duplicate_prompt"] >= 4


def test_near_duplicates_are_refilled_and_what_is_excluded_never_comes(engine, tmp_path):
    (tmp_path / "excluded.txt").write_text("topic 0.1\nTOPIC 0.0 0.2!\n")
    words = " ".join(f"word{number}" for number in range(40))

    def near(asked: Asked) -> str:
        same = asked.step == "chosen" and asked.prompt.endswith(("1", "3"))
        return f"{words} and {asked.prompt}" if same else plain_model(asked)

    limits = {"subtopics": 1, "prompts": 1, "rows": 0.7, "exclude_file": str(tmp_path / "excluded.txt")}
    configured = config("text", 20, 4, duplicates=limits)
    engine.fill(configured, near)
    made, (state, _) = engine.rows(configured), engine.read(configured)
    assert len(made) == 20 and sum(row["text"].startswith("word0") for row in made) == 1
    assert state.reasons["duplicate_row"] >= 4 and state.reasons["duplicate_subtopic"] == 1
    assert "topic 0.1" not in [subtopic.name for subtopic in state.subtopics]
    assert state.reasons["duplicate_prompt"] == 1


def test_a_subtopic_that_runs_dry_passes_its_rows_on(engine):
    def dry(asked: Asked) -> str:
        if asked.step == "prompts" and asked.subtopic.endswith(".0"):
            return '["only one"]'
        return plain_model(asked)

    configured = config(rows=20, num_subtopics=4)
    engine.fill(configured, dry)
    state, _ = engine.read(configured)
    assert [len(subtopic.rows) for subtopic in state.subtopics] == [1, 7, 6, 6]


def test_prompts_that_are_too_long_are_counted_and_left_out(engine):
    def wordy(asked: Asked) -> str:
        return (
            json.dumps(["x" * 5000, *json.loads(plain_model(asked))])
            if asked.step == "prompts"
            else plain_model(asked)
        )

    configured = config(rows=8, num_subtopics=2)
    engine.fill(configured, wordy)
    assert engine.read(configured)[0].reasons["prompt_too_long"] == 2 and len(engine.rows(configured)) == 8


def test_parallel_chunks_and_later_turns_leave_out_others_of_what_is_known(engine):
    seen: list[tuple[str, ...]] = []

    def picky(asked: Asked) -> str:
        if asked.step == "prompts":
            seen.append(asked.excluded)
            return json.dumps([f"{asked.index} {n}" for n in range(3)])
        return plain_model(asked)

    engine.fill(config(rows=30, num_subtopics=1, refill={"max_excluded": 5, "entries_per_call": 10}), picky)
    assert seen[0] == () and max(map(len, seen)) == 5
    later = [left_out for left_out in seen if left_out]
    assert len(set(later)) == len(later) >= 3


# short


def test_short_at_the_end_is_an_error_that_says_what_is_missing(engine):
    def dry(asked: Asked) -> str:
        return json.dumps(["a", "b", "c"]) if asked.step == "prompts" else plain_model(asked)

    told = r'"d" stopped at 3 of 20 rows; not accepted: duplicate_prompt \d+'
    with pytest.raises(StageError, match=told) as caught:
        engine.fill(config(rows=20, num_subtopics=2), dry)
    assert "rerun" in caught.value.fix and len(engine.rows(config(rows=20, num_subtopics=2))) == 3


def test_a_rerun_after_short_asks_new_questions_and_tops_up(engine):
    configured = config(rows=20, num_subtopics=2)
    asked_first = []

    def dry(asked: Asked) -> str:
        if asked.step == "prompts":
            asked_first.append(asked)
            return json.dumps(["a", "b", "c"])
        return plain_model(asked)

    with pytest.raises(StageError):
        engine.fill(configured, dry)
    again = engine.fill(configured, dry_again := lambda a: plain_model(a))
    assert dry_again and len(engine.rows(configured)) == 20 and again.asked["chosen"] == 17
    with pytest.raises(StageError):
        engine.fill(config(rows=40, num_subtopics=2), dry)
    assert len({(asked.subtopic, asked.index) for asked in asked_first}) == len(asked_first)


def test_too_few_subtopics_are_an_error_when_their_number_was_asked_for(engine):
    def narrow(asked: Asked) -> str:
        return '["one", "two"]' if asked.step == "subtopics" else plain_model(asked)

    with pytest.raises(StageError, match='"d" stopped at 2 of 4 subtopics and 10 of 20 rows'):
        engine.fill(config(rows=20, num_subtopics=4), narrow)
    engine.fill(config(rows=20, num_subtopics=4))
    assert len(engine.rows(config(rows=20, num_subtopics=4))) == 20


def test_too_few_subtopics_share_the_rows_when_their_number_only_followed(engine):
    def narrow(asked: Asked) -> str:
        return '["one", "two"]' if asked.step == "subtopics" else plain_model(asked)

    configured = config(rows=100, num_subtopics=0)
    engine.fill(configured, narrow)
    state, _ = engine.read(configured)
    assert [len(subtopic.rows) for subtopic in state.subtopics] == [50, 50]


def test_no_answer_at_all_is_never_success(engine):
    with pytest.raises(StageError, match="0 of 20 rows; not accepted: .*http_400"):
        engine.fill(config(), lambda a: "!http_400" if a.step == "chosen" else plain_model(a))
    with pytest.raises(StageError, match="0 of 4 subtopics and 0 of 20 rows; not accepted: list_http_400 6"):
        Engine(engine.folder / "other").fill(config(), lambda a: "!http_400")


# more


@pytest.mark.parametrize(("rows", "num_subtopics"), [(21, 4), (40, 4), (40, 9), (200, 30)])
def test_more_rows_later_continue(engine, rows, num_subtopics):
    less, more = config(rows=20, num_subtopics=4), config(rows=rows, num_subtopics=num_subtopics)
    engine.fill(less)
    before = engine.rows(less)
    client = engine.fill(more)
    after = engine.rows(more)
    assert len(after) == rows and client.asked["chosen"] == rows - 20
    assert {row["id"] for row in before} <= {row["id"] for row in after}
    state, _ = engine.read(more)
    assert len(state.subtopics) == num_subtopics


def test_more_rows_while_the_first_are_not_yet_there(engine):
    engine.fill(config(rows=40, num_subtopics=4), stop_after_lines=60)
    engine.fill(config(rows=60, num_subtopics=6))
    assert len(engine.rows(config(rows=60, num_subtopics=6))) == 60


def test_another_temperature_keeps_replies_and_drops_decisions(engine):
    engine.fill(config(rows=20))
    models = {"main": {"provider": "p", "model": "main", "temperature": 0.5}}
    models |= {"rejected": {"provider": "p", "model": "rejected"}}
    client = engine.fill(config(rows=20, models=models))
    assert client.asked["chosen"] == 20 and "subtopics" not in client.asked, (
        "lists have a temperature of their own"
    )


# given files


def test_topics_of_a_file_replace_the_first_level(engine, tmp_path):
    (tmp_path / "topics.txt").write_text("cows\n\ndogs\nCOWS!\ncats\n")
    configured = config(rows=7, num_subtopics=0, main_topic="", topics_file=str(tmp_path / "topics.txt"))
    client = engine.fill(configured)
    state, _ = engine.read(configured)
    assert [(s.name, len(s.rows)) for s in state.subtopics] == [("cows", 3), ("dogs", 2), ("cats", 2)]
    assert "subtopics" not in client.asked


def test_prompts_of_a_file_replace_both_levels_in_their_order(engine, tmp_path):
    lines = [{"prompt": f"prompt {n}", "subtopic": f"s{n % 3}"} for n in range(450)]
    lines.insert(5, {"prompt": "PROMPT 2!"})
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def picky(asked: Asked) -> str:
        return "" if asked.prompt.endswith("7") else f"answer to {asked.prompt} of {asked.subtopic}"

    configured = config(
        rows=300,
        num_subtopics=0,
        prompts_file=str(tmp_path / "prompts.jsonl"),
        dataset={"include_topic_columns": True, "templates": {}},
        templates={"answer": {"user": "chosen|1|{{ subtopic }}|{{ prompt }}|{{ index }}|"}},
    )
    client = engine.fill(configured, picky)
    made = engine.rows(configured)
    numbers = [int(row["messages"][0]["content"].split()[1]) for row in made]
    wanted = [n for n in range(450) if n % 10 != 7][:300]
    assert numbers == wanted and set(client.asked) == {"chosen"}
    assert all(row["subtopic"] == f"s{n % 3}" for row, n in zip(made, numbers, strict=True))
    state, _ = engine.read(configured)
    assert state.reasons["duplicate_prompt"] == 1 and client.asked["chosen"] < 380


def test_a_prompts_file_that_is_too_short_is_told(engine, tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\nTwo!\none\n")
    template = {"answer": {"user": "chosen|1|{{ subtopic }}|{{ prompt }}|{{ index }}|"}}
    configured = config(
        rows=5,
        num_subtopics=0,
        prompts_file=str(tmp_path / "prompts.txt"),
        dataset={"templates": {}},
        templates=template,
    )
    with pytest.raises(StageError, match='"d" stopped at 3 of 5 rows') as caught:
        engine.fill(configured)
    assert "add prompts to the file" in caught.value.fix
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    with pytest.raises(ConfigError, match=r"rows: 5 are wanted, and .*prompts.txt has 3 prompts"):
        engine.fill(configured)


def test_given_prompts_that_failed_are_tried_again_by_a_rerun(engine, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {n}\n" for n in range(10)))
    template = {"answer": {"user": "chosen|1|{{ subtopic }}|{{ prompt }}|{{ index }}|"}}
    path = str(tmp_path / "prompts.txt")
    configured = config(
        rows=10, num_subtopics=0, prompts_file=path, dataset={"templates": {}}, templates=template
    )

    def failing(asked: Asked) -> str:
        return "" if asked.prompt.endswith(("3", "7")) and asked.index < 3 else plain_model(asked)

    with pytest.raises(StageError, match="8 of 10 rows; not accepted: empty 2"):
        engine.fill(configured, failing)
    client = engine.fill(configured, failing)
    answers = [row["messages"][1]["content"] for row in engine.rows(configured)]
    assert answers[8:] == ["chosen prompt 3 3", "chosen prompt 7 3"] and client.asked["chosen"] == 4


# dealing


@given(
    have=st.lists(st.integers(0, 20), min_size=1, max_size=12),
    able=st.lists(st.booleans(), min_size=12, max_size=12),
    more=st.integers(0, 60),
)
def test_quotas_add_up_and_are_as_even_as_can_be(have, able, more):
    able = able[: len(have)]
    quotas = deal(have, able, sum(have) + more)
    assert sum(quotas) == sum(have) + (more if any(able) else 0)
    assert all(quota == had for quota, had, can in zip(quotas, have, able, strict=True) if not can)
    raised = [quota for quota, had in zip(quotas, have, strict=True) if quota > had]
    lowest = min((quota for quota, can in zip(quotas, able, strict=True) if can), default=0)
    assert all(had <= quota for quota, had in zip(quotas, have, strict=True))
    assert all(quota <= lowest + 1 for quota in raised)
