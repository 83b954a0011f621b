"""Packed pairs: log-probabilities per answer, and references that agree."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from utils.config.adapter import AdapterConfig
from utils.models.adapt import LoRAShape, add_adapter
from utils.models.flylora import adapters_of
from utils.models.vesper import VesperConfig, VesperForCausalLM
from utils.packing.mixture import Mixture, MixtureSource
from utils.packing.plan import plan_best_fit
from utils.preferences.losses import dpo_loss
from utils.training.conversations import TrainedTokenLoss
from utils.training.loss import LossModel, mean_loss, next_token_loss
from utils.training.pairs import (
    PackedPairs,
    PreferenceObjective,
    adapter_off_reference,
    all_answer_logps,
    answer_logps,
    cached_reference,
    pair_lengths,
    read_pair_draws,
)
from utils.training.precision import FP32

VOCABULARY, ROW = 40, 39


class Memory:
    """Pairs in memory: a shared prompt, two answers of which every token is trained."""

    def __init__(self, num_pairs: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.parts = []
        for _ in range(num_pairs):
            prompt = random.integers(4, VOCABULARY, random.integers(2, 6))
            for _ in range(2):
                answer = random.integers(4, VOCABULARY, random.integers(1, 7))
                ids = np.concatenate([prompt, answer])
                self.parts.append((ids, (np.arange(len(ids)) >= len(prompt)).astype(np.uint8)))
        self.lengths = np.array([len(ids) for ids, _ in self.parts])
        self.num_documents = len(self.parts)

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.parts[i]


def packed_of(num_pairs: int, seed: int = 0) -> PackedPairs:
    memory = Memory(num_pairs, seed)
    return PackedPairs(memory, plan_best_fit(pair_lengths(memory.lengths), ROW), ROW, pad=3)


def tiny_llama() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def trained_adapter() -> torch.nn.Module:
    """A model whose adapter already does something."""
    model = add_adapter(tiny_llama(), LoRAShape(rank=4, alpha=8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model.eval()


def test_logps_are_sums_over_the_answer_of_each_side() -> None:
    model, packed = tiny_llama(), packed_of(7)
    logps = all_answer_logps(model, packed, rows_per_batch=2)
    assert packed.num_rows < 7
    for i in range(14):
        ids, trained = packed.dataset.document(i)
        log_probabilities = model(input_ids=torch.tensor(ids)[None]).logits[0].log_softmax(-1)
        expected = sum(float(log_probabilities[t - 1, ids[t]]) for t in range(1, len(ids)) if trained[t])
        assert logps[i // 2, i % 2] == pytest.approx(expected, abs=1e-5)


def test_cached_and_adapter_off_reference_agree() -> None:
    model, packed = trained_adapter(), packed_of(7)
    with model.disable_adapter():
        packed.reference = all_answer_logps(model, packed, rows_per_batch=3)
    batch = packed.rows(range(packed.num_rows))
    cached, off = cached_reference(model, batch), adapter_off_reference(model, batch)
    assert float((cached - off).abs().max()) < 1e-6
    assert float((cached - answer_logps(model, batch)).abs().max()) > 1e-3
    losses = [
        mean_loss(model, [batch], PreferenceObjective(partial(dpo_loss, beta=0.5), reference))
        for reference in (cached_reference, adapter_off_reference)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_reference_stays_put_while_the_adapter_is_trained() -> None:
    model, packed = trained_adapter(), packed_of(3)
    batch = packed.rows(range(packed.num_rows))
    before = adapter_off_reference(model, batch)
    objective = PreferenceObjective(partial(dpo_loss, beta=0.5), adapter_off_reference)
    model.train()
    objective(model, batch).loss_sum.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    assert torch.equal(adapter_off_reference(model, batch), before)
    assert not torch.allclose(answer_logps(model, batch), before)


def test_extras_are_measured_per_pair() -> None:
    model, packed = tiny_llama(), packed_of(4)
    batch = packed.rows(range(packed.num_rows))
    lp = answer_logps(model, batch).detach()
    reference = lp + torch.tensor([[-1.0, 0.0], [0.0, -2.0], [0.0, 0.0], [-4.0, 0.0]])
    objective = PreferenceObjective(partial(dpo_loss, beta=0.5), lambda model, batch: reference)
    sums = objective(model, batch)
    assert float(sums.count) == objective.weigh(batch) == 4
    assert {name: float(value) for name, value in sums.extras.items()} == pytest.approx(
        {"margin": 0.5 * (1 - 2 + 0 + 4), "accuracy": 2, "chosen_drop": -5}, abs=1e-5
    )


def test_drawn_rows_number_their_documents_through() -> None:
    packed = [packed_of(5, seed=1), packed_of(6, seed=2)]
    packed[0].reference, packed[1].reference = (
        np.arange(10.0).reshape(5, 2),
        np.arange(100.0, 112.0).reshape(6, 2),
    )
    mixture = Mixture([MixtureSource(p.num_rows, str(i), 1.0) for i, p in enumerate(packed)], 0, 4)
    draws = mixture.next_step()
    batch = read_pair_draws(packed, draws)
    model = tiny_llama()
    expected = [
        answer_logps(model, packed[d].rows([r])) for d, r in zip(draws.dataset, draws.row, strict=True)
    ]
    torch.testing.assert_close(answer_logps(model, batch), torch.cat(expected), atol=1e-5, rtol=0)
    known = [packed[d].rows([r]).reference for d, r in zip(draws.dataset, draws.row, strict=True)]
    assert np.array_equal(batch.reference, np.concatenate(known))


def test_signals_are_those_of_the_answers_tokens() -> None:
    """What a following optimizer sees of pairs: nats and entropy of every trained token of both sides."""
    model, packed = tiny_llama(), packed_of(5)
    batch = packed.rows(range(packed.num_rows))
    loss = partial(dpo_loss, beta=0.1)
    sums = PreferenceObjective(loss, zero_reference, with_entropy=True)(model, batch)
    logps = answer_logps(model, batch)
    nll = entropy = count = 0.0
    for i in range(packed.dataset.num_documents):
        ids, trained = packed.dataset.document(i)
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor(ids)[None]).logits[0].log_softmax(-1)
        for t in (t for t in range(1, len(ids)) if trained[t]):
            nll, count = nll - float(log_p[t - 1, ids[t]]), count + 1
            entropy -= float((log_p[t - 1].exp() * log_p[t - 1]).sum())
    assert float(sums.signals.nll_sum) == pytest.approx(nll, rel=1e-5) == -float(logps.sum().detach())
    assert float(sums.signals.entropy_sum) == pytest.approx(entropy, rel=1e-5)
    assert sums.signals.num_targets == count


def fly_model() -> torch.nn.Module:
    config = VesperConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=3,
    )  # fmt: skip
    model = VesperForCausalLM(config)
    model.adapt(AdapterConfig(kind="fly", rank=8, active_ranks=2), seed=0)
    return model.train()


@pytest.mark.parametrize("kind", ["every token", "answers", "pairs"])
def test_ranks_are_counted_where_a_prediction_trains_and_not_on_prompts(kind: str) -> None:
    packed, model = packed_of(5), fly_model()
    masks = [trained[1:] for _, trained in packed.dataset.parts]
    loss, expected = {
        "every token": (next_token_loss, sum(len(mask) for mask in masks)),
        "answers": (TrainedTokenLoss(), sum(int(mask.sum()) for mask in masks)),
        "pairs": (
            PreferenceObjective(partial(dpo_loss, beta=0.1), zero_reference),
            sum(int(mask.sum()) for mask in masks),
        ),
    }[kind]
    LossModel(model, loss, FP32)(packed.rows(range(packed.num_rows)))
    counts = [int(each.counts.sum()) for each in adapters_of(model)]
    assert counts == [2 * expected] * 6


def zero_reference(model: torch.nn.Module, batch) -> torch.Tensor:
    return torch.zeros(len(batch.index), 2, dtype=torch.float64)
