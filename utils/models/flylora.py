"""
Low-rank adapters as part of a model: `dense` (LoRA, Hu 2021) and `fly` (FlyLoRA, Zou 2025, arXiv 2510.08396).

    dense   y = W x + s B A x                        A ~ U(+-1/sqrt(n)), B = 0 at the start, s = alpha / r
    fly     y = W x + s sum over S of B[:, i] z_i    z = A x, S = the k ranks with the largest score

The A of fly is frozen and sparse: p = max(1, round(density n)) entries from N(0, 1/r^2) at distinct random
places of each row. It is kept as columns and values outside the parameters. A score is |z_i| + d_i; the
offset d_i rises by a small step whenever rank i was used less than the mean in an optimizer step. Measured
with n 256, r 32, k 8 over 600 updates of inputs around a fixed mean: busiest rank over mean 3.34 -> 1.02.
"published" scores |z_i + d_i|, where a large d_i of either sign attracts: 3.34 -> 3.96 there.

Where W trains too and nothing is dropped, dense runs as one product with W' = W + s B A, and autograd finds
dW = dW', dB = s dW' A^T, dA = s B^T dW'.

    attach_adapters(model, AdapterConfig(kind="fly"), seed=0)      # after the initial weights are drawn
    with counted_selections(model, targets_BT != -100):            # the forward pass only
        loss = ...
    loss.backward(); optimizer.step(); rebalance(model)
    merge_adapters(model)                                          # dense, or fly with k = r

n inputs, m outputs, r ranks, k active ranks, p non-zeros per row.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.config.adapter import AdapterConfig
from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import unit_hash


class Adapter(nn.Linear):
    """
    A linear layer with an update of rank r on top: the weight keeps its name in the state dict, B is
    `lora_B` [m, r].
    """

    def __init__(self, linear: nn.Linear, config: AdapterConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.config = linear.weight, linear.bias, config
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, config.num_ranks))

    def projection(self) -> Tensor:
        """A as a matrix [r, n]."""
        raise NotImplementedError

    def merged_weight(self) -> Tensor:
        """W + s B A, added in fp32 (fp64 for fp64 weights) and rounded once."""
        high = torch.promote_types(self.weight.dtype, torch.float32)
        with torch.autocast(self.weight.device.type, enabled=False):
            update = self.lora_B.to(high) @ self.projection().to(high)
            return (self.weight.to(high) + self.config.scale * update).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, adapter={self.config.kind}, rank={self.config.num_ranks}"


class DenseAdapter(Adapter):
    """y = W x + s B A x, with A trained: `lora_A` [r, n]."""

    def __init__(self, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__(linear, config)
        bound = self.in_features**-0.5
        drawn = torch.empty(config.num_ranks, self.in_features, device="cpu")
        self.lora_A = nn.Parameter(drawn.uniform_(-bound, bound, generator=generator).to(self.weight))

    def projection(self) -> Tensor:
        return self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        if torch.is_grad_enabled() and self.weight.requires_grad and not dropout:
            return F.linear(x, self.merged_weight(), self.bias)
        inner = F.linear(F.dropout(x, dropout), self.lora_A)
        return F.linear(x, self.weight, self.bias) + F.linear(self.config.scale * inner, self.lora_B)


class FlyAdapter(Adapter):
    """
    y = W x + s sum of B[:, i] z_i over the k strongest ranks of each token.

    Buffers: `columns` int32 [r, p], `values` fp32 [r, p], `offsets` fp32 [r] (the d above); they stay fp32
    when the model changes its dtype; training moves the offsets. `counts` int64 [r] are the selections since
    the last `rebalance`.
    """

    trained_buffers = ("offsets",)

    def __init__(self, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__(linear, config)
        rank, inputs = config.num_ranks, self.in_features
        entries = max(1, round(config.row_density * inputs))
        rows = [torch.randperm(inputs, generator=generator, device="cpu")[:entries] for _ in range(rank)]
        values = torch.empty(rank, entries, device="cpu").normal_(0.0, 1 / rank, generator=generator)
        place = "cpu" if self.weight.is_meta else self.weight.device
        self.register_buffer("columns", torch.stack(rows).sort(dim=1).values.int().to(place))
        self.register_buffer("values", values.to(place))
        self.register_buffer("offsets", torch.zeros(rank, device=place))
        # not a buffer: each process counts its own rows, and DDP copies buffers from the first process
        self.counts: Tensor | None = None
        self.counted: Tensor | None = None

    def projection(self) -> Tensor:
        dense = torch.zeros(len(self.values), self.in_features, device=self.values.device)
        return dense.scatter(1, self.columns.long(), self.values)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.projection().to(x.dtype))
        if self.config.num_active_ranks < self.config.num_ranks:
            chosen = self.choose(inner)
            if self.counted is not None:
                self._count(chosen)
            inner = inner * chosen
        return F.linear(x, self.weight, self.bias) + F.linear(self.config.scale * inner, self.lora_B)

    @torch.no_grad()
    def choose(self, inner: Tensor) -> Tensor:
        """Which ranks each token uses, as booleans of the shape of z; ties go to the lower rank."""
        scores = inner.float()
        if self.config.score == "published":
            scores = (scores + self.offsets).abs()
        else:
            scores = scores.abs() + (self.offsets if self.config.score == "magnitude" else 0.0)
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.config.num_active_ranks]
        return torch.zeros_like(inner, dtype=torch.bool).scatter(-1, best, True)

    @torch.no_grad()
    def _count(self, chosen: Tensor) -> None:
        counts = (chosen & self.counted.unsqueeze(-1)).flatten(0, -2).sum(0)
        self.counts = counts if self.counts is None else self.counts + counts

    def _apply(self, function, recurse=True):
        kept = self.values, self.offsets
        super()._apply(function, recurse)
        if not self.values.is_meta:
            self.values, self.offsets = (each.to(self.values.device) for each in kept)
        return self


KINDS = {"dense": DenseAdapter, "fly": FlyAdapter}


def attach_adapters(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """
    Give every linear layer named in `targets` an adapter, in place; the model computes what it did before.

    Without `train_base` everything but the adapters is frozen. ConfigError for a target that names no linear
    layer, and for a model that has adapters already.
    """
    if next(adapters_of(model), None):
        raise ConfigError("the model has adapters already", fix="merge them first")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = {name.rpartition(".")[2] for name in linear}
    if missing := [target for target in config.targets if target not in names]:
        available = ", ".join(sorted(names))
        raise ConfigError(
            f'adapter.targets: no linear layer is called "{missing[0]}"', fix=f"available: {available}"
        )
    for name, module in linear.items():
        if name.rpartition(".")[2] in config.targets:
            generator = torch.Generator().manual_seed(unit_hash(f"adapter.{config.kind}", seed, name) >> 1)
            model.set_submodule(name, KINDS[config.kind](module, config, generator))
    if not config.train_base:
        freeze_base(model)


def freeze_base(model: nn.Module) -> None:
    """Let the adapters train and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("lora_A", "lora_B")))


def adapters_of(model: nn.Module) -> Iterator[Adapter]:
    """The adapted layers of a model, in its order."""
    return (module for module in model.modules() if isinstance(module, Adapter))


@contextmanager
def counted_selections(model: nn.Module, trained: Tensor) -> Iterator[None]:
    """
    Count which ranks the tokens where `trained` [...] is True use, in forward passes inside.

    Run the backward pass outside, so that activation checkpointing does not count again.
    """
    layers = [layer for layer in adapters_of(model) if isinstance(layer, FlyAdapter)]
    for layer in layers:
        layer.counted = trained
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = None


@torch.no_grad()
def rebalance(model: nn.Module) -> None:
    """d_i += step sign(mean(c) - c_i), with c the selections in all processes since the last call."""
    layers = [layer for layer in adapters_of(model) if getattr(layer, "counts", None) is not None]
    if not layers:
        return
    counts = torch.stack([layer.counts for layer in layers])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(counts)
    steps = (counts.double().mean(1, keepdim=True) - counts).sign().float()
    for layer, step in zip(layers, steps, strict=True):
        layer.offsets += layer.config.offset_step * step
        layer.counts = None


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """
    Replace every adapter by the plain linear layer that computes the same, in place.

    ConfigError for fly with k < r: its update depends on the token, so no matrix is equal to it.
    """
    for layer in adapters_of(model):
        active, rank = layer.config.num_active_ranks, layer.config.num_ranks
        if active < rank:
            raise ConfigError(
                f"adapter fly, {active} of {rank} ranks: depends on the token, cannot be merged",
                fix='use adapter "dense", or "fly" with active_ranks = rank',
            )
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapter):
            merged = layer.merged_weight()
            plain = nn.Linear(*layer.weight.T.shape, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)
            plain.bias = layer.bias
            model.set_submodule(name, plain)
