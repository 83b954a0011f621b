"""Packed conversations: nothing cut, nothing leaking, one exact loss however the rows are split."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from utils.packing.mixture import Mixture, MixtureSource
from utils.packing.plan import plan_best_fit
from utils.training.conversations import (
    PackedConversations,
    TrainedTokenLoss,
    read_draws,
    trained_targets,
)
from utils.training.loss import token_nll

VOCABULARY, ROW = 40, 31


class Memory:
    """Documents in memory with random ids and masks."""

    def __init__(self, lengths: list[int], seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.parts = [
            (random.integers(4, VOCABULARY, n), random.integers(0, 2, n).astype(np.uint8)) for n in lengths
        ]
        self.lengths, self.num_documents = np.array(lengths), len(lengths)

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.parts[i]


def packed_of(lengths: list[int], seed: int = 0, row_tokens: int = ROW) -> PackedConversations:
    memory = Memory(lengths, seed)
    return PackedConversations(memory, plan_best_fit(memory.lengths, row_tokens), row_tokens, pad=3)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@given(st.lists(st.integers(2, ROW + 1), min_size=1, max_size=30))
@settings(max_examples=60)
def test_every_document_is_in_exactly_one_row_uncut(lengths: list[int]) -> None:
    packed = packed_of(lengths)
    batch = packed.rows(range(packed.num_rows))
    found = {}
    for r in range(packed.num_rows):
        for i in set(batch.document[r].tolist()) - {-1}:
            assert i not in found
            found[i] = r
            part = batch.document[r] == i
            ids, mask = packed.dataset.document(i)
            assert np.array_equal(batch.tokens[r, part], ids) and np.array_equal(batch.trained[r, part], mask)
            assert batch.position[r, part].tolist() == list(range(len(ids)))
    assert sorted(found) == list(range(len(lengths)))
    assert packed.fill == pytest.approx((batch.document >= 0).mean())


def test_only_trained_tokens_of_the_same_document_are_targets() -> None:
    packed = packed_of([5, 7, 3])
    batch = packed.rows([0])
    _, targets, _ = trained_targets(batch)
    for t in range(ROW):
        scored = batch.document[0, t] == batch.document[0, t + 1] >= 0 and batch.trained[0, t + 1] == 1
        assert int(targets[0, t]) == (batch.tokens[0, t + 1] if scored else -100)


def test_packed_rows_equal_one_conversation_at_a_time(model: LlamaForCausalLM) -> None:
    lengths = [9, 14, 8, 6, 17]
    packed = packed_of(lengths)
    assert packed.num_rows < len(lengths)
    batch = packed.rows(range(packed.num_rows))
    inputs, targets, position = trained_targets(batch)
    nll = token_nll(model, inputs, targets, position)
    for i in range(len(lengths)):
        ids, mask = packed.dataset.document(i)
        logits = model(input_ids=torch.tensor(ids)[None]).logits[0]
        alone = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(ids)[1:], reduction="none"
        ) * torch.tensor(mask[1:])
        r, at = np.argwhere((batch.document == i) & (batch.position == 0))[0]
        torch.testing.assert_close(nll[r, at : at + len(ids) - 1], alone, atol=1e-5, rtol=0)


def test_gradients_of_packed_rows_equal_those_of_single_ones(model: LlamaForCausalLM) -> None:
    loss, lengths = TrainedTokenLoss(), [9, 14, 8, 6, 17]
    packed = packed_of(lengths)
    alone = PackedConversations(packed.dataset, SinglePlan(len(lengths)), ROW, pad=3)
    gradients = []
    for rows in (packed, alone):
        model.zero_grad()
        loss(model, rows.rows(range(rows.num_rows))).loss_sum.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5, msg=name)


class SinglePlan:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def row(self, r: int) -> np.ndarray:
        return np.array([r])


def test_changing_one_conversation_leaves_the_others_alone(model: LlamaForCausalLM) -> None:
    packed = packed_of([9, 8, 10])
    batch = packed.rows([0])
    inputs, targets, position = trained_targets(batch)
    changed = batch.tokens.copy()
    changed[batch.document == 1] = 5
    before = token_nll(model, inputs, targets, position)
    after = token_nll(model, torch.tensor(changed[:, :-1]), targets, position)
    others = torch.tensor(batch.document[:, 1:] != 1)
    torch.testing.assert_close(before[others], after[others], atol=1e-6, rtol=0)
    assert not torch.allclose(before[~others], after[~others])


@pytest.mark.parametrize("micro_rows", [1, 2, 4])
def test_the_loss_does_not_depend_on_micro_batches(model: LlamaForCausalLM, micro_rows: int) -> None:
    loss, packed = TrainedTokenLoss(), packed_of([20, 25, 30, 12, 28, 31])
    whole = loss(model, packed.rows(range(4)))
    parts = [packed.rows(range(i, i + micro_rows)) for i in range(0, 4, micro_rows)]
    total = sum(float(loss(model, part).loss_sum) for part in parts)
    weight = sum(loss.weigh(part) for part in parts)
    assert weight == loss.weigh(packed.rows(range(4))) == float(whole.count)
    assert total / weight == pytest.approx(float(whole.loss_sum) / weight, abs=1e-6)


def test_prompt_tokens_get_no_loss(model: LlamaForCausalLM) -> None:
    """
    Changing what an untrained position should predict changes neither loss nor gradient: it is no target.
    """
    loss, packed = TrainedTokenLoss(), packed_of([12])
    batch = packed.rows([0])
    nothing = batch._replace(trained=np.zeros_like(batch.trained))
    assert loss.weigh(nothing) == 0 and float(loss(model, nothing).loss_sum.detach()) == 0
    last = batch.trained.copy()
    last[:] = 0
    last[0, 11] = 1
    assert loss.weigh(batch._replace(trained=last)) == 1


def test_draws_of_two_datasets_are_read_in_order() -> None:
    packed = [packed_of([9, 14, 30], seed=1), packed_of([25, 28], seed=2)]
    mixture = Mixture([MixtureSource(p.num_rows, str(i), 1.0) for i, p in enumerate(packed)], 0, 4)
    draws = mixture.next_step()
    batch = read_draws(packed, draws)
    for k, (d, r) in enumerate(zip(draws.dataset, draws.row, strict=True)):
        assert np.array_equal(batch.tokens[k], packed[d].rows([r]).tokens[0])
