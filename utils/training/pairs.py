"""
Rows and objective for preference training: both sides of a pair share a row, log-probabilities are summed.

    packed = PackedPairs(dataset, plan, row_tokens=256)         # documents 2k and 2k + 1: the sides of pair k
    objective = PreferenceObjective(partial(dpo_loss, beta=0.1), adapter_off_reference)
    answer_logps(model, packed.rows([0]))                       # [P, 2]: chosen, rejected

P pairs, B rows, T tokens.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import IGNORED, LossSums, Signals
from utils.training.conversations import PackedConversations, pack_documents, trained_targets
from utils.training.loss import device_of, token_scores


class PairBatch(NamedTuple):
    """
    Rows [B, T + 1] of pairs; documents are numbered within the batch, 2k chosen and 2k + 1 rejected.

    `reference` holds the reference's log-probabilities [P, 2], NaN where nobody has computed them.
    """

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray
    trained: np.ndarray
    index: np.ndarray
    reference: np.ndarray


class PairTerms(Protocol):
    """What a method returns, per pair [P]."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class PackedPairs(PackedConversations):
    """Pairs placed into rows by a plan made from the lengths of both sides together."""

    reference: np.ndarray | None = None
    """Log-probabilities of the reference for all pairs of the dataset, float64 [pairs, 2]."""

    @property
    def num_pairs(self) -> int:
        return self.dataset.num_documents // 2

    def rows(self, indices: Iterable[int]) -> PairBatch:
        pairs = [self.plan.row(r).tolist() for r in indices]
        packed = pack_documents(
            self, [[side for pair in row for side in (2 * pair, 2 * pair + 1)] for row in pairs]
        )
        index = np.array([pair for row in pairs for pair in row], np.int64)
        numbers = {
            document: n for n, document in enumerate((2 * index[:, None] + [0, 1]).ravel().tolist())
        } | {-1: -1}
        values, places = np.unique(packed.document, return_inverse=True)
        document = np.array([numbers[value] for value in values.tolist()], np.int32)[places].reshape(
            packed.document.shape
        )
        known = np.full((len(index), 2), np.nan) if self.reference is None else self.reference[index]
        return PairBatch(packed.tokens, document, packed.position, packed.trained, index, known)


def pair_lengths(lengths: np.ndarray) -> np.ndarray:
    """Ids of both sides of each pair together."""
    return lengths[0::2] + lengths[1::2]


def read_pair_draws(datasets: list[PackedPairs], draws: NamedTuple) -> PairBatch:
    """The drawn rows (`dataset`, `row`) in their order, documents numbered through."""
    parts = [datasets[d].rows([r]) for d, r in zip(draws.dataset, draws.row, strict=True)]
    firsts = np.cumsum([0] + [2 * len(part.index) for part in parts[:-1]])
    shifted = [
        part._replace(document=np.where(part.document < 0, -1, part.document + first))
        for part, first in zip(parts, firsts, strict=True)
    ]
    return PairBatch(*(np.concatenate(columns) for columns in zip(*shifted, strict=True)))


def answer_logps(model: nn.Module, batch: PairBatch) -> Tensor:
    """Summed log-probability of each answer [P, 2] in float64, end-of-turn included."""
    return score_answers(model, batch)[0]


def score_answers(model: nn.Module, batch: PairBatch, with_entropy: bool = False) -> tuple[Tensor, Signals]:
    """Log-probabilities of the answers [P, 2], and what the predictions of their tokens say."""
    inputs, targets, position = trained_targets(batch, device_of(model))
    nll_BT, signals = token_scores(model, inputs, targets, position, with_entropy)
    document = torch.as_tensor(batch.document[:, 1:], device=nll_BT.device).long()
    inside = document >= 0
    sums = torch.zeros(2 * len(batch.index), dtype=torch.float64, device=nll_BT.device)
    return sums.index_add(0, document[inside], -nll_BT[inside].double()).view(-1, 2), signals


@torch.no_grad()
def all_answer_logps(
    model: nn.Module, packed: PackedPairs, rows_per_batch: int, stop_point: Callable[[], None] = lambda: None
) -> np.ndarray:
    """
    Log-probabilities of every pair of a dataset, float64 [pairs, 2], without dropout. `stop_point` may raise
    between two batches.
    """
    was_training = model.training
    model.eval()
    logps = np.empty((packed.num_pairs, 2))
    for start in range(0, packed.num_rows, rows_per_batch):
        stop_point()
        batch = packed.rows(range(start, min(start + rows_per_batch, packed.num_rows)))
        logps[batch.index] = answer_logps(model, batch).cpu().numpy()
    model.train(was_training)
    return logps


@torch.no_grad()
def held_out_logps(
    model: nn.Module, batches: Iterable[PairBatch], reference: Callable[[nn.Module, PairBatch], Tensor]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of model and reference over fixed pairs, each float64 [P, 2], without dropout."""
    was_training = model.training
    model.eval()
    rows = [(answer_logps(model, batch), reference(model, batch)) for batch in batches]
    model.train(was_training)
    policy, other = (torch.cat(column).cpu().numpy() for column in zip(*rows, strict=True))
    return policy, other


def cached_reference(model: nn.Module, batch: PairBatch) -> Tensor:
    """The log-probabilities that came with the batch."""
    return torch.as_tensor(batch.reference, device=device_of(model))


def adapter_off_reference(model: nn.Module, batch: PairBatch) -> Tensor:
    """The log-probabilities of the model without its adapter, computed now."""
    with torch.no_grad(), model.disable_adapter():
        return answer_logps(model, batch)


class PreferenceObjective:
    """The sum of a pair loss over a batch; `weigh` counts pairs. Measurements are extras, logged per pair."""

    unit = "pairs"

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], PairTerms],
        reference: Callable[[nn.Module, PairBatch], Tensor],
        with_entropy: bool = False,
    ) -> None:
        self.loss, self.reference, self.with_entropy = loss, reference, with_entropy

    def weigh(self, batch: PairBatch) -> float:
        return float(len(batch.index))

    def trained(self, batch: PairBatch, device: torch.device | str = "cpu") -> Tensor:
        return trained_targets(batch, device)[1] != IGNORED

    def __call__(self, model: nn.Module, batch: PairBatch) -> LossSums:
        reference = self.reference(model, batch)
        lp, signals = score_answers(model, batch, self.with_entropy)
        terms = self.loss(lp, reference)
        extras = {
            "margin": (terms.chosen_reward - terms.rejected_reward).sum(),
            "accuracy": (terms.chosen_reward > terms.rejected_reward).double().sum(),
            "chosen_drop": (reference - lp.detach())[:, 0].sum(),
        }
        count = torch.tensor(float(len(terms.loss)), dtype=torch.float64)
        return LossSums(terms.loss.sum(), count, extras, signals=signals)
