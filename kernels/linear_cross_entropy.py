"""
Cross-entropy of a linear head without the logits: the last layer and the loss in one pass over chunks of
rows.

Per row with logits z = W x, m = max z, S = sum e^(z - m), U = sum e^(z - m) (z - m):

    nll      = m + ln S - z_y                     entropy = ln S - U / S
    d nll/dz = e^(z - m) / S - [v = y]            d nll/dx = W^T dz        d nll/dW = dz x^T

and with a z-loss coefficient c the loss is nll + c (m + ln S)^2, whose gradient adds 2 c (m + ln S)
e^(z - m) / S. The entropy and the z term come out of the same pass and carry no gradient of their own.

Nothing follows the loss, so its gradient is made in the forward pass, chunk by chunk, over the buffer that
held the logits; backward multiplies by the scalar that comes in. A chunk of max(64, d) rows on a CPU is as
large as dW: smaller ones read dW again and again, larger ones leave the cache.

Memory is dX and dW, b N d + 4 V d bytes with b of the inputs' dtype, and chunks of logits instead of N x V:
one in the dtype of the products for Triton; on the torch path three of fp32 at most, whatever that dtype is.
Autocast adds the weight in its dtype, V d numbers.

    sums = linear_cross_entropy(hidden_ND, head.weight, targets_N, with_entropy=True)
    (sums.loss_sum / sums.count).backward()

N rows, V vocabulary, d width. fp32 inside (fp64 for fp64 inputs), whatever the dtype of the inputs.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.linear_cross_entropy_torch import Buffers, RowSums, accumulate, chunk_buffers, torch_rows
from kernels.resolution import (
    GRADIENT_TOLERANCE,
    Asked,
    Resolution,
    check_agreement,
    checked_dtypes,
    resolve_kernel,
)

IGNORED = -100
GPU_CHUNK_BYTES = 512 * 2**20
CHECKED_VOCAB = 4112  # compiled as a real vocabulary is: more than one block, a multiple of 16
SCORED_SHARE = 0.95


class Signals(NamedTuple):
    """
    What the predictions of a batch say: nats, entropy in nats (NaN where nobody computed it), and the number
    of targets behind both.
    """

    nll_sum: Tensor | float
    entropy_sum: Tensor | float
    num_targets: Tensor | float


@dataclass(frozen=True)
class LossSums:
    """
    Sums over the scored targets, never means: whoever divides knows the whole batch. `extras` are sums to
    log. `auxiliary` is added to the gradient and to nothing that is reported; besides it only `loss_sum`
    carries a gradient. `signals` are for optimizers that follow the predictions.
    """

    loss_sum: Tensor
    count: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)
    entropy_sum: Tensor | None = None
    z_sum: Tensor | None = None
    signals: Signals | None = None
    auxiliary: Tensor | None = None


class Options(NamedTuple):
    """How a chunked loss is computed."""

    product_dtype: torch.dtype
    z_loss: float
    with_entropy: bool
    rows: int
    implementation: str
    graded: bool = True


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
    *,
    kept_K: Tensor | None = None,
    z_loss: float = 0.0,
    with_entropy: bool = False,
    chunk_bytes: int | Literal["auto"] = "auto",
    implementation: Asked = "auto",
) -> LossSums:
    """
    sum(w * loss) and sum(w) over targets other than `ignore_index`; w is 1 without `weights_N`.

    `kept_K` are the rows to compute, `kept_rows` of the targets on the host; without it a CPU looks itself
    and a GPU computes all rows, so that nobody waits for it. `entropy_sum` (with `with_entropy`) and `z_sum`
    (with `z_loss`) are sum(w * entropy) and sum(w * (m + ln S)^2). `chunk_bytes` bounds the logits held at
    once, as wide as the softmax needs them. Under autocast the two matrix products run in its dtype, the
    softmax in fp32. All targets ignored gives zeros.
    """
    scored = targets_N != ignore_index
    device_type, product_dtype = hidden_ND.device.type, _product_dtype(hidden_ND)
    if kept_K is None and device_type == "cpu":
        kept_K = kept_rows(scored)
    if kept_K is not None:
        hidden_ND, targets_N, scored = hidden_ND[kept_K], targets_N[kept_K], scored[kept_K]
        weights_N = None if weights_N is None else weights_N[kept_K]
    row_weights = scored.to(_accumulator(hidden_ND.dtype))
    if weights_N is not None:
        row_weights = row_weights * weights_N
    labels = targets_N.masked_fill(~scored, 0)
    resolved = resolution(implementation, device_type).implementation
    rows = chunk_rows(*weight_VD.shape, device_type)
    if chunk_bytes != "auto":
        widest = product_dtype if resolved == "triton" else row_weights.dtype
        rows = max(1, chunk_bytes // (weight_VD.shape[0] * widest.itemsize))
    # inside a Function the mode is off, and what an input needs does not know it
    graded = torch.is_grad_enabled()
    options = Options(product_dtype, z_loss, with_entropy, rows, resolved, graded)
    loss_sum, entropy_sum, z_sum = _ChunkedLoss.apply(hidden_ND, weight_VD, labels, row_weights, options)
    return LossSums(
        loss_sum,
        row_weights.sum(dtype=torch.float64),
        entropy_sum=entropy_sum if with_entropy else None,
        z_sum=z_sum if z_loss else None,
    )


def reference_linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    weights_N: Tensor | None = None,
    ignore_index: int = IGNORED,
    *,
    z_loss: float = 0.0,
) -> LossSums:
    """The definition, with all logits at once and autograd alone; tests hold the chunked form against it."""
    logits_NV = F.linear(hidden_ND, weight_VD).to(_accumulator(hidden_ND.dtype))
    nll_N = F.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=ignore_index)
    weights_N = (targets_N != ignore_index).to(nll_N.dtype) * (1 if weights_N is None else weights_N)
    z_N = logits_NV.logsumexp(1).square()
    return LossSums(
        ((nll_N + z_loss * z_N) * weights_N).sum(),
        weights_N.sum(dtype=torch.float64),
        entropy_sum=(row_entropy(logits_NV) * weights_N).sum(),
        z_sum=(z_N * weights_N).sum(),
    )


def kept_rows(scored_N: Tensor) -> Tensor | None:
    """
    Numbers of the scored rows, where it pays to compute no others: the head is the dearest layer. None where
    nearly all are scored. Waits for the device of `scored_N`.
    """
    if scored_N.numel() and not scored_N.float().mean() < SCORED_SHARE:
        return None
    return scored_N.nonzero().squeeze(1)


def row_entropy(logits_NV: Tensor) -> Tensor:
    """-sum p ln p of the softmax of each row, in nats; without gradient."""
    log_p = logits_NV.detach().to(_accumulator(logits_NV.dtype)).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def resolution(asked: Asked, device_type: str) -> Resolution:
    """Which row kernel runs on a device."""
    return resolve_kernel("linear_cross_entropy", asked, device_type, self_check)


def self_check(device_type: str) -> None:
    """ArithmeticError when Triton and the definition disagree on 64 rows, in loss, entropy or gradient."""
    from kernels.linear_cross_entropy_triton import launch_rows

    generator = torch.Generator().manual_seed(0)
    drawn = 4 * torch.randn(64, CHECKED_VOCAB, generator=generator)
    labels = torch.randint(0, CHECKED_VOCAB, (64,), generator=generator).to(device_type)
    shares = torch.rand(64, generator=generator).to(device_type)
    for dtype in checked_dtypes(device_type):
        logits = drawn.to(device_type, dtype)
        exact = logits.double().requires_grad_()
        nll, normaliser = F.cross_entropy(exact, labels, reduction="none"), exact.logsumexp(1)
        loss = ((nll + 1e-3 * normaliser.square()) * shares).sum()
        expected = nll.detach(), row_entropy(exact), normaliser.detach()
        found = launch_rows(logits, labels, shares, 1e-3, graded=True)
        check_agreement("linear_cross_entropy", found, expected)
        gradient = torch.autograd.grad(loss, exact)
        check_agreement("linear_cross_entropy", [logits], gradient, GRADIENT_TOLERANCE)


def chunk_rows(vocab_size: int, width: int, device_type: str) -> int:
    """Rows whose logits are held at once."""
    if device_type == "cpu":
        return max(64, width)
    return max(128, GPU_CHUNK_BYTES // (2 * vocab_size) // 128 * 128)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, row_weights, options):
        with torch.autocast(hidden.device.type, enabled=False):
            needs = tuple(each and options.graded for each in ctx.needs_input_grad[:2])
            product = weight.to(options.product_dtype)
            sums, grads = _sums_and_gradients(hidden, product, labels, row_weights, options, needs)
        ctx.save_for_backward(*grads)
        ctx.dtypes = hidden.dtype, weight.dtype
        loss, entropy, z = (each.to(row_weights.dtype) for each in sums)
        ctx.mark_non_differentiable(entropy, z)
        return loss, entropy, z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        scaled = [
            None if grad is None else (grad * grad_loss).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _sums_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    row_weights: Tensor,
    options: Options,
    needs: tuple[bool, bool],
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Sums of loss, entropy and z, and the gradients that are needed, chunk by chunk in a fixed order."""
    on_torch = options.implementation == "torch"
    totals = tuple(torch.zeros((), dtype=torch.float64, device=hidden.device) for _ in range(3))
    grad_hidden = torch.empty_like(hidden) if needs[0] else None
    grad_weight = (
        torch.zeros(weight.shape, dtype=row_weights.dtype, device=weight.device) if needs[1] else None
    )
    buffers = chunk_buffers(min(options.rows, hidden.shape[0]), weight, row_weights.dtype, on_torch)
    for start in range(0, hidden.shape[0], options.rows):
        rows = slice(start, start + options.rows)
        inputs = hidden[rows].to(weight.dtype)
        chunk = Buffers(*(each[: len(inputs)] for each in buffers))
        torch.mm(inputs, weight.T, out=chunk.logits)
        given = (chunk, labels[rows], row_weights[rows], options.z_loss, options.with_entropy, any(needs))
        found = torch_rows(*given) if on_torch else _triton_rows(*given)
        for total, part in zip(totals, found[:3], strict=True):
            total += part
        if needs[0]:
            grad_hidden[rows] = found.gradient @ weight
        if needs[1]:
            accumulate(grad_weight, found.gradient, inputs)
    return totals, (grad_hidden, grad_weight)


def _triton_rows(
    chunk: Buffers, labels: Tensor, share: Tensor, z_loss: float, _: bool, graded: bool
) -> RowSums:
    from kernels.linear_cross_entropy_triton import launch_rows

    nll, entropy, normaliser = launch_rows(chunk.logits, labels, share, z_loss, graded)
    parts = (nll * share, entropy * share, normaliser.square() * share)
    loss, entropy, z = (each.sum(dtype=torch.float64) for each in parts)
    return RowSums(loss + z_loss * z, entropy, z, chunk.logits if graded else None)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype
