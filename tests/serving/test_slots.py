"""Answers side by side are the answers alone, in both kinds of model, whoever joins or leaves meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests.export.tiny_model import CONTEXT, chat_ids, conversations, stories, tiny_model
from utils.export.gguf_write import Description, write_gguf
from utils.models.load import load_model
from utils.pipeline.errors import ConfigError
from utils.serving.engine import GGUFEngine
from utils.serving.gguf_slots import GGUFSlots
from utils.serving.slots import CheckpointSlots, Slots

ENOUGH = 24


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return load_model(tiny_model())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUFEngine]:
    path = tmp_path_factory.mktemp("gguf") / "model-f16.gguf"
    write_gguf(tiny_model(), path, "f16", Description("tiny"))
    engine = GGUFEngine(path, threads=1)
    yield engine
    engine.close()


@pytest.fixture(params=["checkpoint", "gguf"])
def slots(request: pytest.FixtureRequest, model: LlamaForCausalLM, engine: GGUFEngine) -> Iterator[Slots]:
    made = CheckpointSlots(model, 3) if request.param == "checkpoint" else GGUFSlots(engine, 3, threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    from sentencepiece import SentencePieceProcessor

    pieces = SentencePieceProcessor(model_file=str(tiny_model() / "tokenizer.model"))
    chats = [chat_ids(pieces, messages[:1], prompt=True) for messages in conversations(3, seed=33)]
    return [chats[0], [1, *pieces.encode(stories(1)[0])][:40], chats[1][:7]]


def alone(slots: Slots, prompt: list[int], length: int) -> list[int]:
    logits, ids = slots.begin(0, prompt), []
    for _ in range(length):
        ids.append(int(logits.argmax()))
        logits = slots.step({0: ids[-1]})[0]
    slots.end(0)
    return ids


def test_text_does_not_depend_on_who_joins_and_leaves(slots: Slots, prompts: list[list[int]]) -> None:
    expected = [alone(slots, prompt, ENOUGH) for prompt in prompts]
    joins, leaves = {0: 0, 1: 3, 2: 5}, {0: 12, 1: 3 + ENOUGH, 2: 20}
    written: dict[int, list[int]] = {0: [], 1: [], 2: []}
    logits: dict[int, np.ndarray] = {}
    for turn in range(3 + ENOUGH):
        for slot in [slot for slot, at in leaves.items() if at == turn]:
            slots.end(slot)
            del logits[slot]
        for slot in [slot for slot, at in joins.items() if at == turn]:
            logits[slot] = slots.begin(slot, prompts[slot])
        tokens = {slot: int(found.argmax()) for slot, found in logits.items()}
        for slot, token in tokens.items():
            written[slot].append(token)
        logits = slots.step(tokens)
    for slot, ids in written.items():
        assert len(ids) >= 12 and ids == expected[slot][: len(ids)]


def test_every_position_of_a_prompt_can_be_asked_for(slots: Slots, prompts: list[list[int]]) -> None:
    every = slots.begin(1, prompts[1], every=True)
    assert every.shape == (len(prompts[1]), 512)
    slots.end(1)
    np.testing.assert_allclose(every[-1], slots.begin(1, prompts[1]), atol=2e-3)
    slots.end(1)
    np.testing.assert_allclose(every[9], slots.begin(1, prompts[1][:10]), atol=2e-3)


def test_each_sequence_may_fill_the_context(slots: Slots) -> None:
    for slot in range(3):
        slots.begin(slot, [1] * (CONTEXT - 1))
    assert all(np.isfinite(found).all() for found in slots.step({0: 5, 1: 5, 2: 5}).values())


def test_both_kinds_give_the_same_logits(model: LlamaForCausalLM, engine: GGUFEngine, prompts) -> None:
    ours, theirs = CheckpointSlots(model, 1), GGUFSlots(engine, 1, threads=1)
    for prompt in prompts:
        np.testing.assert_allclose(ours.begin(0, prompt), theirs.begin(0, prompt), atol=2e-2)
        ours.end(0)
    theirs.close()


def test_padding_is_dropped_when_the_longest_leaves(model: LlamaForCausalLM) -> None:
    slots = CheckpointSlots(model, 2)
    slots.begin(0, [1] * 60)
    slots.begin(1, [1] * 5)
    slots.end(0)
    assert slots._cache.get_seq_length() == 5


def test_sliding_windows_answer_one_at_a_time() -> None:
    config = MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    model = MistralForCausalLM(config)
    with pytest.raises(ConfigError, match="one at a time"):
        CheckpointSlots(model, 2)
    assert CheckpointSlots(model, 1).begin(0, [1] * 12).shape == (32,)


def test_a_prompt_longer_than_a_batch_is_read_in_parts(tmp_path: Path, monkeypatch, engine, prompts) -> None:
    whole = GGUFSlots(engine, 1, threads=1)
    expected = whole.begin(0, prompts[1], every=True)
    monkeypatch.setattr("utils.serving.gguf_slots.BATCH_TOKENS", 16)
    parts = GGUFSlots(engine, 1, threads=1)
    np.testing.assert_allclose(parts.begin(0, prompts[1], every=True), expected, atol=2e-3)
    whole.close()
    parts.close()
