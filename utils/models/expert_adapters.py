"""
Low-rank adapters on fused experts: every expert has its own, for each of its matrices that is named.

    dense   y = W_e x + s B_e A_e x
    fly     y = W_e x + s sum over S of B_e[:, i] z_i,  z = A_e x, S its strongest ranks in expert e

Rows come sorted by expert, so both products are grouped like those of the experts themselves
(kernels/moe.py). Where W trains too and nothing is dropped, dense is W_e + s B_e A_e, put together once per
pass instead. `utils.models.flylora` attaches, counts and merges them together with those of linear layers.

    experts.adapters["up_proj"] = DenseExperts(experts, "up_proj", config, generator)
    update_Mm = experts.adapters["up_proj"](x_Mn, Routed(offsets_E, token_M, "auto"))

E experts, M rows in sorted order, n inputs, m outputs, r ranks, p non-zeros per row of A.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.moe import grouped_linear
from kernels.resolution import Asked
from utils.config.adapter import AdapterConfig
from utils.models.ranks import ChoosesRanks, choose_ranks, draw_sparse


class Routed(NamedTuple):
    """Where each expert's rows end [E], the token of each row [M], and the form of the grouped products."""

    offsets_E: Tensor
    token_M: Tensor
    kernel: Asked


def expert_weight(experts: nn.Module, target: str) -> Tensor:
    """The matrices [E, m, n] that `target` means, as a view of the fused parameter."""
    if target == "down_proj":
        return experts.down_proj
    inner = experts.gate_up_proj.shape[1] // 2
    return experts.gate_up_proj[:, :inner] if target == "gate_proj" else experts.gate_up_proj[:, inner:]


def folded(weight: Tensor, lora_B: Tensor, lora_A: Tensor, scale: float) -> Tensor:
    """
    W + s B A of one matrix [m, n] or of every expert's [E, m, n], added in fp32 (fp64 for fp64 weights) and
    rounded once to the dtype of W.
    """
    high = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(weight.device.type, enabled=False):
        update = lora_B.to(high) @ lora_A.to(high)
        return (weight.to(high) + scale * update).to(weight.dtype)


class ExpertAdapter(nn.Module, ABC):
    """The update of one matrix of every expert; B is `lora_B` [E, m, r], zero at the start."""

    def __init__(self, experts: nn.Module, target: str, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        weight = expert_weight(experts, target)
        self.num_experts, outputs, self.num_inputs = weight.shape
        self.lora_B = nn.Parameter(weight.new_zeros(self.num_experts, outputs, config.num_ranks))

    @abstractmethod
    def projection(self) -> Tensor:
        """A of every expert [E, r, n]."""

    @property
    def is_plain_sum(self) -> bool:
        """Whether this pass is no more than the product with W + s B A."""
        return self.config.kind == "dense" and not (self.training and self.config.dropout)

    def forward(self, x_Mn: Tensor, rows: Routed) -> Tensor:
        """What is added to the product of each row with its expert's matrix, [M, m]."""
        dropout = self.config.dropout if self.training else 0.0
        inner_Mr = grouped_linear(F.dropout(x_Mn, dropout), self.projection(), rows.offsets_E, rows.kernel)
        return grouped_linear(
            self.config.scale * self.kept(inner_Mr, rows), self.lora_B, rows.offsets_E, rows.kernel
        )

    def kept(self, inner_Mr: Tensor, rows: Routed) -> Tensor:
        """z without the ranks that a row does not use."""
        return inner_Mr

    def merged(self, weight_Emn: Tensor) -> Tensor:
        """W + s B A of every expert."""
        return folded(weight_Emn, self.lora_B, self.projection(), self.config.scale)

    @torch.no_grad()
    def fold_into(self, weight_Emn: Tensor) -> None:
        """Add s B A to the weights in place."""
        weight_Emn.copy_(self.merged(weight_Emn))


class DenseExperts(ExpertAdapter):
    """LoRA of every expert: `lora_A` [E, r, n] trains as well."""

    def __init__(
        self, experts: nn.Module, target: str, config: AdapterConfig, generator: torch.Generator
    ) -> None:
        super().__init__(experts, target, config)
        self.lora_A = nn.Parameter(self.draw(generator).to(self.lora_B))

    def draw(self, generator: torch.Generator) -> Tensor:
        """The initial A of every expert, on the CPU."""
        bound = self.num_inputs**-0.5
        drawn = torch.empty(self.num_experts, self.config.num_ranks, self.num_inputs, device="cpu")
        return drawn.uniform_(-bound, bound, generator=generator)

    def projection(self) -> Tensor:
        return self.lora_A


class FlyExperts(ExpertAdapter, ChoosesRanks):
    """FlyLoRA of every expert: `columns` and `values` [E, r, p], `offsets` [E, r]."""

    def __init__(
        self, experts: nn.Module, target: str, config: AdapterConfig, generator: torch.Generator
    ) -> None:
        super().__init__(experts, target, config)
        drawn = [draw_sparse(config, self.num_inputs, generator) for _ in range(self.num_experts)]
        self.hold_ranks(*(torch.stack(each) for each in zip(*drawn, strict=True)), like=self.lora_B)

    def projection(self) -> Tensor:
        return self.sparse_projection(self.num_inputs)

    def kept(self, inner_Mr: Tensor, rows: Routed) -> Tensor:
        if self.config.num_active_ranks == self.config.num_ranks:
            return inner_Mr
        places_M = torch.arange(len(inner_Mr), dtype=rows.offsets_E.dtype, device=inner_Mr.device)
        expert_M = torch.searchsorted(rows.offsets_E, places_M, right=True)
        chosen_Mr = choose_ranks(inner_Mr, self.offsets[expert_M], self.config)
        if self.counted is not None:
            real_M1 = self.counted.flatten()[rows.token_M].unsqueeze(1)
            counts_Er = torch.zeros_like(self.offsets, dtype=torch.int64)
            self.add_counts(counts_Er.index_add(0, expert_M, (chosen_Mr & real_M1).long()))
        return inner_Mr * chosen_Mr


EXPERT_KINDS = {"dense": DenseExperts, "fly": FlyExperts}
