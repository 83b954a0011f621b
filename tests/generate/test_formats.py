"""Every output schema, the same in every row, and readable by those who train on it."""

import json

import pytest

from tests.generate.helpers import Engine, config, plain_model
from utils.generate.formats import Shape, row_id
from utils.generate.reply import Reply
from utils.generate.write import ROWS_PER_GROUP, write_outputs

CHOSEN = Reply("Moo.", "cows moo", "stop", 1, 1)
REJECTED = Reply(" Bark. ", "", "stop", 1, 1)
ASKED = "What does a cow say?"
RECORD = {
    "prompt": ASKED,
    "label": "cows",
    "chosen_scores": {"correct": 5.0},
    "rejected_scores": {"correct": 1.0},
    "chosen_total": 5.0,
    "rejected_total": 1.0,
    "margin": 4.0,
}
USER, ASSISTANT = {"role": "user", "content": ASKED}, {"role": "assistant", "content": "Moo."}
RUBRIC = {"criteria": [{"name": "correct", "description": "Is it right?"}], "model": "main"}


def rows(mode: str, **dataset: object) -> list[dict]:
    dataset = {"include_id": False} | dataset
    shape = Shape(config(mode, dataset=dataset, **({"judge": RUBRIC} if mode == "mo_dpo" else {})), "d")
    return shape.rows(RECORD, CHOSEN, REJECTED if mode in ("dpo", "kto", "mo_dpo") else None)


def test_text_and_conversations():
    assert rows("text") == [{"text": "Moo."}]
    assert rows("sft") == [{"messages": [USER, ASSISTANT]}]
    turns = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "Moo."}]
    assert rows("sft", sft_format="sharegpt") == [{"conversations": turns}]
    assert rows("sft", sft_format="alpaca") == [{"instruction": ASKED, "input": "", "output": "Moo."}]


def test_pairs():
    pair = {"prompt": ASKED, "chosen": "Moo.", "rejected": "Bark."}
    assert rows("dpo") == [pair]
    scores = {name: value for name, value in RECORD.items() if name not in ("prompt", "label")}
    assert rows("mo_dpo") == [pair | scores]
    assert rows("kto") == [
        {"prompt": ASKED, "completion": "Moo.", "label": True},
        {"prompt": ASKED, "completion": "Bark.", "label": False},
    ]
    barked = {"role": "assistant", "content": "Bark."}
    assert rows("dpo", conversational=True) == [
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [barked]}
    ]
    assert rows("kto", conversational=True)[1] == {"prompt": [USER], "completion": [barked], "label": False}


def test_thinking_goes_where_it_is_wanted_and_nowhere_else():
    inline = "<think>\ncows moo\n</think>\n\nMoo."
    assert rows("text", reasoning="inline") == [{"text": inline}]
    assert rows("text", reasoning="separate") == [{"text": "Moo.", "reasoning": "cows moo"}]
    (pair,) = rows("dpo", reasoning="separate")
    assert (pair["chosen_reasoning"], pair["rejected_reasoning"]) == ("cows moo", "")
    assert [row["reasoning"] for row in rows("kto", reasoning="separate")] == ["cows moo", ""]
    (pair,) = rows("dpo", reasoning="inline")
    assert (pair["chosen"], pair["rejected"]) == (inline, "Bark."), "no empty block where nothing was thought"


def test_columns_on_request():
    (row,) = rows("text", include_id=True, include_topic_columns=True)
    assert row == {"text": "Moo.", "main_topic": "animals", "subtopic": "cows", "id": row_id("d", ASKED)}
    first, second = rows("kto", include_id=True)
    assert (first["id"], second["id"]) == (row_id("d", ASKED), row_id("d", ASKED, 1))
    assert row_id("d", ASKED) != row_id("e", ASKED) and len(row_id("d", ASKED)) == 32


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of datasets by mode and options, each written by the engine."""
    folder = tmp_path_factory.mktemp("written")
    variants = {
        "text": {},
        "sft": {},
        "alpaca": {"sft_format": "alpaca"},
        "sharegpt": {"sft_format": "sharegpt"},
        "sft_inline": {"reasoning": "inline"},
        "dpo": {},
        "dpo_talk": {"conversational": True, "reasoning": "separate"},
        "kto": {},
        "kto_talk": {"conversational": True},
        "mo_dpo": {"also_parquet": True, "include_topic_columns": True},
    }
    for name, options in variants.items():
        mode = {"alpaca": "sft", "sharegpt": "sft", "mo_dpo": "mo_dpo"}.get(name, name.split("_")[0])
        judged = {"judge": RUBRIC, "templates": judging()} if mode == "mo_dpo" else {}
        configured = config(mode, 12, 2, dataset=options, **judged)
        engine = Engine(folder / name)
        engine.fill(
            configured, lambda asked: '{"correct": 4}' if asked.step == "judge" else plain_model(asked)
        )
        state, journal = engine.read(configured)
        write_outputs(configured, {"d": state}, journal, engine.folder)
    return folder


def judging() -> dict:
    from tests.generate.helpers import STEPS

    fields = "{{ count }}|{{ subtopic }}|{{ prompt }}|{{ index }}|"
    return {step: {"user": f"{step}|{fields}"} for step in (*STEPS, "judge")}


def lines(folder, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / "d" / "dataset.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "name",
    ["text", "sft", "alpaca", "sharegpt", "sft_inline", "dpo", "dpo_talk", "kto", "kto_talk", "mo_dpo"],
)
def test_datasets_load_as_they_are_with_one_schema(written, name, tmp_path):
    import datasets

    path = str(written / name / "d" / "dataset.jsonl")
    loaded = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
    assert list(loaded) == lines(written, name)
    assert len({tuple(row) for row in lines(written, name)}) == 1


def test_parquet_holds_the_same_rows(written):
    from pyarrow import parquet

    table = parquet.read_table(written / "mo_dpo" / "d" / "dataset.parquet")
    assert table.to_pylist() == lines(written, "mo_dpo")


def test_parquet_is_written_in_groups_of_one_schema(tmp_path):
    from pyarrow import parquet

    configured = config("text", ROWS_PER_GROUP + 10, 2, dataset={"also_parquet": True})
    engine = Engine(tmp_path)
    engine.fill(configured, seconds=0)
    state, journal = engine.read(configured)
    write_outputs(configured, {"d": state}, journal, tmp_path)
    file = parquet.ParquetFile(tmp_path / "d" / "dataset.parquet")
    assert file.num_row_groups == 2 and file.metadata.num_rows == ROWS_PER_GROUP + 10


@pytest.fixture(scope="module")
def tiny():
    """A llama of a few thousand weights and a tokenizer of words, neither of which comes from anywhere."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "<eos>": 2, "topic": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)), tokenizer


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("text", "SFT"),
        ("sft", "SFT"),
        ("dpo", "DPO"),
        ("dpo_talk", "DPO"),
        ("mo_dpo", "DPO"),
        ("kto", "KTO"),
        ("kto_talk", "KTO"),
        ("sft_inline", "SFT"),
        ("sharegpt", "SFT"),
    ],
)
def test_trl_trains_on_the_rows_unchanged(written, tiny, name, trainer, tmp_path):
    import copy

    import datasets
    import trl

    model, tokenizer = tiny
    path = str(written / name / "d" / "dataset.jsonl")
    rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
    arguments = getattr(trl, f"{trainer}Config")(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    reference = {} if trainer == "SFT" else {"ref_model": copy.deepcopy(model)}
    made = getattr(trl, f"{trainer}Trainer")(
        copy.deepcopy(model), args=arguments, train_dataset=rows, processing_class=tokenizer, **reference
    )
    assert made.train().training_loss > 0
