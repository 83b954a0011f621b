import math

import pytest
import torch
from torch.nn import functional as F

from tests.training.toy_stage import VOCAB, CountingRows, ToyBatch, toy_model
from utils.training.loss import (
    NextTokenLoss,
    head_loss,
    mean_loss,
    next_token_loss,
    next_token_targets,
    token_nll,
)


@pytest.fixture(scope="module")
def model():
    return toy_model()


def batch_of(tokens, document, position):
    return ToyBatch(*(torch.tensor([row]) for row in (tokens, document, position)))


def test_targets_are_the_next_id_inside_a_document_by_hand():
    batch = batch_of([5, 6, 7, 8, 9, 0], [0, 0, 1, 1, 1, -1], [0, 1, 0, 1, 2, 0])
    inputs, targets, position = next_token_targets(batch)
    assert inputs.tolist() == [[5, 6, 7, 8, 9]]
    assert targets.tolist() == [[6, -100, 8, 9, -100]]
    assert position.tolist() == [[0, 1, 0, 1, 2]]
    assert next_token_loss.weigh(batch) == 3


def test_loss_is_the_sum_over_scored_targets_of_plain_logits(model):
    batch = CountingRows().rows(range(5))
    inputs, targets, position = next_token_targets(batch)
    logits = model(input_ids=inputs, position_ids=position, use_cache=False).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    sums = next_token_loss(model, batch)
    torch.testing.assert_close(sums.loss_sum, expected)
    assert float(sums.count) == NextTokenLoss().weigh(batch)
    assert mean_loss(model, [batch]) == pytest.approx(float(expected / sums.count), rel=1e-6)


def test_documents_packed_in_a_row_equal_documents_alone(model):
    """Same per-token losses, and the same gradients, as one document per row."""
    first, second = [3, 4, 5, 6, 7], [20, 21, 22, 23]
    packed = batch_of([*first, *second], [0] * 5 + [1] * 4, [*range(5), *range(4)])
    alone = [batch_of(ids, [0] * len(ids), list(range(len(ids)))) for ids in (first, second)]
    together = next_token_loss(model, packed).loss_sum
    apart = sum(next_token_loss(model, each).loss_sum for each in alone)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-5)
    for one, other in zip(
        *(torch.autograd.grad(each, list(model.parameters())) for each in (together, apart)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    joined = batch_of([*first, *second], [0] * 9, list(range(9)))
    assert abs(float(next_token_loss(model, joined).loss_sum - together)) > 0.1


def test_token_nll_agrees_with_the_sum_and_is_zero_elsewhere(model):
    batch = CountingRows().rows(range(3))
    inputs, targets, position = next_token_targets(batch)
    nll = token_nll(model, inputs, targets, position)
    assert (nll[targets == -100] == 0).all()
    torch.testing.assert_close(nll.sum(), next_token_loss(model, batch).loss_sum)


def test_an_adapted_head_takes_the_full_logits_path_with_the_same_result(model):
    class Adapted(torch.nn.Linear):
        pass

    batch = CountingRows().rows(range(3))
    _, targets, _ = next_token_targets(batch)
    hidden, weights = torch.randn(*targets.shape, 16), torch.rand(targets.shape)
    plain = head_loss(model, hidden, targets, weights)
    head, adapted = model.lm_head, Adapted(16, VOCAB, bias=False)
    adapted.weight = head.weight
    model.set_output_embeddings(adapted)
    try:
        other = head_loss(model, hidden, targets, weights)
    finally:
        model.set_output_embeddings(head)
    torch.testing.assert_close(other.loss_sum, plain.loss_sum)
    torch.testing.assert_close(other.count, plain.count)


def test_mean_loss_weighs_batches_by_their_targets(model):
    rows = CountingRows()
    whole = mean_loss(model, [rows.rows(range(7))])
    split = mean_loss(model, [rows.rows(range(1)), rows.rows(range(1, 7))])
    assert split == pytest.approx(whole, rel=1e-6)


def test_mean_loss_leaves_mode_gradients_and_random_state_alone(model):
    model.train()
    state = torch.get_rng_state()
    mean_loss(model, [CountingRows().rows(range(2))])
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_untrained_uniform_model_costs_ln_vocabulary():
    model = toy_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert mean_loss(model, [CountingRows().rows(range(4))]) == pytest.approx(math.log(VOCAB), abs=1e-6)
