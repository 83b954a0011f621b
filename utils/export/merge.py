"""
Fold an adapter into the weights of its base, and measure that the merged model is the adapted one.

    merged = merge_adapter(adapted)                              # PeftModel or VesperLM -> plain model
    parity(reference_logits, merged_logits).mean_kl              # about 1e-12 in float32

The reference logits are taken before merging (merging changes the base in place), the others from the written
files, so rounding to the output type and damage while saving are measured too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.pipeline.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_LOGIT_DIFFERENCE_FP32 = 1e-4
MAX_LOGITS = 1 << 26  # logits kept for a comparison: 256 MiB of fp32
ROWS_AT_ONCE = 512  # tokens whose distributions are in memory as float64


@dataclass(frozen=True)
class Parity:
    """Merged against adapted, over all tokens of the compared sequences."""

    max_logit_difference: float
    mean_kl: float
    top1_agreement: float
    tokens: int


def has_own_adapters(folder: Path) -> bool:
    """Whether the model in `folder` has low-rank adapters as a part of itself."""
    path = folder / "config.json"
    return path.is_file() and bool(json.loads(path.read_text(encoding="utf-8")).get("adapter"))


def merge_adapter(adapted: object) -> PreTrainedModel:
    """
    The model with its adapters folded in, every weight finite. Changes `adapted` in place.

    ConfigError for adapters of which each token uses some ranks only.
    """
    import torch

    try:
        merged = _folded(adapted)
    except ValueError as error:
        raise StageError(
            f"the adapter does not merge: {error}", fix="look at the training curves of the adapter"
        ) from None
    broken = [name for name, weight in merged.state_dict().items() if not torch.isfinite(weight).all()]
    if broken:
        raise StageError(
            f"{len(broken)} merged tensors hold NaN or infinity, first {broken[0]}",
            fix="train the adapter again with a smaller learning rate",
        )
    return merged


def _folded(adapted: object) -> PreTrainedModel:
    if hasattr(adapted, "merge_and_unload"):
        return adapted.merge_and_unload(safe_merge=True)
    adapted.merge_adapters()
    return adapted


def within_memory(sequences: Sequence[Sequence[int]], vocab_size: int) -> list[Sequence[int]]:
    """The first sequences (at least one) whose logits stay below MAX_LOGITS."""
    kept: list[Sequence[int]] = []
    tokens = 0
    for ids in sequences:
        tokens += len(ids)
        if kept and tokens * vocab_size > MAX_LOGITS:
            break
        kept.append(ids)
    return kept


def sequence_logits(model: PreTrainedModel, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """fp32 logits of all positions of the sequences, joined: [tokens, vocabulary]."""
    import torch

    rows = []
    with torch.inference_mode():
        for ids in sequences:
            tokens = torch.tensor([list(map(int, ids))], device=model.device)
            rows.append(model(input_ids=tokens, use_cache=False).logits[0].float().cpu().numpy())
    return np.concatenate(rows)


def parity(reference: np.ndarray, found: np.ndarray) -> Parity:
    """Differences of logits [tokens, vocabulary]; KL(reference || found) in nats."""
    return Parity(
        max_logit_difference=float(np.abs(found - reference).max()),
        mean_kl=float(divergence(reference, found).mean()),
        top1_agreement=float((reference.argmax(-1) == found.argmax(-1)).mean()),
        tokens=len(reference),
    )


def divergence(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(reference || found) of each position, in nats, from logits [tokens, vocabulary]."""
    pieces = []
    for start in range(0, len(reference), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        p, q = log_softmax(reference[rows]), log_softmax(found[rows])
        pieces.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(pieces)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def require_parity(measured: Parity, dtype: str, max_mean_kl: float) -> None:
    """StageError when merging or rounding moved the model further than allowed."""
    if measured.mean_kl > max_mean_kl:
        raise StageError(
            f"the merged model differs from base plus adapter: mean KL {measured.mean_kl:.2e} nats "
            f"(limit {max_mean_kl:g}), top-1 agreement {measured.top1_agreement:.4f}",
            fix='write "dtype": "float32", or raise verify.max_mean_kl',
        )
    if dtype == "float32" and measured.max_logit_difference > MAX_LOGIT_DIFFERENCE_FP32:
        raise StageError(
            f"the merged model's logits differ by up to {measured.max_logit_difference:.2e} "
            f"(limit {MAX_LOGIT_DIFFERENCE_FP32:g} in float32)",
            fix="this is a defect of the merge; nothing was sealed",
        )


def write_merged(merged: PreTrainedModel, folder: Path, dtype: str, stop_ids: Sequence[int]) -> None:
    """config.json, generation_config.json with all stop ids, and safetensors of the given type."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # only the stage's log speaks
    merged.to(getattr(torch, dtype))
    merged.generation_config.eos_token_id = list(stop_ids)
    merged.save_pretrained(folder, max_shard_size="4GB")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = list(stop_ids)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
