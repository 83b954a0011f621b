import math

import pytest
import torch
from torch.nn import functional as F

from kernels.linear_cross_entropy import chunk_rows, linear_cross_entropy, reference_linear_cross_entropy

SHAPES = [(1, 5, 8), (5, 123, 123), (37, 1031, 64), (300, 4096, 256)]


def problem(rows, vocab, width, ignored="some", dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, width, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab, (rows,), generator=generator)
    if ignored == "some":
        targets[1::3] = -100
    if ignored == "few":
        targets[-1:] = -100 if rows > 20 else targets[-1:]
    if ignored == "all":
        targets[:] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("ignored", ["none", "few", "some"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_equal_torch(shape, ignored):
    hidden, weight, targets = problem(*shape, ignored)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    sums = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(sums.loss_sum, expected, rtol=1e-6, atol=1e-6)
    assert sums.count == (targets != -100).sum()
    ours = torch.autograd.grad(sums.loss_sum * 0.25, (hidden, weight))
    theirs = torch.autograd.grad(expected * 0.25, (hidden, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_row_weights_scale_loss_gradient_and_count():
    hidden, weight, targets = problem(37, 91, 16)
    weights = torch.rand(37)
    ours, reference = (
        f(hidden, weight, targets, weights) for f in (linear_cross_entropy, reference_linear_cross_entropy)
    )
    torch.testing.assert_close(ours.loss_sum, reference.loss_sum)
    assert float(ours.count) == pytest.approx(float(weights[targets != -100].sum()))
    for mine, other in zip(
        torch.autograd.grad(ours.loss_sum, (hidden, weight)),
        torch.autograd.grad(reference.loss_sum, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_gradcheck_in_double_precision():
    hidden, weight, targets = problem(70, 7, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets).loss_sum, (hidden, weight)
    )


def test_all_targets_ignored_gives_finite_zeros():
    hidden, weight, targets = problem(9, 11, 4, "all")
    sums = linear_cross_entropy(hidden, weight, targets)
    gradients = torch.autograd.grad(sums.loss_sum, (hidden, weight))
    assert sums.loss_sum == 0 and sums.count == 0
    assert all((each == 0).all() for each in gradients)


@pytest.mark.parametrize("logits", [lambda z: z.index_fill(1, torch.tensor([0]), 80.0), lambda z: z - 1e4])
def test_extreme_logits_stay_finite(logits):
    """A head of the identity turns hidden states into logits."""
    hidden = logits(torch.zeros(6, 6)).requires_grad_()
    sums = linear_cross_entropy(hidden, torch.eye(6), torch.tensor([1, 2, 3, 4, 5, 0]))
    (gradient,) = torch.autograd.grad(sums.loss_sum, hidden)
    assert torch.isfinite(sums.loss_sum) and torch.isfinite(gradient).all()


def test_uniform_logits_cost_ln_vocabulary():
    sums = linear_cross_entropy(torch.zeros(10, 4), torch.randn(50, 4), torch.arange(10))
    assert float(sums.loss_sum / sums.count) == pytest.approx(math.log(50), abs=1e-6)


def test_chunks_do_not_change_the_sum(monkeypatch):
    hidden, weight, targets = problem(300, 64, 16)
    one = linear_cross_entropy(hidden, weight, targets)
    monkeypatch.setattr("kernels.linear_cross_entropy.chunk_rows", lambda *_: 7)
    many = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(one.loss_sum, many.loss_sum, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(one.loss_sum, weight),
        torch.autograd.grad(many.loss_sum, weight),
        rtol=1e-5,
        atol=1e-5,
    )


def test_frozen_head_gets_no_gradient():
    hidden, weight, targets = problem(12, 9, 4)
    sums = linear_cross_entropy(hidden, weight.detach(), targets)
    (gradient,) = torch.autograd.grad(sums.loss_sum, hidden)
    assert gradient.abs().sum() > 0


def test_autocast_multiplies_in_bf16_and_returns_fp32_gradients():
    hidden, weight, targets = problem(64, 100, 32)
    exact = linear_cross_entropy(hidden, weight, targets).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, targets).loss_sum
    assert rough != exact and rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=2e-2, atol=0)
    assert {each.dtype for each in torch.autograd.grad(rough, (hidden, weight))} == {torch.float32}


def test_chunk_rows_follow_the_device():
    assert chunk_rows(4096, 256, "cpu") == 256 and chunk_rows(4096, 16, "cpu") == 64
    assert chunk_rows(32768, 768, "cuda") == 8192
