"""
From rows of ids to one exact number: targets, the head loss, and means over any split of the work.

The only shift of the project is `next_token_targets`: rows hold T + 1 ids, inputs are the first T, targets
the last T. Nothing here hands `labels` to a transformers model, whose loss would shift once more.

    sums = next_token_loss(model, batch)                     # LossSums: sums over targets, never means
    mean_loss(model, batches, precision=precision)           # what validation and stage 100 print

B rows, T input tokens, D width.
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.linear_cross_entropy import IGNORED, LossSums, linear_cross_entropy
from utils.training.precision import FP32, Precision


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

    def __call__(self, model: nn.Module, batch: Batch) -> LossSums:
        """Sums over a batch."""


def next_token_targets(batch: Batch, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """
    Inputs, targets and positions [B, T]; a target is -100 on padding and where its document is not its
    input's.
    """
    tokens = torch.as_tensor(batch.tokens, device=device).long()
    document = torch.as_tensor(batch.document, device=device)
    position = torch.as_tensor(batch.position, device=device).long()
    scored = (document[:, 1:] == document[:, :-1]) & (document[:, 1:] >= 0)
    targets = tokens[:, 1:].masked_fill(~scored, IGNORED)
    return tokens[:, :-1], targets, position[:, :-1]


class NextTokenLoss:
    """Cross-entropy of every target inside a document."""

    unit = TOKENS

    def weigh(self, batch: Batch) -> float:
        return float((next_token_targets(batch)[1] != IGNORED).sum())

    def __call__(self, model: nn.Module, batch: Batch) -> LossSums:
        inputs, targets, position = next_token_targets(batch, device_of(model))
        return head_loss(model, decoder_hidden(model, inputs, position), targets)


next_token_loss = NextTokenLoss()


def decoder_hidden(model: nn.Module, inputs_BT: Tensor, position_BT: Tensor) -> Tensor:
    """
    Last hidden states [B, T, D]. Restarting positions keep documents of a row apart: no token sees another's.
    """
    decoder = _causal_model(model).get_decoder()
    return decoder(input_ids=inputs_BT, position_ids=position_BT, use_cache=False).last_hidden_state


def head_loss(
    model: nn.Module, hidden_BTD: Tensor, targets_BT: Tensor, weights_BT: Tensor | None = None
) -> LossSums:
    """
    Sums of w * nll and w over the targets that are not -100; the chunked loss wherever the head is a plain
    matrix.
    """
    head = _causal_model(model).get_output_embeddings()
    hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
    weights_N = None if weights_BT is None else weights_BT.flatten()
    if type(head) is nn.Linear and head.bias is None:
        return linear_cross_entropy(hidden_ND, head.weight, targets_N, weights_N)
    scored = targets_N != IGNORED
    nll = F.cross_entropy(head(hidden_ND[scored]).float(), targets_N[scored], reduction="none")
    weights = torch.ones_like(nll) if weights_N is None else weights_N[scored]
    return LossSums((nll * weights).sum(), weights.sum(dtype=torch.float64))


def token_nll(model: nn.Module, inputs_BT: Tensor, targets_BT: Tensor, position_BT: Tensor) -> Tensor:
    """Negative log-likelihood of each target [B, T] in fp32, 0 where it is -100; differentiable."""
    head = _causal_model(model).get_output_embeddings()
    scored = targets_BT != IGNORED
    logits = head(decoder_hidden(model, inputs_BT, position_BT)[scored]).float()
    nll = F.cross_entropy(logits, targets_BT[scored], reduction="none")
    return torch.zeros(targets_BT.shape, device=nll.device).masked_scatter(scored, nll)


class LossModel(nn.Module):
    """
    Model and objective as one module that returns scalars only: what is wrapped for several processes.

    Mixed precision is a region inside it, so no wrapper ever copies logits.
    """

    def __init__(self, model: nn.Module, loss: Objective, precision: Precision) -> None:
        super().__init__()
        self.model, self.loss, self.precision = model, loss, precision

    def forward(self, batch: Batch) -> LossSums:
        with self.precision.autocast():
            return self.loss(self.model, batch)


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


def _causal_model(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
