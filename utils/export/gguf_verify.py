"""
The gates between a GGUF file and the world: it must be the checkpoint, not merely load.

Each gate returns what it measured and raises StageError when a limit is passed. They check different things,
so that a mistake that one forgives is caught by another: stored names, keys and values (gguf_reader); token
ids; chat prompts; logits in F32; divergence after rounding; greedy text. Every llama.cpp call happens in a
child process.

    logit_gate(path, sequences, reference, LlamaCpp())["max_logit_difference"]     # <= 1e-3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from utils.export.gguf_reader import require
from utils.export.llama_child import run_child
from utils.export.merge import divergence, log_softmax
from utils.export.torture import TORTURE_TEXTS
from utils.pipeline.errors import StageError

MEAN_KL_LIMITS = {
    "f32": 1e-6, "f16": 1e-5, "bf16": 1e-4, "q8_0": 1e-3, "q6_k": 5e-3, "q5_k_m": 1e-2, "q4_k_m": 3e-2,
}  # fmt: skip
MAX_LOGIT_DIFFERENCE = 1e-3
CLEAR_GAP = 1e-2  # below this distance of the two best logits either choice is right


@dataclass(frozen=True)
class LlamaCpp:
    """How children are run: seconds before they are stopped, and threads."""

    timeout_seconds: float = 300.0
    threads: int = 1


def token_gate(
    path: Path,
    texts: Sequence[str],
    encode: Callable[[list[str]], list[Sequence[int]]],
    bos: int,
    llama: LlamaCpp,
) -> dict[str, object]:
    """Gate b: llama.cpp gives the tokenizer's ids for every text, with exactly one BOS before them."""
    texts = [*texts, *TORTURE_TEXTS]
    request = {"model": str(path), "texts": texts, "bos": True, "special": False}
    found = run_child("tokenize", request, llama.timeout_seconds)["ids"]
    expected = [[bos, *map(int, ids)] for ids in encode(list(texts))]
    wrong = [index for index, ids in enumerate(expected) if ids != found[index]]
    if wrong:
        text = texts[wrong[0]]
        raise StageError(
            f"{path.name}: token ids of {len(wrong)} of {len(texts)} texts differ from the tokenizer's, "
            f"first {text[:60]!a}: {found[wrong[0]][:8]} against {expected[wrong[0]][:8]}",
            fix="train the tokenizer with stage 30, recipe llama_bpe",
        )
    return {"texts": len(texts), "differing": 0}


def chat_gate(
    path: Path,
    conversations: Sequence[list[dict[str, str]]],
    prompt_ids: Callable[[list[dict[str, str]]], Sequence[int]],
    bos: int,
    llama: LlamaCpp,
) -> dict[str, object]:
    """
    Gate c: llama-cpp-python's own chat call makes the prompt that the model was trained on, with one BOS.
    """
    request = {"model": str(path), "conversations": list(conversations)}
    found = run_child("chat", request, llama.timeout_seconds)["ids"]
    for messages, ids in zip(conversations, found, strict=True):
        expected = [int(i) for i in prompt_ids(messages)]
        require(
            ids == expected,
            f"{path.name}: the chat prompt of {len(messages)} messages differs: "
            f"{ids[:12]} against {expected[:12]}",
        )
        require(ids.count(bos) == 1, f"{path.name}: the chat prompt has BOS {ids.count(bos)} times")
    return {"conversations": len(found), "differing": 0}


def logit_gate(
    path: Path, sequences: list[list[int]], reference: np.ndarray, llama: LlamaCpp
) -> dict[str, object]:
    """
    Gate d, on an F32 file: llama.cpp computes the checkpoint's logits, `reference` [tokens, vocabulary].
    """
    found = llama_logits(path, sequences, llama)
    worst = float(np.abs(found - reference).max())
    mean_kl = float(divergence(reference, found).mean())
    require(
        worst <= MAX_LOGIT_DIFFERENCE and mean_kl <= MEAN_KL_LIMITS["f32"],
        f"{path.name}: logits differ from the checkpoint's by up to {worst:.2e} "
        f"(limit {MAX_LOGIT_DIFFERENCE:g}), mean KL {mean_kl:.2e} (limit {MEAN_KL_LIMITS['f32']:g})",
    )
    return {"max_logit_difference": worst, "mean_kl": mean_kl, "tokens": len(reference)}


def divergence_gate(
    path: Path, file_type: str, sequences: list[list[int]], reference: np.ndarray, llama: LlamaCpp
) -> dict[str, object]:
    """Gate e: how far rounding moved the model; the mean KL must stay below the type's limit."""
    found = llama_logits(path, sequences, llama)
    kl = divergence(reference, found)
    limit = MEAN_KL_LIMITS[file_type]
    require(
        float(kl.mean()) <= limit,
        f"{path.name}: mean KL to the checkpoint is {kl.mean():.2e} nats (limit {limit:g} for {file_type})",
    )
    targets, scored = _next_tokens(sequences)
    before, after = (_nll(logits[scored], targets) for logits in (reference, found))
    difference = after - before
    return {
        "mean_kl": float(kl.mean()),
        "p99_kl": float(np.quantile(kl, 0.99)),
        "top1_agreement": float((reference.argmax(-1) == found.argmax(-1)).mean()),
        "perplexity": float(np.exp(after.mean())),
        "checkpoint_perplexity": float(np.exp(before.mean())),
        "nll_difference": float(difference.mean()),
        "nll_difference_standard_error": float(difference.std(ddof=1) / np.sqrt(len(difference))),
    }


def greedy_gate(
    path: Path,
    prompts: list[list[int]],
    answers: list[list[int]],
    gaps: list[list[float]],
    stop: set[int],
    llama: LlamaCpp,
) -> dict[str, object]:
    """
    Gate f: the file writes the checkpoint's greedy `answers`, up to the first step where two are as good.

    `gaps` are the differences of the checkpoint's two best logits at each step of `answers`.
    """
    longest = max(map(len, answers))
    request = {
        "model": str(path),
        "prompts": prompts,
        "max_tokens": longest,
        "stop": sorted(stop),
        "threads": llama.threads,
    }
    found = run_child("greedy", request, llama.timeout_seconds)["ids"]
    unclear = 0
    for index, (expected, actual) in enumerate(zip(answers, found, strict=True)):
        step = next(
            (i for i, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1]), None
        )
        if step is None:
            require(
                len(expected) == len(actual), f"{path.name}: greedy answer {index} stops at another token"
            )
            continue
        require(
            gaps[index][step] <= CLEAR_GAP,
            f"{path.name}: greedy answer {index} differs at token {step} where the checkpoint's choice is "
            f"clear (gap {gaps[index][step]:.3f})",
        )
        unclear += 1
    return {"prompts": len(prompts), "equal": len(prompts) - unclear, "unclear": unclear}


def llama_logits(path: Path, sequences: list[list[int]], llama: LlamaCpp) -> np.ndarray:
    """Logits [tokens, vocabulary] that llama.cpp computes for the sequences, joined."""
    with TemporaryDirectory() as scratch:
        output = Path(scratch) / "logits.npy"
        request = {
            "model": str(path),
            "sequences": sequences,
            "output": str(output),
            "threads": llama.threads,
        }
        run_child("logits", request, llama.timeout_seconds)
        return np.load(output)


def _nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -log_softmax(logits)[np.arange(len(targets)), targets]


def _next_tokens(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and a mask of the joined positions that have one (all but the last of each sequence)."""
    targets = np.array([token for ids in sequences for token in ids[1:]])
    scored = np.array([position < len(ids) - 1 for ids in sequences for position in range(len(ids))])
    return targets, scored
