"""
What FlyLoRA's adapters of linear layers and of experts share: the fixed sparse A, the choice of ranks per
token, and the offsets that even out how often each rank is chosen.

    columns, values = draw_sparse(config, inputs=768, generator=generator)       # both [r, p]
    chosen = choose_ranks(inner, offsets, config)                                # booleans, shape of inner
    rebalance(model, update.skipped)                                             # after an optimizer step

A score is |z_i| + d_i ("published": |z_i + d_i|); d_i rises by a small step whenever rank i was used less
than the mean of the step.

n inputs, r ranks, p non-zeros per row of A.
"""

import torch
from torch import Tensor, nn

from utils.config.adapter import AdapterConfig


def draw_sparse(config: AdapterConfig, inputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Columns (int32, sorted) and values N(0, 1/r^2) of the max(1, round(density n)) entries of each row."""
    rank, entries = config.num_ranks, max(1, round(config.row_density * inputs))
    rows = [torch.randperm(inputs, generator=generator, device="cpu")[:entries] for _ in range(rank)]
    values = torch.empty(rank, entries, device="cpu").normal_(0.0, 1 / rank, generator=generator)
    return torch.stack(rows).sort(dim=1).values.int(), values


@torch.no_grad()
def choose_ranks(inner: Tensor, offsets: Tensor, config: AdapterConfig) -> Tensor:
    """Which ranks each token uses, as booleans of the shape of z; ties go to the lower rank."""
    scores = inner.float()
    if config.score == "published":
        scores = (scores + offsets).abs()
    else:
        scores = scores.abs() + (offsets if config.score == "magnitude" else 0.0)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : config.num_active_ranks]
    return torch.zeros_like(inner, dtype=torch.bool).scatter(-1, best, True)


class ChoosesRanks(nn.Module):
    """
    A module with `columns`, `values` and `offsets` [..., r] as buffers, which stay fp32 when the model
    changes its dtype; training moves the offsets. `counts` are the selections since the last `rebalance`.
    """

    trained_buffers = ("offsets",)
    config: AdapterConfig

    def hold_ranks(self, columns: Tensor, values: Tensor, like: Tensor) -> None:
        """Register the buffers beside the weight `like`."""
        place = "cpu" if like.is_meta else like.device
        self.register_buffer("columns", columns.to(place))
        self.register_buffer("values", values.to(place))
        self.register_buffer("offsets", torch.zeros(values.shape[:-1], device=place))
        # not a buffer: each process counts its own rows, and checkpoints keep none of it
        self.counts: Tensor | None = None
        self.counted: Tensor | None = None

    def sparse_projection(self, inputs: int) -> Tensor:
        """A as a matrix [..., r, n]."""
        dense = torch.zeros(*self.values.shape[:-1], inputs, device=self.values.device)
        return dense.scatter(-1, self.columns.long(), self.values)

    @torch.no_grad()
    def add_counts(self, counts: Tensor) -> None:
        """Selections of one forward pass, in the shape of the offsets."""
        self.counts = counts if self.counts is None else self.counts + counts

    def _apply(self, function, recurse=True):
        kept = self.values, self.offsets
        super()._apply(function, recurse)
        if not self.values.is_meta:
            self.values, self.offsets = (each.to(self.values.device) for each in kept)
        return self


@torch.no_grad()
def rebalance(model: nn.Module, skipped: Tensor | None = None) -> None:
    """
    d_i += step sign(mean(c) - c_i), with c the selections in all processes since the last call. Where
    `skipped` (a boolean on the device) is True, d stays as it is: c may come from scores that are no numbers.
    """
    choosing = (layer for layer in model.modules() if isinstance(layer, ChoosesRanks))
    layers = [layer for layer in choosing if layer.counts is not None]
    if not layers:
        return
    counts = torch.cat([layer.counts.flatten() for layer in layers])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    for layer, found in zip(layers, counts.split([layer.counts.numel() for layer in layers]), strict=True):
        used = found.view_as(layer.offsets).double()
        change = layer.config.offset_step * (used.mean(-1, keepdim=True) - used).sign().float()
        layer.offsets += change if skipped is None else change.masked_fill(skipped, 0.0)
        layer.counts = None
