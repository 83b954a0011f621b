"""
Cross-entropy of a linear head without the logits: the last layer and the loss in one pass over chunks of
rows.

Per row with logits z = W x, m = max z and S = sum e^(z - m):

    nll      = m + ln S - z_y
    d nll/dz = e^(z - m) / S - [v = y]            d nll/dx = W^T dz        d nll/dW = dz x^T

Nothing follows the loss, so its gradient is made in the forward pass, chunk by chunk, over the buffer that
held the logits; backward multiplies by the scalar that comes in. Besides dX and dW, memory is one chunk
instead of N x V. A chunk of max(64, d) rows on a CPU is as large as dW: smaller ones read dW again and again,
larger ones leave the cache.

    sums = linear_cross_entropy(hidden_ND, head.weight, targets_N)
    (sums.loss_sum / sums.count).backward()

N rows, V vocabulary, d width. fp32 inside (fp64 for fp64 inputs), whatever the dtype of the inputs.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -100
GPU_CHUNK_BYTES = 512 * 2**20


@dataclass(frozen=True)
class LossSums:
    """
    Sums over the scored targets, never means: whoever divides knows the whole batch. `extras` are sums to
    log.
    """

    loss_sum: Tensor
    count: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
) -> LossSums:
    """
    sum(w * nll) and sum(w) over targets other than `ignore_index`; w is 1 without `weights_N`.

    Under autocast the two matrix products run in its dtype, the softmax in fp32. All targets ignored gives
    zeros.
    """
    scored = targets_N != ignore_index
    # the head is the dearest layer: skip what is not scored
    if scored.float().mean() < 0.95 or targets_N.numel() == 0:
        keep = scored.nonzero().squeeze(1)
        hidden_ND, targets_N, scored = hidden_ND[keep], targets_N[keep], scored[keep]
        weights_N = None if weights_N is None else weights_N[keep]
    row_weights = scored.to(_accumulator(hidden_ND.dtype))
    if weights_N is not None:
        row_weights = row_weights * weights_N
    labels = targets_N.masked_fill(~scored, 0)
    loss_sum = _ChunkedLoss.apply(hidden_ND, weight_VD, labels, row_weights, _product_dtype(hidden_ND))
    return LossSums(loss_sum, row_weights.sum(dtype=torch.float64))


def reference_linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
) -> LossSums:
    """The definition, with all logits at once and autograd alone; tests hold the chunked form against it."""
    logits_NV = F.linear(hidden_ND, weight_VD).to(_accumulator(hidden_ND.dtype))
    nll_N = F.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=ignore_index)
    weights_N = (targets_N != ignore_index).to(nll_N.dtype) * (1 if weights_N is None else weights_N)
    return LossSums((nll_N * weights_N).sum(), weights_N.sum(dtype=torch.float64))


def chunk_rows(vocab_size: int, width: int, device_type: str) -> int:
    """Rows whose logits are held at once."""
    if device_type == "cpu":
        return max(64, width)
    return max(128, GPU_CHUNK_BYTES // (2 * vocab_size) // 128 * 128)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, row_weights, product_dtype):
        with torch.autocast(hidden.device.type, enabled=False):
            needs_hidden, needs_weight = ctx.needs_input_grad[:2]
            loss, grads = _loss_and_gradients(
                hidden, weight.to(product_dtype), labels, row_weights, needs_hidden, needs_weight
            )
        ctx.save_for_backward(*grads)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        scaled = [
            None if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weights: Tensor,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """The loss sum, and the gradients that are needed, chunk after chunk in a fixed order."""
    accumulate = row_weights.dtype
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else None
    grad_weight = torch.zeros(weight.shape, dtype=accumulate, device=weight.device) if needs_weight else None
    step = chunk_rows(*weight.shape, hidden.device.type)
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        inputs, label, share = hidden[rows].to(weight.dtype), labels[rows, None], row_weights[rows]
        probabilities = (inputs @ weight.T).to(accumulate)
        chosen = probabilities.gather(1, label).squeeze(1)
        largest = probabilities.amax(1, keepdim=True)
        mass = probabilities.sub_(largest).exp_().sum(1)
        total += ((largest.squeeze(1) + mass.log() - chosen) * share).sum(dtype=torch.float64)
        if not (needs_hidden or needs_weight):
            continue
        gradient = (
            probabilities.mul_((share / mass)[:, None])
            .scatter_add_(1, label, -share[:, None])
            .to(weight.dtype)
        )
        if needs_hidden:
            grad_hidden[rows] = gradient @ weight
        if needs_weight:
            grad_weight += gradient.T @ inputs
    return total.to(accumulate), (grad_hidden, grad_weight)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
