"""
What a run proves about itself before its first update: it optimises what it says it does.

    check_ids(model, batches, special_ids)             every id is one that model and tokenizer agree on
    check_alignment(model, loss, batch, precision)     loss = per-token NLL from plain logits on the same rows
    check_causality(model, batch)                      the last input changes no earlier output
    check_isolation(model, batch)                      changing one document changes no other
    check_initial_loss(loss, expected)                 from scratch: ln V + d s^2 / 2
    check_offset(model, batch)                         after some training: it predicts the next token

Each ends the stage with what was found. A shift made twice, a mask that leaks, or weights drawn at the wrong
scale would otherwise show as a slightly worse model.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.pipeline.errors import StageError
from utils.training.attention import any_precision
from utils.training.loss import (
    IGNORED,
    Batch,
    Objective,
    decoder_hidden,
    device_of,
    next_token_targets,
    sum_losses,
)
from utils.training.precision import Precision

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
INITIAL_LOSS_TOLERANCE = 0.25
LEAK_TOLERANCE = 1e-4
OFFSET_TOLERANCE = 0.05


def check_ids(model: nn.Module, batches: Iterable[Batch], special_ids: Mapping[str, int]) -> None:
    """Every id of the rows is one of the model's, whose special ids are the tokenizer's (-1: none)."""
    size = _vocab_size(model)
    for tokens in (np.asarray(batch.tokens) for batch in batches):
        if tokens.min() < 0 or tokens.max() >= size:
            found = f"{tokens.min()} to {tokens.max()}"
            raise StageError(f"self-test: a row has ids from {found}, the model knows 0 to {size - 1}")
    for name in ("bos", "eos", "pad"):
        found, expected = getattr(model.config, f"{name}_token_id"), special_ids.get(name, -1)
        if (-1 if found is None else found) != expected:
            raise StageError(f"self-test: {name} is {found} in the model, {expected} in the tokenizer")


@torch.no_grad()
def check_alignment(model: nn.Module, loss: Objective, batch: Batch, precision: Precision) -> float:
    """
    The loss per weight that will be optimised against a direct computation from `model(...).logits`; returns
    it.
    """
    claimed = sum_losses(model, [batch], loss, precision)[0] / max(loss.weigh(batch), 1.0)
    tokens = torch.as_tensor(batch.tokens, device=device_of(model)).long()
    _, targets, position = next_token_targets(batch, device_of(model))
    with any_precision(model):
        logits = model(input_ids=tokens[:, :-1], position_ids=position, use_cache=False).logits.float()
    following = tokens[:, 1:].masked_fill(targets == IGNORED, IGNORED)
    direct = float(F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=IGNORED))
    if not abs(claimed - direct) <= TOLERANCE[precision.name]:
        raise StageError(
            f"self-test: the loss is {claimed:.4f}, but predicting the next token costs {direct:.4f}"
        )
    return claimed


@torch.no_grad()
def check_causality(model: nn.Module, batch: Batch) -> None:
    """Changing the last input of every row must change no earlier hidden state."""
    inputs, _, position = next_token_targets(batch, device_of(model))
    changed = inputs.clone()
    changed[:, -1] = (changed[:, -1] + 1) % _vocab_size(model)
    before, after = (decoder_hidden(model, each, position)[:, :-1] for each in (inputs, changed))
    _refuse_leak(before, after, "the last input changes earlier outputs: attention sees the future")


@torch.no_grad()
def check_isolation(model: nn.Module, batch: Batch) -> bool:
    """
    Changing the first document of a row must change no later one; False when every row holds one document.
    """
    inputs, _, position = next_token_targets(batch, device_of(model))
    restarts = position == 0
    restarts[:, 0] = False
    row = int(restarts.any(1).int().argmax())
    if not restarts[row].any():
        return False
    end = int(restarts[row].int().argmax())
    inputs, position = inputs[row : row + 1], position[row : row + 1]
    changed = inputs.clone()
    changed[:, :end] = (changed[:, :end] + 1) % _vocab_size(model)
    before, after = (decoder_hidden(model, each, position)[:, end:] for each in (inputs, changed))
    _refuse_leak(
        before, after, "a document changes the outputs of the next one in its row: documents are not isolated"
    )
    return True


def check_initial_loss(loss: float, expected: float) -> None:
    """An untrained model must be as surprised as its initial weights say."""
    if not abs(loss - expected) <= INITIAL_LOSS_TOLERANCE:
        raise StageError(
            f"self-test: loss {loss:.3f} at step 0, expected {expected:.3f} within {INITIAL_LOSS_TOLERANCE}"
        )


@torch.no_grad()
def check_offset(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """
    Mean NLL of the next token and of the one after it, where both are of the same document.

    A model whose inputs or targets were shifted twice knows more of the second than of the first: its mean
    prediction, which knows nothing, gains more on it by looking at the context.
    """
    inputs, _, position = next_token_targets(batch, device_of(model))
    tokens = torch.as_tensor(batch.tokens, device=inputs.device).long()
    document = torch.as_tensor(batch.document, device=inputs.device)
    whole = (document[:, :-2] == document[:, 2:]) & (document[:, 2:] >= 0)
    nll, ids, predicted = [], [], torch.zeros((), device=inputs.device)
    for row, inside in enumerate(whole):  # the logits of one row at a time: all of them may be gigabytes
        given = {"input_ids": inputs[row : row + 1], "position_ids": position[row : row + 1]}
        logits = model(**given, use_cache=False).logits[0, :-1][inside]
        known = torch.log_softmax(logits.float(), -1)
        ids.append(torch.stack([tokens[row, 1:-1][inside], tokens[row, 2:][inside]], 1))
        nll.append(-known.gather(1, ids[-1]))
        predicted = predicted + known.exp().sum(0)
    informed, ids_N2 = torch.cat(nll).mean(0), torch.cat(ids)
    blind = -(predicted / len(ids_N2)).log()[ids_N2].mean(0)
    (following, later), gains = informed, blind - informed
    gain = gains[1] - gains[0]
    if later < following and gain > OFFSET_TOLERANCE:
        raise StageError(
            f"this model predicts the token after next ({later:.3f} nats, the next one {following:.3f}); "
            "inputs or targets are shifted twice"
        )
    return float(following), float(later)


def _refuse_leak(before: Tensor, after: Tensor, finding: str) -> None:
    worst = float((before - after).abs().max())
    if not worst <= LEAK_TOLERANCE:
        raise StageError(f"self-test: {finding} (largest difference {worst:.2g})")


def _vocab_size(model: nn.Module) -> int:
    return model.get_input_embeddings().num_embeddings
