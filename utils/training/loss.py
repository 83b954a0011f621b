"""
From rows of ids to one exact number: targets, the head loss, and means over any split of the work.

The only shift of the project is `next_token_targets`: rows hold T + 1 ids, inputs are the first T, targets
the last T. Nothing here hands `labels` to a transformers model, whose loss would shift once more.

    sums = next_token_loss(model, batch)                     # LossSums: sums over targets, never means
    mean_loss(model, batches, precision=precision)           # what validation and stage 100 print

B rows, T input tokens, D width.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.linear_cross_entropy import (
    IGNORED,
    LossSums,
    Signals,
    kept_rows,
    linear_cross_entropy,
    row_entropy,
)
from kernels.resolution import Asked
from utils.training.attention import document_spans, whole_rows
from utils.training.precision import FP32, Precision
from utils.training.routing import add_routing, has_routers, recorded_routing


class Batch(Protocol):
    """
    Rows of ids [B, T + 1], as numpy or torch: tokens, document (-1 on padding), position (restarts with a
    document).
    """

    tokens: object
    document: object
    position: object


TOKENS = "tokens"


class Objective(Protocol):
    """What a step minimises: loss_sum / weight over the global batch; `unit` is what the weight counts."""

    unit: str

    def weigh(self, batch: Batch) -> float:
        """Weight of a batch (tokens, pairs), from its ids alone."""

    def trained(self, batch: Batch, device: torch.device | str = "cpu") -> Tensor:
        """True at the input positions [B, T] whose prediction is scored."""

    def __call__(self, model: nn.Module, batch: Batch) -> LossSums:
        """Sums over a batch."""


def next_token_targets(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """
    Inputs, targets and positions [B, T]; a target is -100 on padding and where its document is not its
    input's.
    """
    tokens, document, position = (
        on_device(column, device) for column in (batch.tokens, batch.document, batch.position)
    )
    tokens, position = tokens.long(), position.long()
    scored = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    targets = tokens[:, 1:].masked_fill(~scored, IGNORED)
    return tokens[:, :-1], targets, position[:, :-1]


def on_device(column: object, device: torch.device | str) -> Tensor:
    """A column of a batch, numpy or torch, where it is needed; from pinned memory without a wait."""
    return torch.as_tensor(column).to(device, non_blocking=True)


class HeadOptions(NamedTuple):
    """Whether the head also sums the entropy of its predictions, and which form of the kernel it uses."""

    with_entropy: bool = False
    kernel: Asked = "auto"


PLAIN_HEAD = HeadOptions()


class NextTokenLoss:
    """Cross-entropy of every target inside a document."""

    unit = TOKENS

    def __init__(self, head: HeadOptions = PLAIN_HEAD) -> None:
        self.head = head

    def weigh(self, batch: Batch) -> float:
        return float(self.trained(batch).sum())

    def trained(self, batch: Batch, device: torch.device | str = "cpu") -> Tensor:
        return next_token_targets(batch, device)[1] != IGNORED

    def __call__(self, model: nn.Module, batch: Batch) -> LossSums:
        device = device_of(model)
        inputs, targets, position = next_token_targets(batch, device)
        kept_K = scored_rows(self, batch, device)
        return head_loss(model, decoder_hidden(model, inputs, position), targets, None, self.head, kept_K)


next_token_loss = NextTokenLoss()


def decoder_hidden(model: nn.Module, inputs_BT: Tensor, position_BT: Tensor) -> Tensor:
    """
    Last hidden states [B, T, D]. Restarting positions keep documents of a row apart: no token sees another's.
    """
    decoder = causal_model(model).get_decoder()
    spans = document_spans(decoder, position_BT)
    return decoder(input_ids=inputs_BT, position_ids=position_BT, use_cache=False, **spans).last_hidden_state


def head_loss(
    model: nn.Module,
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    weights_BT: Tensor | None = None,
    options: HeadOptions = PLAIN_HEAD,
    kept_K: Tensor | None = None,
) -> LossSums:
    """
    Sums of w * nll and w over the targets that are not -100, and the same as signals; the chunked loss
    wherever the head is a plain matrix. `kept_K`, from `scored_rows`, spares a GPU the rows that count
    nothing.
    """
    head = causal_model(model).get_output_embeddings()
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    weights_N = None if weights_BT is None else weights_BT.flatten()
    if type(head) is nn.Linear and head.bias is None:
        sums = linear_cross_entropy(
            hidden_ND,
            head.weight,
            targets_N,
            weights_N,
            kept_K=kept_K,
            with_entropy=options.with_entropy,
            implementation=options.kernel,
        )
    else:
        sums = _loss_of_all_logits(head, hidden_ND, targets_N, weights_N, options.with_entropy)
    entropy_sum = math.nan if sums.entropy_sum is None else sums.entropy_sum
    return replace(sums, signals=Signals(sums.loss_sum.detach(), entropy_sum, sums.count))


def scored_rows(loss: Objective, batch: Batch, device: torch.device) -> Tensor | None:
    """
    Rows of the head worth computing, found where the ids still are on the host, and sent without a wait. None
    where that is nearly all, and where nobody need or can say without asking a GPU.
    """
    if device.type == "cpu" or torch.as_tensor(batch.tokens).device.type != "cpu":
        return None
    kept_K = kept_rows(loss.trained(batch).flatten())
    if kept_K is None:
        return None
    return on_device(kept_K.pin_memory() if device.type == "cuda" else kept_K, device)


def _loss_of_all_logits(
    head: nn.Module, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor | None, with_entropy: bool
) -> LossSums:
    """The same sums for a head that is more than a matrix."""
    scored = targets_N != IGNORED
    logits = head(hidden_ND[scored]).float()
    nll = F.cross_entropy(logits, targets_N[scored], reduction="none")
    weights = torch.ones_like(nll) if weights_N is None else weights_N[scored]
    entropy_sum = (row_entropy(logits) * weights).sum() if with_entropy else None
    return LossSums((nll * weights).sum(), weights.sum(dtype=torch.float64), entropy_sum=entropy_sum)


def token_nll(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, position_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target [B, T] in fp32, 0 where it is -100; differentiable."""
    return token_scores(model, inputs_BT, targets_BT, position_BT)[0]


def token_scores(
    model: nn.Module,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    position_BT: Tensor,
    with_entropy: bool = False,
) -> tuple[Tensor, Signals]:
    """token_nll, and what the predictions of the scored targets say."""
    head = causal_model(model).get_output_embeddings()
    scored = targets_BT != IGNORED
    logits = head(decoder_hidden(model, inputs_BT, position_BT)[scored]).float()
    nll = F.cross_entropy(logits, targets_BT[scored], reduction="none")
    entropy_sum = row_entropy(logits).sum(dtype=torch.float64) if with_entropy else math.nan
    signals = Signals(nll.detach().sum(dtype=torch.float64), entropy_sum, float(nll.numel()))
    return torch.zeros(targets_BT.shape, device=nll.device).masked_scatter(scored, nll), signals


class LossModel(nn.Module):
    """
    Model and objective as one module that returns scalars only: what is wrapped for several processes.

    Mixed precision is a region inside it, so no wrapper ever copies logits. While it trains, a model with
    experts gets the terms that balance them (utils/training/routing.py). With `documents` "full" a token
    sees everything before it in its row; what is scored stays the same.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Objective,
        precision: Precision,
        documents: Literal["isolated", "full"] = "isolated",
    ) -> None:
        super().__init__()
        self.model, self.loss, self.precision, self.documents = model, loss, precision, documents

    def forward(self, batch: Batch) -> LossSums:
        batch = whole_rows(batch) if self.documents == "full" else batch
        with self.precision.autocast():
            if not self.training or not self._watched():
                return self.loss(self.model, batch)
            return self._watch(batch)

    def _watched(self) -> bool:
        """Whether the model has a part that is told which tokens are real, or trained."""
        inner = causal_model(self.model)
        return has_routers(inner.config) or hasattr(inner, "counting")

    def _watch(self, batch: Batch) -> LossSums:
        inner, device = causal_model(self.model), device_of(self.model)
        counting = nullcontext()
        if hasattr(inner, "counting"):
            counting = inner.counting(self.loss.trained(batch, device))
        if not has_routers(inner.config):
            with counting:
                return self.loss(self.model, batch)
        with counting, recorded_routing(inner.get_decoder()) as passes:
            sums = self.loss(self.model, batch)
        real_BT = on_device(batch.document, device)[:, :-1] >= 0
        return add_routing(sums, passes, inner.config, real_BT.flatten())


@torch.no_grad()
def sum_losses(
    model: nn.Module, batches: Iterable[Batch], loss: Objective = next_token_loss, precision: Precision = FP32
) -> tuple[float, float]:
    """Loss sum and weight over `batches`, without dropout and without touching random state or gradients."""
    was_training = model.training
    evaluated = LossModel(model, loss, precision).eval()
    total = weight = 0.0
    for batch in batches:
        sums = evaluated(batch)
        total, weight = total + float(sums.loss_sum), weight + float(sums.count)
    model.train(was_training)
    return total, weight


def mean_loss(
    model: nn.Module, batches: Iterable[Batch], loss: Objective = next_token_loss, precision: Precision = FP32
) -> float:
    """
    Mean nats per scored target over `batches`; the one function behind validation in training and in
    evaluation.
    """
    total, weight = sum_losses(model, batches, loss, precision)
    return total / max(weight, 1.0)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's inputs belong."""
    return next(model.parameters()).device


def causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
