"""
The AdamW update with scalars that live on the device, for all tensors at once, in place.

With the clip factor c in g = c x gradient, and eta, b, beta2, wd, eps, the corrections and skip as numbers of
this step:

    p <- p (1 - eta wd)                             tensors that decay only
    m <- b m + (1 - b) g          v <- beta2 v + (1 - beta2) g^2
    p <- p - eta (m k1) / (sqrt(v) k2 + eps)        k1 = 1 / (1 - q_t), k2 = 1 / sqrt(1 - beta2^t)

q_t is the product of all b so far: the weights of an average whose b varies sum to 1 - q_t. skip != 0 leaves
every tensor bit-identical, and so does False in a tensor's mask, entry by entry. A master is the fp32 weight
behind a low-precision parameter, which is then its rounding. m and v are fp32 (fp64 for fp64 parameters).

    norm = gradient_norm(gradients)
    velvet_update(parameters, gradients, m, v, masters=masters, masks=masks, decay=decay, scalars=scalars)

Three forms of one equation: `reference` is the definition in plain torch; `stock` is torch's fused AdamW with
beta1 := b, lr := eta (1 - b^t) k1, weight_decay := wd eta / lr, grad_scale := 1 / c, step := t, which reads
the scalars on the host; `triton` is one launch per combination of dtypes. `stock` and `triton` leave tensors
that they cannot take (not contiguous; for `stock` also masks, masters, mixed dtypes) to `reference`. Contents
of the gradients are undefined afterwards.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels.resolution import Asked, Resolution, check_agreement, checked_dtypes, resolve_kernel

NORM_BLOCK = 4096

Implementation = Literal["reference", "stock", "triton"]


class UpdateScalars(NamedTuple):
    """The numbers of a step, each a float or a 0-dimensional tensor; the kernel scales nothing again."""

    eta: Tensor | float
    beta1: Tensor | float
    beta2: Tensor | float
    epsilon: Tensor | float
    weight_decay: Tensor | float
    first_correction: Tensor | float
    second_correction: Tensor | float
    clip: Tensor | float
    skip: Tensor | float
    step: Tensor | float

    def packed(self, device: torch.device | str) -> Tensor:
        """fp64 [10] on `device`: rounding 1 - beta2 to fp32 only after the subtraction matters."""
        as_fp64 = {"dtype": torch.float64, "device": device}
        return torch.stack(
            [
                each.to(**as_fp64) if isinstance(each, Tensor) else torch.full((), each, **as_fp64)
                for each in self
            ]
        )


class Slot(NamedTuple):
    """One parameter with everything that its update touches."""

    parameter: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    master: Tensor | None
    mask: Tensor | None
    decays: bool

    @property
    def flat(self) -> bool:
        """Whether kernels that address memory by element number may take it."""
        return all(each.is_contiguous() for each in self[:6] if each is not None)

    @property
    def plain(self) -> bool:
        """Whether torch's fused AdamW takes it."""
        if self.master is not None or self.mask is not None:
            return False
        return self.flat and len({each.dtype for each in self[:4]}) == 1


def velvet_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    *,
    masters: Sequence[Tensor | None],
    masks: Sequence[Tensor | None],
    decay: Sequence[bool],
    scalars: Tensor,
    implementation: Implementation,
) -> None:
    """Update parameters, moments and masters in place; `scalars` is an UpdateScalars.packed()."""
    columns = (parameters, gradients, first, second, masters, masks, decay)
    slots = [slot for slot in map(Slot, *columns) if slot.parameter.numel()]
    if implementation == "reference":
        _reference(slots, scalars)
    elif implementation == "stock":
        plain = [slot.plain for slot in slots]
        _stock([slot for slot, taken in zip(slots, plain, strict=True) if taken], scalars)
        _reference([slot for slot, taken in zip(slots, plain, strict=True) if not taken], scalars)
    else:
        from kernels.velvet_update_triton import launch_update

        launch_update([slot for slot in slots if slot.flat], scalars)
        _reference([slot for slot in slots if not slot.flat], scalars)


def gradient_norm(gradients: Sequence[Tensor], implementation: Implementation) -> Tensor:
    """Square root of the sum of all squares: fp32 within blocks of 4,096, fp64 across, in a fixed order."""
    filled = [each.contiguous().view(-1) for each in gradients if each.numel()]
    if not filled:
        return torch.zeros((), dtype=torch.float64, device=gradients[0].device if gradients else "cpu")
    if implementation == "triton":
        from kernels.velvet_update_triton import launch_square_sums

        return launch_square_sums(filled).double().sum().sqrt()
    return (
        torch.cat([norms for each in filled for norms in _block_norms(each)]).double().square().sum().sqrt()
    )


def resolution(asked: Asked, device_type: str) -> Resolution:
    """Which form runs on a device: `stock` where the resolution says torch."""
    return resolve_kernel("velvet_update", asked, device_type, self_check)


def implementation_for(asked: Asked, device_type: str) -> Implementation:
    """The form behind "auto", "torch" and "triton" on a device."""
    return "triton" if resolution(asked, device_type).implementation == "triton" else "stock"


@torch.no_grad()
def self_check(device_type: str) -> None:
    """
    ArithmeticError when Triton and the reference in fp64 disagree on 64 rows, in fp32 or behind parameters of
    16 bits.
    """
    generator = torch.Generator().manual_seed(0)
    scalars = UpdateScalars(1e-2, 0.9, 0.95, 1e-8, 0.1, 10.0, 20.0**0.5, 0.5, 0.0, 1.0).packed(device_type)
    drawn = [torch.randn(64, 128, generator=generator).to(device_type) for _ in range(3)]
    drawn.append(torch.rand(64, 128, generator=generator).to(device_type))
    rest = {"masks": [None], "decay": [True], "scalars": scalars}
    for dtype in checked_dtypes(device_type):
        weight, gradient, *moments = (each.clone() for each in drawn)
        parameter = weight if dtype == torch.float32 else weight.to(dtype)
        master, gradient = (None if parameter is weight else weight), gradient.to(dtype)
        exact = [each.double() for each in (weight, gradient, *moments)]
        norm = gradient_norm([gradient], "triton").float()
        check_agreement("gradient_norm", [norm], [gradient_norm(exact[1:2], "reference")])
        tensors = [[each] for each in (parameter, gradient, *moments)]
        velvet_update(*tensors, masters=[master], **rest, implementation="triton")
        velvet_update(*([each] for each in exact), masters=[None], **rest, implementation="reference")
        expected = exact[0], exact[0], *exact[2:]
        check_agreement("velvet_update", [parameter, weight, *moments], expected)


def _reference(slots: list[Slot], scalars: Tensor) -> None:
    eta, beta1, beta2, epsilon, weight_decay, k1, k2, clip, skip, _ = scalars.unbind()
    for slot in slots:
        weight = slot.parameter if slot.master is None else slot.master
        g = slot.gradient.to(slot.first.dtype) * clip
        m = slot.first * beta1 + g * (1 - beta1)
        v = slot.second * beta2 + g * g * (1 - beta2)
        moved = weight.to(m.dtype)
        moved = moved * (1 - eta * weight_decay) if slot.decays else moved
        moved = moved - eta * (m * k1) / (v.sqrt() * k2 + epsilon)
        keep = skip == 0 if slot.mask is None else (skip == 0) & slot.mask
        for target, value in ((slot.first, m), (slot.second, v), (weight, moved.to(weight.dtype))):
            target.copy_(torch.where(keep, value, target))
        if slot.master is not None:
            rounded = slot.master.to(slot.parameter.dtype)
            slot.parameter.copy_(torch.where(keep, rounded, slot.parameter))


def _stock(slots: list[Slot], scalars: Tensor) -> None:
    eta, beta1, beta2, epsilon, weight_decay, k1, _, clip, skip, step = scalars.tolist()
    if skip:
        return
    rate = eta * (1 - beta1**step) * k1
    kinds = sorted({(slot.parameter.dtype, slot.decays) for slot in slots}, key=str)
    for dtype, decays in kinds:
        chosen = [slot for slot in slots if (slot.parameter.dtype, slot.decays) == (dtype, decays)]
        device = chosen[0].parameter.device
        count = torch.full((), step, dtype=torch.float32, device=device)
        torch._fused_adamw_(
            *([slot[i] for slot in chosen] for i in range(4)),
            [],
            [count] * len(chosen),
            lr=rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay * eta / rate if decays and rate else 0.0,
            eps=epsilon,
            amsgrad=False,
            maximize=False,
            grad_scale=None if clip == 1 else torch.full((), 1 / clip, dtype=torch.float32, device=device),
        )


def _block_norms(flat: Tensor) -> list[Tensor]:
    """Norms of blocks of 4,096 elements, the last one shorter."""
    dtype = torch.promote_types(flat.dtype, torch.float32)
    whole = flat.numel() // NORM_BLOCK * NORM_BLOCK
    norms = []
    if whole:
        norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, NORM_BLOCK), dim=1, dtype=dtype))
    if whole < flat.numel():
        norms.append(torch.linalg.vector_norm(flat[whole:], dtype=dtype)[None])
    return norms
