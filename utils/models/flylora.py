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
dW = dW', dB = s dW' A^T, dA = s B^T dW'. W' is made anew in every forward pass: for N tokens that is r / N of
the product's own work, and keeping it for a step would hide W, A and B from DDP, FSDP2 and checkpointing.

    attach_adapters(model, AdapterConfig(kind="fly"), seed=0)      # after the initial weights are drawn
    with counted_selections(model, targets_BT != -100):            # the forward pass only
        loss = ...
    loss.backward(); optimizer.step(); rebalance(model)
    merge_adapters(model)                                          # dense, or fly with k = r

n inputs, m outputs, r ranks, k active ranks, p non-zeros per row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.config.adapter import AdapterConfig
from utils.models.expert_adapters import EXPERT_KINDS, ExpertAdapter, expert_weight, folded
from utils.models.presets import EXPERT_TARGETS
from utils.models.ranks import ChoosesRanks, choose_ranks, draw_sparse
from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import unit_hash

ADAPTER_PARAMETERS = ("lora_A", "lora_B")


class Adapter(nn.Linear, ABC):
    """
    A linear layer with an update of rank r on top: the weight keeps its name in the state dict, B is
    `lora_B` [m, r].
    """

    def __init__(self, linear: nn.Linear, config: AdapterConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias, self.config = linear.weight, linear.bias, config
        self.lora_B = nn.Parameter(self.weight.new_zeros(self.out_features, config.num_ranks))

    @abstractmethod
    def projection(self) -> Tensor:
        """A as a matrix [r, n]."""

    def merged_weight(self) -> Tensor:
        """W + s B A [m, n]."""
        return folded(self.weight, self.lora_B, self.projection(), self.config.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, adapter={self.config.kind}, rank={self.config.num_ranks}"


class DenseAdapter(Adapter):
    """y = W x + s B A x, with A trained: `lora_A` [r, n]."""

    def __init__(self, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__(linear, config)
        self.lora_A = nn.Parameter(self.draw(generator).to(self.weight))

    def draw(self, generator: torch.Generator) -> Tensor:
        """The initial A, on the CPU."""
        bound = self.in_features**-0.5
        drawn = torch.empty(self.config.num_ranks, self.in_features, device="cpu")
        return drawn.uniform_(-bound, bound, generator=generator)

    def projection(self) -> Tensor:
        return self.lora_A

    def forward(self, x: Tensor) -> Tensor:
        dropout = self.config.dropout if self.training else 0.0
        if torch.is_grad_enabled() and self.weight.requires_grad and not dropout:
            return F.linear(x, self.merged_weight(), self.bias)
        inner = F.linear(F.dropout(x, dropout), self.lora_A)
        return F.linear(x, self.weight, self.bias) + F.linear(self.config.scale * inner, self.lora_B)


class FlyAdapter(Adapter, ChoosesRanks):
    """
    y = W x + s sum of B[:, i] z_i over the k strongest ranks of each token.

    Buffers: `columns` int32 [r, p], `values` fp32 [r, p], `offsets` fp32 [r] (the d above).
    """

    def __init__(self, linear: nn.Linear, config: AdapterConfig, generator: torch.Generator) -> None:
        super().__init__(linear, config)
        self.hold_ranks(*draw_sparse(config, self.in_features, generator), like=self.weight)

    def projection(self) -> Tensor:
        return self.sparse_projection(self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.projection().to(x.dtype))
        if self.config.num_active_ranks < self.config.num_ranks:
            chosen = choose_ranks(inner, self.offsets, self.config)
            if self.counted is not None:
                self.add_counts((chosen & self.counted.unsqueeze(-1)).flatten(0, -2).sum(0))
            inner = inner * chosen
        return F.linear(x, self.weight, self.bias) + F.linear(self.config.scale * inner, self.lora_B)


KINDS = {"dense": DenseAdapter, "fly": FlyAdapter}


def attach_adapters(model: nn.Module, config: AdapterConfig, seed: int) -> None:
    """
    Give every linear layer, and every expert's matrix, named in `targets` an adapter, in place; the model
    computes what it did before.

    Without `train_base` everything but the adapters is frozen. ConfigError for a target that names no linear
    layer, and for a model that has adapters already.
    """
    if next(adapters_of(model), None):
        raise ConfigError("the model has adapters already", fix="merge them first")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    fused = dict(fused_experts(model))
    names = {name.rpartition(".")[2] for name in linear} | set(EXPERT_TARGETS if fused else ())
    if missing := [target for target in config.targets if target not in names]:
        available = ", ".join(sorted(names))
        raise ConfigError(
            f'adapter.targets: no linear layer is called "{missing[0]}"', fix=f"available: {available}"
        )

    for name, module in linear.items():
        if name.rpartition(".")[2] in config.targets:
            model.set_submodule(name, KINDS[config.kind](module, config, _generator(config, seed, name)))
    for name, experts in fused.items():
        for target in sorted(set(config.targets) & set(EXPERT_TARGETS)):
            generator = _generator(config, seed, f"{name}.{target}")
            experts.adapters[target] = EXPERT_KINDS[config.kind](experts, target, config, generator)
    if not config.train_base:
        freeze_base(model)


def _generator(config: AdapterConfig, seed: int, name: str) -> torch.Generator:
    """What the adapter of a linear layer, or of an expert's matrix, is drawn by."""
    return torch.Generator().manual_seed(unit_hash(f"adapter.{config.kind}", seed, name) >> 1)


def initial_adapters(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
    """
    Name and value of every parameter that `attach_adapters` adds, whole and on the CPU, one at a time; what
    fly draws are buffers, which every process has.
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, Adapter | ExpertAdapter):
            continue
        yield f"{name}.lora_B", torch.zeros(layer.lora_B.shape)
        if layer.config.kind == "dense":
            generator = _generator(layer.config, seed, name.replace(".adapters.", "."))
            yield f"{name}.lora_A", layer.draw(generator)


def train_adapters(
    model: nn.Module, config: AdapterConfig | None, seed: int, token_rows: Sequence[int] = ()
) -> nn.Module:
    """
    The model with its own adapters trainable: new ones of `config`, or those that it has. Where they do not
    train the base too, the embedding rows `token_rows` train with them.

    ConfigError for a model that cannot have any, and for a new adapter on old ones.
    """
    if not hasattr(model, "adapt"):
        raise ConfigError(
            f'mode "adapter" needs a VesperLM; this model is a {model.config.model_type}',
            fix='use "mode": "lora"',
        )
    if config is not None:
        model.adapt(config, seed)
    found = next(adapters_of(model), None)
    if found is None:
        raise ConfigError(
            "the model has no adapters of its own", fix='say which: "adapter": {"kind": "dense"}'
        )
    if found.config.train_base:
        return model.requires_grad_(True)
    freeze_base(model)
    if token_rows:
        train_rows(model.get_input_embeddings(), token_rows)
    return model


def train_rows(embedding: nn.Embedding, rows: Sequence[int]) -> None:
    """Let some rows of a frozen embedding train: the others never see a gradient other than zero."""
    chosen = torch.tensor(sorted(rows))

    def only_chosen(gradient: Tensor) -> Tensor:
        places = chosen.to(gradient.device)
        return torch.zeros_like(gradient).index_copy(0, places, gradient[places])

    embedding.weight.requires_grad_(True).register_hook(only_chosen)


def freeze_base(model: nn.Module) -> None:
    """Let the adapters train and nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(ADAPTER_PARAMETERS))


def adapters_of(model: nn.Module) -> Iterator[Adapter | ExpertAdapter]:
    """The adapters of a model, in its order."""
    return (module for module in model.modules() if isinstance(module, Adapter | ExpertAdapter))


def fused_experts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose experts take adapters: those with a dictionary for them."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "adapters", None), nn.ModuleDict):
            yield name, module


@contextmanager
def counted_selections(model: nn.Module, trained: Tensor) -> Iterator[None]:
    """
    Count which ranks the tokens where `trained` [...] is True use, in forward passes inside.

    Run the backward pass outside, so that activation checkpointing does not count again.
    """
    layers = [layer for layer in adapters_of(model) if isinstance(layer, ChoosesRanks)]
    for layer in layers:
        layer.counted = trained
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = None


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """
    Fold every adapter into the plain weights that compute the same, in place.

    ConfigError for fly with k < r: its update depends on the token, so no matrix is equal to it.
    """
    for layer in adapters_of(model):
        active, rank = layer.config.num_active_ranks, layer.config.num_ranks
        if active < rank:
            raise ConfigError(
                f"adapter fly, {active} of {rank} ranks: depends on the token, cannot be merged",
                fix='train "dense", or "fly" with active_ranks = rank; or run the checkpoint as it is',
            )
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapter):
            merged = layer.merged_weight()
            plain = nn.Linear(*layer.weight.T.shape, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(merged, requires_grad=layer.weight.requires_grad)
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    for _, experts in fused_experts(model):
        for target, adapter in experts.adapters.items():
            adapter.fold_into(expert_weight(experts, target))
        experts.adapters.clear()
