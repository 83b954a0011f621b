"""
Greedy answers to many prompts at once, for evaluation and for the gates of stage 120.

Prompts of similar length share a batch, padded on the left; a batch is bounded by its tokens and shrinks as
answers end.

    greedy_answers(model, prompts, max_tokens=64, stop_ids={2, 5})[0].ids
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass
class Answer:
    """
    New token ids, the stop id included when there is one, and the distance of the two best logits at
    each.
    """

    ids: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    stopped: bool = False


def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop_ids: set[int] | frozenset[int],
    batch_tokens: int = 16_384,
    stopping: Callable[[], bool] = lambda: False,
) -> list[Answer]:
    """
    The likeliest continuation of each prompt, at most `max_tokens` long and never past the model's
    context. Once `stopping`, nothing is added any more.
    """
    answers = [Answer() for _ in prompts]
    for batch in _batches(prompts, max_tokens, batch_tokens, model.config.max_position_embeddings):
        _answer_batch(model, prompts, batch, answers, max_tokens, stop_ids, stopping)
    return answers


def _batches(
    prompts: Sequence[Sequence[int]], max_tokens: int, batch_tokens: int, context_tokens: int
) -> Iterator[list[int]]:
    """Indices of prompts that leave room for an answer, shortest first, in batches within the bound."""
    batch: list[int] = []
    for index in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if len(prompts[index]) >= context_tokens:
            continue
        if batch and (len(batch) + 1) * (len(prompts[index]) + max_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _answer_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    batch: list[int],
    answers: list[Answer],
    max_tokens: int,
    stop_ids: set[int] | frozenset[int],
    stopping: Callable[[], bool],
) -> None:
    import torch

    width = max(len(prompts[index]) for index in batch)
    room = [min(max_tokens, model.config.max_position_embeddings - len(prompts[index])) for index in batch]
    padding = [width - len(prompts[index]) for index in batch]
    rows = [[0] * pad + list(map(int, prompts[index])) for pad, index in zip(padding, batch, strict=True)]
    tokens = torch.tensor(rows, device=model.device)
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=model.device)
    running, cache = list(zip(batch, room, strict=True)), None
    while not stopping():
        logits, cache = _step(model, tokens, mask, cache)
        best = logits.topk(2, dim=-1)
        for row, (index, _) in enumerate(running):
            answers[index].ids.append(int(best.indices[row, 0]))
            answers[index].gaps.append(float(best.values[row, 0] - best.values[row, 1]))
            answers[index].stopped = answers[index].ids[-1] in stop_ids
        keep = [
            row
            for row, (index, limit) in enumerate(running)
            if not answers[index].stopped and len(answers[index].ids) < limit
        ]
        if not keep:
            return
        tokens = best.indices[:, :1]
        if len(keep) < len(running):
            kept = torch.tensor(keep, device=model.device)
            running = [running[row] for row in keep]
            tokens, mask = tokens[kept], mask[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)


def _step(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, cache: object
) -> tuple[torch.Tensor, object]:
    """Logits [rows, vocabulary] after the last column, positions counted from each row's first real token."""
    import torch

    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    return output.logits[:, -1].float(), output.past_key_values
