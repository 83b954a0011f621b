"""
Rows for fine-tuning: whole conversations packed side by side, none cut, each seen once per epoch.

    packed = PackedConversations(dataset, plan, row_tokens=256)     # documents with masks; items of each row
    packed.rows([0, 7])                             # ConversationBatch(tokens, document, position, trained)
    loss = TrainedTokenLoss()

Positions restart with each document, so no document of a row sees another (S34). B rows, T tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import IGNORED, LossSums
from utils.training.loss import (
    PLAIN_HEAD,
    TOKENS,
    HeadOptions,
    decoder_hidden,
    device_of,
    head_loss,
    next_token_targets,
    on_device,
    scored_rows,
)


class ConversationBatch(NamedTuple):
    """Rows [B, T + 1] with `trained` u8: 1 where an id is a target."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray
    trained: np.ndarray


class Documents(Protocol):
    """Tokenized documents with masks."""

    lengths: np.ndarray
    num_documents: int

    def document(self, i: int) -> tuple[np.ndarray, np.ndarray]: ...


class Plan(Protocol):
    """Items of each row."""

    def __len__(self) -> int: ...

    def row(self, r: int) -> np.ndarray: ...


class PackedConversations:
    """Documents placed into rows by a plan made from their lengths."""

    def __init__(self, dataset: Documents, plan: Plan, row_tokens: int, pad: int = 0) -> None:
        self.dataset, self.plan, self.row_tokens, self.pad = dataset, plan, row_tokens, pad

    @property
    def num_rows(self) -> int:
        return len(self.plan)

    @property
    def sequence_length(self) -> int:
        """Input tokens per row."""
        return self.row_tokens

    @property
    def fill(self) -> float:
        """Share of the rows that is not padding."""
        return float(np.sum(self.dataset.lengths)) / (self.num_rows * (self.row_tokens + 1))

    def rows(self, indices: Sequence[int] | np.ndarray) -> ConversationBatch:
        return pack_documents(self, [self.plan.row(r).tolist() for r in indices])


def pack_documents(packed: "PackedConversations", rows: list[list[int]]) -> ConversationBatch:
    """The documents of each row side by side; `document` is their number in the dataset."""
    shape = (len(rows), packed.row_tokens + 1)
    tokens, document = np.full(shape, packed.pad, np.int64), np.full(shape, -1, np.int32)
    position, trained = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    for r, documents in enumerate(rows):
        start = 0
        for i in documents:
            ids, mask = packed.dataset.document(i)
            part = slice(start, start + len(ids))
            tokens[r, part], trained[r, part], document[r, part] = ids, mask, i
            position[r, part] = np.arange(len(ids))
            start += len(ids)
    return ConversationBatch(tokens, document, position, trained)


def read_draws(datasets: Sequence[PackedConversations], draws: NamedTuple) -> ConversationBatch:
    """The drawn rows (`dataset`, `row`) in their order."""
    parts = [datasets[d].rows([r]) for d, r in zip(draws.dataset, draws.row, strict=True)]
    return ConversationBatch(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def trained_targets(
    batch: ConversationBatch, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and positions [B, T] of the one shift, with targets -100 where they are not trained."""
    inputs, targets, position = next_token_targets(batch, device)
    trained = on_device(batch.trained[:, 1:], device).bool()
    return inputs, targets.masked_fill(~trained, IGNORED), position


class TrainedTokenLoss:
    """Cross-entropy of trained tokens only; the head runs on their positions alone (S35, S36)."""

    unit = TOKENS

    def __init__(self, head: HeadOptions = PLAIN_HEAD) -> None:
        self.head = head

    def weigh(self, batch: ConversationBatch) -> float:
        return float(self.trained(batch).sum())

    def trained(self, batch: ConversationBatch, device: torch.device | str = "cpu") -> Tensor:
        return trained_targets(batch, device)[1] != IGNORED

    def __call__(self, model: nn.Module, batch: ConversationBatch) -> LossSums:
        device = device_of(model)
        inputs, targets, position = trained_targets(batch, device)
        kept_K = scored_rows(self, batch, device)
        return head_loss(model, decoder_hidden(model, inputs, position), targets, None, self.head, kept_K)
