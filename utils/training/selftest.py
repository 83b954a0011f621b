"""
What a run proves about itself before its first update: it optimises what it says it does.

    check_alignment(model, loss, batch, precision)     loss = per-token NLL from plain logits on the same rows
    check_causality(model, batch)                      the last input changes no earlier output
    check_isolation(model, batch)                      changing one document changes no other
    check_initial_loss(loss, expected)                 from scratch: ln V + d s^2 / 2
    check_offset(model, batch)                         after some training: it predicts the next token

Each ends the stage with what was found. A shift made twice, a mask that leaks, or weights drawn at the wrong
scale would otherwise show as a slightly worse model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.pipeline.errors import StageError
from utils.training.attention import any_precision
from utils.training.loss import IGNORED, Batch, decoder_hidden, device_of, mean_loss, next_token_targets
from utils.training.precision import Precision

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
INITIAL_LOSS_TOLERANCE = 0.25
LEAK_TOLERANCE = 1e-4
OFFSET_TOLERANCE = 0.05


@torch.no_grad()
def check_alignment(model: nn.Module, batch: Batch, precision: Precision) -> float:
    """The loss that will be optimised against a direct computation from `model(...).logits`; returns it."""
    claimed = mean_loss(model, [batch], precision=precision)
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
    logits = model(input_ids=inputs, position_ids=position, use_cache=False).logits[:, :-1][whole].float()
    known = torch.log_softmax(logits, -1)
    blind = known.exp().mean(0).log()
    next_ids, later_ids = tokens[:, 1:-1][whole], tokens[:, 2:][whole]
    following, later = (-known.gather(1, ids[:, None]).mean() for ids in (next_ids, later_ids))
    gain = (-blind[later_ids].mean() - later) - (-blind[next_ids].mean() - following)
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
