"""
From a checkpoint to proven GGUF files: write, quantise, check against the checkpoint, patch the self-proof.

    report = convert(folder, target, ["f16", "q8_0", "q4_k_m"], description, evidence, LlamaCpp(), log=print)
    report["files"]["q8_0"]["mean_kl"]

An F32 file is written first and thrown away: only there do llama.cpp and the checkpoint have to agree on
every logit, so that what rounding adds is known apart from what a mistake would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFReader

from utils.export.gguf_quantize import QUANTIZED_TYPES, patch_key, quantize_gguf, written_types
from utils.export.gguf_reader import reader_gate
from utils.export.gguf_verify import (
    LlamaCpp,
    chat_gate,
    divergence_gate,
    greedy_gate,
    logit_gate,
    token_gate,
)
from utils.export.gguf_write import WRITTEN_TYPES, Description, write_gguf
from utils.pipeline.errors import StageError
from utils.pipeline.lineage import TENSORS_SHA256, prove_gguf, tensors_digest


@dataclass(frozen=True)
class Evidence:
    """What the checkpoint and its tokenizer say; the files must say the same."""

    texts: Sequence[str]
    encode: Callable[[list[str]], list[Sequence[int]]]
    """Plain text to ids."""
    conversations: Sequence[list[dict[str, str]]]
    prompt_ids: Callable[[list[dict[str, str]]], Sequence[int]]
    """Messages to the ids that end where the answer begins."""
    sequences: list[list[int]]
    logits: np.ndarray
    """The checkpoint's logits of `sequences`, joined: [tokens, vocabulary]."""
    prompts: list[list[int]]
    answers: list[list[int]]
    """The checkpoint's greedy answers to `prompts`, stop id included."""
    gaps: list[list[float]]
    """Distance of its two best logits at each step of `answers`."""
    bos: int
    stop_ids: set[int]


def convert(
    folder: Path,
    target: Path,
    outputs: Sequence[str],
    description: Description,
    evidence: Evidence,
    llama: LlamaCpp,
    log: Callable[..., None],
) -> dict:
    """Write `model-<type>.gguf` for each type into `target`; StageError as soon as a gate fails."""
    scratch = target / ".journal"
    scratch.mkdir(parents=True, exist_ok=True)
    exact = scratch / "model-f32.gguf"
    parameters = sum(int(np.prod(tensor.shape)) for tensor in write_gguf(folder, exact, "f32", description))
    gates = check_meaning(exact, folder, evidence, llama)
    log("gates", "tokens, chat prompts and logits equal the checkpoint's", **gates["logits"])

    files = {}
    for file_type in outputs:
        path = target / f"model-{file_type}.gguf"
        write_type(folder, path, file_type, description, scratch, llama)
        files[file_type] = check_file(path, folder, file_type, parameters, evidence, llama)
        shown = {key: files[file_type][key] for key in ("bytes", "mean_kl", "top1_agreement", "types")}
        log("written", file=path.name, **shown)
    return {"parameters": parameters, "gates": gates, "files": files}


def check_meaning(exact: Path, folder: Path, evidence: Evidence, llama: LlamaCpp) -> dict:
    """Gates a to d and f on the F32 file: everything but rounding."""
    return {
        "reader": reader_gate(exact, folder),
        "tokens": token_gate(exact, evidence.texts, evidence.encode, evidence.bos, llama),
        "chat": chat_gate(exact, evidence.conversations, evidence.prompt_ids, evidence.bos, llama),
        "logits": logit_gate(exact, evidence.sequences, evidence.logits, llama),
        "greedy": check_greedy(exact, evidence, llama),
    }


def write_type(
    folder: Path, path: Path, file_type: str, description: Description, scratch: Path, llama: LlamaCpp
) -> None:
    """
    Write one file, directly or by quantising an F16 one, and record the digest of its tensors inside it.
    """
    if file_type in WRITTEN_TYPES:
        write_gguf(folder, path, file_type, description)
    else:
        source = scratch / "model-f16.gguf"
        if not source.exists():
            write_gguf(folder, source, "f16", description)
        quantize_gguf(source, path, file_type, llama.timeout_seconds, llama.threads)
    patch_key(path, TENSORS_SHA256, tensors_digest(GGUFReader(path)))


def check_file(
    path: Path, folder: Path, file_type: str, parameters: int, evidence: Evidence, llama: LlamaCpp
) -> dict:
    """Gates a, e and f on a shipped file, and its own proof; returns what is known about it."""
    verdict, proof = prove_gguf(path)
    if proof is None or not verdict.good:
        raise StageError(
            f"{path.name} does not prove itself: {verdict}", fix="this is a defect of the conversion"
        )
    report = {
        "bytes": path.stat().st_size,
        "bytes_per_weight": path.stat().st_size / parameters,
        "types": written_types(path),
        **reader_gate(path, folder),
        **divergence_gate(path, file_type, evidence.sequences, evidence.logits, llama),
    }
    if file_type not in QUANTIZED_TYPES and file_type != "q8_0":
        report["greedy"] = check_greedy(path, evidence, llama)
    return report


def check_greedy(path: Path, evidence: Evidence, llama: LlamaCpp) -> dict:
    """Gate f with the evidence at hand."""
    return greedy_gate(path, evidence.prompts, evidence.answers, evidence.gaps, evidence.stop_ids, llama)
