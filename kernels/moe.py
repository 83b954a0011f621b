"""
Experts without padding or dropped tokens: sort the rows by expert, two grouped products, gather back.

Row i of the sorted order belongs to token order[i] // K, and expert e owns rows offsets[e - 1] .. offsets[e].

    x_sorted[i] = x[order[i] // K]
    y_i = down_e a(gate_up_e x_i)          a(h) = activation(first half of h, second half of h)
    out[t] = sum_j w[t, j] y[place[t, j]]  place is the inverse of order

    d x[t]    = sum_j d x_sorted[place[t, j]]         d y_i = w_i d out[order[i] // K]
    d w[t, j] = d out[t] . y[place[t, j]]             d W_e = sum over rows i of e of d y_i x_i^T

Every sum is a gather in a fixed order, so equal inputs give equal bits, and nothing but the fallback loop
asks the host how many rows an expert has. The two grouped products are operators of their own, because
torch.compile knows torch's in bf16 only.

    x_sorted, offsets, order = permute(x_TD, chosen_TK, num_experts)
    y = grouped_glu(x_sorted, gate_up, down, offsets, lambda gate, up: era_glu(gate, up, 0.1))
    out_TD = unpermute(y, order, weights_TK)

T tokens, K experts per token, M = T K rows, D width, F inner width, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.resolution import (
    GRADIENT_TOLERANCE,
    Asked,
    Resolution,
    check_agreement,
    checked_dtypes,
    resolve_kernel,
)

FIRST_NATIVE_CAPABILITY = (9, 0)
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STRIDE_BYTES = 16


def permute(x_TD: Tensor, expert_TK: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    Rows [M, D] sorted by expert, int32 end offsets [E], and the order [M].

    The sort is stable, so tokens keep their order within an expert.
    """
    sorted_M, order_M = expert_TK.flatten().sort(stable=True)
    experts_E = torch.arange(num_experts, dtype=sorted_M.dtype, device=sorted_M.device)
    offsets_E = torch.searchsorted(sorted_M, experts_E, right=True, out_int32=True)
    return _Permute.apply(x_TD, order_M, expert_TK.shape[1]), offsets_E, order_M


def grouped_glu(
    x_MD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: Callable[[Tensor, Tensor], Tensor],
    implementation: Asked = "auto",
) -> Tensor:
    """down_e activation(gate, up) of each row, [M, D]; under autocast the products run in its dtype."""
    hidden_M2F = grouped_linear(x_MD, gate_up_E2FD, offsets_E, implementation)
    return grouped_linear(activation(*hidden_M2F.chunk(2, dim=-1)), down_EDF, offsets_E, implementation)


def grouped_linear(
    x_MK: Tensor, weight_ENK: Tensor, offsets_E: Tensor, implementation: Asked = "auto"
) -> Tensor:
    """Row i times the transposed weight of its expert, [M, N]."""
    dtype = _product_dtype(x_MK.device, x_MK.dtype)
    form = _form(implementation, x_MK.device, dtype)
    return _GroupedLinear.apply(x_MK.to(dtype), weight_ENK.to(dtype), offsets_E, form)


def reference_grouped_glu(
    x_MD: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    offsets_E: Tensor,
    activation: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The definition: every expert on every row, of which a row keeps its own; autograd alone."""
    row_M = torch.arange(x_MD.shape[0], device=x_MD.device)
    hidden_EMF = activation(*(x_MD @ gate_up_E2FD.mT).chunk(2, dim=-1))
    return (hidden_EMF @ down_EDF.mT)[torch.searchsorted(offsets_E, row_M, right=True), row_M]


def unpermute(y_MD: Tensor, order_M: Tensor, weights_TK: Tensor) -> Tensor:
    """Weighted sum of the K rows of each token, [T, D], added in fp32 (fp64 for fp64 rows)."""
    return _Unpermute.apply(y_MD, order_M, weights_TK)


def resolution(asked: Asked, device: torch.device, dtype: torch.dtype) -> Resolution:
    """
    Which grouped product runs for rows of a dtype, under autocast in that of the region: torch's own wherever
    it does not go through the host.
    """
    dtype = _product_dtype(device, dtype)
    if dtype not in GROUPED_DTYPES:
        return Resolution("moe", asked, "torch", f"a loop over experts for {dtype}")
    if asked == "auto" and device.type == "cuda" and dtype == torch.bfloat16:
        capability = torch.cuda.get_device_capability(device)
        if capability >= FIRST_NATIVE_CAPABILITY:
            return Resolution("moe", asked, "torch", "grouped_mm is native on CUDA {}.{}".format(*capability))
    return resolve_kernel("moe", asked, device.type, self_check)


@torch.no_grad()
def self_check(device_type: str) -> None:
    """ArithmeticError when Triton and the loop disagree on 64 rows of five experts, one of them empty."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator) for shape in ((64, 80), (5, 144, 80), (64, 144))]
    offsets = torch.tensor([3, 30, 30, 47, 64], dtype=torch.int32, device=device_type)
    for dtype in checked_dtypes(device_type):
        given = [each.to(device_type, dtype) for each in drawn]
        found, exact = (
            (
                _products(x, weight, offsets, form),
                _products(grad, weight.transpose(1, 2), offsets, form),
                _weight_products(grad, x, offsets, form),
            )
            for (x, weight, grad), form in ((given, "triton"), ([each.double() for each in given], "loop"))
        )
        check_agreement("moe", found[:1], exact[:1])
        check_agreement("moe", found[1:], exact[1:], GRADIENT_TOLERANCE)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, order, top_k):
        ctx.save_for_backward(order)
        ctx.shape = x.shape[0], top_k
        return x[order // top_k]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (order,) = ctx.saved_tensors
        gathered = grad[_inverse(order)].unflatten(0, ctx.shape)
        return gathered.sum(1, dtype=_accumulator(grad.dtype)).to(grad.dtype), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, order, weights):
        ctx.save_for_backward(y, order, weights)
        rows = y[_inverse(order)].unflatten(0, weights.shape)
        high = _accumulator(y.dtype)
        with torch.autocast(y.device.type, enabled=False):
            return torch.einsum("tk,tkd->td", weights.to(high), rows.to(high)).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        y, order, weights = ctx.saved_tensors
        high, top_k = _accumulator(y.dtype), weights.shape[1]
        grad_y = weights.flatten()[order, None].to(high) * grad[order // top_k].to(high)
        rows = y[_inverse(order)].unflatten(0, weights.shape)
        with torch.autocast(y.device.type, enabled=False):
            grad_weights = torch.einsum("td,tkd->tk", grad.to(high), rows.to(high))
        return grad_y.to(y.dtype), None, grad_weights.to(weights.dtype)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, offsets, form):
        ctx.save_for_backward(x, weight, offsets)
        ctx.form = form
        return _products(x, weight, offsets, form)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, offsets = ctx.saved_tensors
        grad, needs = grad.contiguous(), ctx.needs_input_grad
        grad_x = _products(grad, weight.transpose(1, 2), offsets, ctx.form) if needs[0] else None
        grad_weight = _weight_products(grad, x, offsets, ctx.form) if needs[1] else None
        return grad_x, grad_weight, None, None


@torch.library.custom_op("lockstep::grouped_products", mutates_args=())
def _products(x_MK: Tensor, weight_ENK: Tensor, offsets_E: Tensor, form: str) -> Tensor:
    """x_i W_e^T for every row."""
    if form == "triton":
        from kernels.moe_triton import launch_products

        return launch_products(x_MK, weight_ENK, offsets_E)
    if form == "grouped" and _aligned(x_MK.shape[1], weight_ENK.shape[1], x_MK):
        return F.grouped_mm(x_MK.contiguous(), weight_ENK.transpose(1, 2), offs=offsets_E)
    parts = zip(_parts(x_MK, offsets_E), weight_ENK, strict=True)
    return torch.cat([rows @ weight.T for rows, weight in parts])


@_products.register_fake
def _(x_MK, weight_ENK, offsets_E, form):
    return x_MK.new_empty(x_MK.shape[0], weight_ENK.shape[1])


@torch.library.custom_op("lockstep::grouped_weight_products", mutates_args=())
def _weight_products(grad_MN: Tensor, x_MK: Tensor, offsets_E: Tensor, form: str) -> Tensor:
    """Sum over the rows of each expert of grad_i x_i^T, [E, N, K]; zeros for an expert without rows."""
    if form == "triton":
        from kernels.moe_triton import launch_weight_products

        return launch_weight_products(grad_MN, x_MK, offsets_E)
    if form == "grouped" and _aligned(x_MK.shape[1], grad_MN.shape[1], x_MK):
        return F.grouped_mm(grad_MN.t(), x_MK.contiguous(), offs=offsets_E)
    parts = zip(_parts(grad_MN, offsets_E), _parts(x_MK, offsets_E), strict=True)
    return torch.stack([grad.T @ rows for grad, rows in parts])


@_weight_products.register_fake
def _(grad_MN, x_MK, offsets_E, form):
    return x_MK.new_empty(offsets_E.shape[0], grad_MN.shape[1], x_MK.shape[1])


def _parts(rows: Tensor, offsets_E: Tensor) -> tuple[Tensor, ...]:
    return rows.tensor_split(offsets_E[:-1].long().cpu())


def _aligned(inner: int, outer: int, like: Tensor) -> bool:
    """Whether torch's grouped product takes rows of these lengths."""
    return like.numel() > 0 and all(n * like.element_size() % STRIDE_BYTES == 0 for n in (inner, outer))


@torch.compiler.assume_constant_result
def _form(asked: Asked, device: torch.device, dtype: torch.dtype) -> str:
    """grouped, triton or loop."""
    if resolution(asked, device, dtype).implementation == "triton":
        return "triton"
    return "grouped" if dtype in GROUPED_DTYPES else "loop"


def _product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """In which the products run."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def _inverse(order_M: Tensor) -> Tensor:
    places = torch.arange(order_M.numel(), device=order_M.device)
    return torch.empty_like(order_M).scatter_(0, order_M, places)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
