"""
ERA, an activation with a slope that never vanishes, and its gated linear unit.

    ERA(x)  = x s(2u) + gamma softplus(x)                    u = sqrt(2/pi) (x + 0.044715 x^3)
    ERA'(x) = s(2u) + 2 x s(2u) (1 - s(2u)) u' + gamma s(x)  u' = sqrt(2/pi) (1 + 0.134145 x^2)

with s(y) = 1 / (1 + e^-y); x s(2u) = x (1 + tanh u) / 2 is the tanh form of GELU (Hendrycks 2016), so that
gamma 0 is exactly GELU, and softplus(x) = max(x, 0) + ln(1 + e^-|x|). The gated unit (Shazeer 2020) is

    h = ERA(gate) up          d gate = dh up ERA'(gate)          d up = dh ERA(gate)

It keeps gate and up for the backward pass and nothing else; the rest is computed again.

    hidden = era_glu(gate, up, gamma=0.1)

fp32 inside (fp64 for fp64 inputs), rounded once; finite for every finite input whose result is.
"""

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

EXACT_ABOVE = 40.0  # softplus(x) = x to the last bit of fp64
CHECKED_WIDTH = 1040  # compiled as a real width is: more than one block, a multiple of 16
SATURATED = 1e3  # GELU' is 0 or 1 long before, and x^3 overflows long after


def era(x: Tensor, gamma: float, implementation: Asked = "auto") -> Tensor:
    """GELU_tanh(x) + gamma softplus(x), in the dtype and shape of `x`."""
    return _Era.apply(x, None, gamma, _implementation(implementation, x.device.type))


def era_glu(gate: Tensor, up: Tensor, gamma: float, implementation: Asked = "auto") -> Tensor:
    """ERA(gate) * up of two tensors of one shape and dtype, which may be halves of one projection."""
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate {gate.dtype} {tuple(gate.shape)} and up {up.dtype} {tuple(up.shape)} differ")
    return _Era.apply(gate, up, gamma, _implementation(implementation, gate.device.type))


def reference_era(x: Tensor, gamma: float) -> Tensor:
    """The definition, in the accumulator's dtype, differentiable by autograd alone."""
    x = _wide(x)
    return torch.add(F.gelu(x, approximate="tanh"), F.softplus(x, threshold=EXACT_ABOVE), alpha=gamma)


def reference_era_glu(gate: Tensor, up: Tensor, gamma: float) -> Tensor:
    """The gated unit by its definition, rounded once to the dtype of `gate`."""
    return (reference_era(gate, gamma) * _wide(up)).to(gate.dtype)


def resolution(asked: Asked, device_type: str) -> Resolution:
    """Which form runs on a device."""
    return resolve_kernel("era_glu", asked, device_type, self_check)


def self_check(device_type: str) -> None:
    """ArithmeticError when Triton and the definition disagree on 64 rows, in value or gradient."""
    generator = torch.Generator().manual_seed(0)
    drawn = 3 * torch.randn(3, 64, CHECKED_WIDTH, generator=generator)
    for dtype in checked_dtypes(device_type):
        gate, up, grad = drawn.to(device_type, dtype).unbind()
        leaves = gate.requires_grad_(), up.requires_grad_()
        value = _Era.apply(*leaves, 0.1, "triton")
        doubled = [each.detach().double().requires_grad_() for each in leaves]
        exact = reference_era_glu(*doubled, 0.1)
        check_agreement("era_glu", [value.detach()], [exact.detach()])
        found = torch.autograd.grad(value, leaves, grad)
        expected = torch.autograd.grad(exact, doubled, grad.double())
        check_agreement("era_glu", found, expected, GRADIENT_TOLERANCE)


class _Era(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, gamma, implementation):
        ctx.save_for_backward(gate, up)
        ctx.gamma, ctx.implementation = gamma, implementation
        if implementation == "triton":
            from kernels.era_triton import launch_forward

            return launch_forward(gate, up, gamma)
        return reference_era(gate, gamma).to(gate.dtype) if up is None else reference_era_glu(gate, up, gamma)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        if ctx.implementation == "triton":
            from kernels.era_triton import launch_backward

            return *launch_backward(grad, gate, up, ctx.gamma), None, None
        return *_torch_gradients(grad, gate, up, ctx.gamma), None, None


def _torch_gradients(
    grad: Tensor, gate: Tensor, up: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor | None]:
    wide_gate, wide_grad = _wide(gate), _wide(grad)
    grad_up, inner = None, wide_grad
    if up is not None:
        grad_up = reference_era(wide_gate, gamma).mul_(wide_grad).to(up.dtype)
        inner = wide_grad * _wide(up)
    bounded = wide_gate.clamp(-SATURATED, SATURATED)
    grad_gate = torch.ops.aten.gelu_backward(inner, bounded, approximate="tanh")
    grad_gate.addcmul_(inner, wide_gate.sigmoid(), value=gamma)
    return grad_gate.to(gate.dtype), grad_up


@torch.compiler.assume_constant_result
def _implementation(asked: Asked, device_type: str) -> str:
    return resolution(asked, device_type).implementation


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
