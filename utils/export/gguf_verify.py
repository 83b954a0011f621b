"""
The gates between a GGUF file and the world: it must be the checkpoint, not merely load.

Each gate returns what it measured and raises StageError when a limit is passed. They check different things, so that a
mistake that one forgives is caught by another: names, shapes, keys and stored values; token ids; chat prompts; logits in
F32; divergence after rounding; greedy text. Every llama.cpp call happens in a child process.

    reader_gate(path, folder)
    logit_gate(path, sequences, reference)["max_logit_difference"]     # <= 1e-3
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize

from utils.export.gguf_quantize import read_keys
from utils.export.gguf_write import CheckpointTensors, pad_to_rows, read_config, read_vocabulary
from utils.export.llama_child import run_child
from utils.pipeline.errors import StageError

MEAN_KL_LIMITS = {
    "f32": 1e-6, "f16": 1e-5, "bf16": 1e-4, "q8_0": 1e-3, "q6_k": 5e-3, "q5_k_m": 1e-2, "q4_k_m": 3e-2,
}  # fmt: skip
MAX_LOGIT_DIFFERENCE = 1e-3
CLEAR_GAP = 1e-2  # below this distance of the two best logits either choice is right
STORED_ERROR = {  # largest |stored - value| in units of the largest value of its block or of the value itself
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2.0**-11,
    GGMLQuantizationType.BF16: 2.0**-8,
    GGMLQuantizationType.Q8_0: 0.5 / 127 + 2.0**-11,  # half a step, and the scale itself is an F16
}
TORTURE_TEXTS = [
    "", " ", "   ", "a  b   c    d", "\n\n\n", "\t\ttabs\t", "line\r\nline\r\n", "trailing   ", "def f(x):\n    return x\n",
    "for (int i = 0; i < n; ++i) { a[i] += 1; }", "3.14159e-10 1234567890", "don't I'll we've", "caf\u00e9 na\u00efve",
    "e\u0301 n\u0303", "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\u041f\u0440\u0438\u0432\u0435\u0442",
    "\u0645\u0631\u062d\u0628\u0627", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u201ccurly\u201d \u2014 dash",
    "<|im_start|>user\nhi<|im_end|>\n", "<s>text</s><unk><pad>", "<0x0A><0xFF>", "\u2581\u2581under", "a" * 200,
    "\u0001\u0002\u0007\u001b[0m", "\u00a0nbsp\u200bzero\ufeff", '{"a": [1, 2.5, null]}', "MiXeD CaSe ALLCAPS",
]  # fmt: skip


@dataclass(frozen=True)
class LlamaCpp:
    """How children are run: seconds before they are stopped, and threads."""

    timeout_seconds: float = 300.0
    threads: int = 1


def reader_gate(path: Path, folder: Path) -> dict[str, object]:
    """Gate a: keys, vocabulary, tensor names and shapes are the checkpoint's, and stored values decode to its values.

    Names come from the gguf package's own table and rows are found by index, so nothing of the writer is reused.
    """
    config, checkpoint, reader = read_config(folder), CheckpointTensors(folder), GGUFReader(path)
    _compare_keys(path, config, read_keys(path))
    _compare_vocabulary(path, folder, read_keys(path), checkpoint.shapes["model.embed_tokens.weight"][0])
    sources = _sources_by_gguf_name(config, checkpoint.shapes)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    _require(sources.keys() == stored.keys(), f"{path.name}: tensors {sorted(sources.keys() ^ stored.keys())[:5]} differ")
    for name, tensor in stored.items():
        found = tuple(int(size) for size in reversed(tensor.shape))
        _require(found == checkpoint.shapes[sources[name]], f"{path.name}: {name} has shape {found}")
    chosen = _one_of_each_kind([name for name, tensor in stored.items() if tensor.tensor_type in STORED_ERROR])
    for name in chosen:
        values = _rows_in_file_order(name, checkpoint.read(sources[name]), config)
        _compare_values(path, name, stored[name], values)
    return {"tensors": len(stored), "rederived": len(chosen)}


def token_gate(
    path: Path, texts: Sequence[str], encode: Callable[[list[str]], list[Sequence[int]]], bos: int, llama: LlamaCpp
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
            f"{path.name}: token ids of {len(wrong)} of {len(texts)} texts differ from the tokenizer's, first {text[:60]!a}: "
            f"{found[wrong[0]][:8]} against {expected[wrong[0]][:8]}",
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
    """Gate c: llama-cpp-python's own chat call makes the prompt that the model was trained on, with one BOS."""
    request = {"model": str(path), "conversations": list(conversations)}
    found = run_child("chat", request, llama.timeout_seconds)["ids"]
    for messages, ids in zip(conversations, found, strict=True):
        expected = [int(i) for i in prompt_ids(messages)]
        _require(
            ids == expected,
            f"{path.name}: the chat prompt of {len(messages)} messages differs: {ids[:12]} against {expected[:12]}",
        )
        _require(ids.count(bos) == 1, f"{path.name}: the chat prompt has BOS {ids.count(bos)} times")
    return {"conversations": len(found), "differing": 0}


def logit_gate(path: Path, sequences: list[list[int]], reference: np.ndarray, llama: LlamaCpp) -> dict[str, object]:
    """Gate d, on an F32 file: llama.cpp computes the checkpoint's logits, `reference` [tokens, vocabulary]."""
    found = llama_logits(path, sequences, llama)
    worst = float(np.abs(found - reference).max())
    mean_kl = float(divergence(reference, found).mean())
    _require(
        worst <= MAX_LOGIT_DIFFERENCE and mean_kl <= MEAN_KL_LIMITS["f32"],
        f"{path.name}: logits differ from the checkpoint's by up to {worst:.2e} (limit {MAX_LOGIT_DIFFERENCE:g}), "
        f"mean KL {mean_kl:.2e} (limit {MEAN_KL_LIMITS['f32']:g})",
    )
    return {"max_logit_difference": worst, "mean_kl": mean_kl, "tokens": len(reference)}


def divergence_gate(
    path: Path, file_type: str, sequences: list[list[int]], reference: np.ndarray, llama: LlamaCpp
) -> dict[str, object]:
    """Gate e: how far rounding moved the model; the mean KL must stay below the type's limit."""
    found = llama_logits(path, sequences, llama)
    kl = divergence(reference, found)
    limit = MEAN_KL_LIMITS[file_type]
    _require(
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
    """Gate f: the file writes the checkpoint's greedy `answers`, up to the first step where two tokens are as good.

    `gaps` are the differences of the checkpoint's two best logits at each step of `answers`.
    """
    longest = max(map(len, answers))
    request = {"model": str(path), "prompts": prompts, "max_tokens": longest, "stop": sorted(stop), "threads": llama.threads}
    found = run_child("greedy", request, llama.timeout_seconds)["ids"]
    unclear = 0
    for index, (expected, actual) in enumerate(zip(answers, found, strict=True)):
        step = next((i for i, pair in enumerate(zip(expected, actual, strict=False)) if pair[0] != pair[1]), None)
        if step is None:
            _require(len(expected) == len(actual), f"{path.name}: greedy answer {index} stops at another token")
            continue
        _require(
            gaps[index][step] <= CLEAR_GAP,
            f"{path.name}: greedy answer {index} differs at token {step} where the checkpoint's choice is clear "
            f"(gap {gaps[index][step]:.3f})",
        )
        unclear += 1
    return {"prompts": len(prompts), "equal": len(prompts) - unclear, "unclear": unclear}


def llama_logits(path: Path, sequences: list[list[int]], llama: LlamaCpp) -> np.ndarray:
    """Logits [tokens, vocabulary] that llama.cpp computes for the sequences, joined."""
    with TemporaryDirectory() as scratch:
        output = Path(scratch) / "logits.npy"
        request = {"model": str(path), "sequences": sequences, "output": str(output), "threads": llama.threads}
        run_child("logits", request, llama.timeout_seconds)
        return np.load(output)


def divergence(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(reference || found) of each position, in nats, from logits."""
    p, q = _log_softmax(reference), _log_softmax(found)
    return (np.exp(p) * (p - q)).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _nll(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return -_log_softmax(logits)[np.arange(len(targets)), targets]


def _next_tokens(sequences: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Targets, and a mask of the joined positions that have one (all but the last of each sequence)."""
    targets = np.array([token for ids in sequences for token in ids[1:]])
    scored = np.array([position < len(ids) - 1 for ids in sequences for position in range(len(ids))])
    return targets, scored


def _compare_keys(path: Path, config: dict, keys: dict) -> None:
    expected = {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": config["head_dim"],
        "llama.attention.value_length": config["head_dim"],
        "llama.rope.dimension_count": config["head_dim"],
        "llama.rope.freq_base": np.float32(config["rope_parameters"]["rope_theta"]),
        "llama.attention.layer_norm_rms_epsilon": np.float32(config["rms_norm_eps"]),
    }
    for key, value in expected.items():
        _require(keys.get(key) == value, f"{path.name}: {key} is {keys.get(key)}, config.json says {value}")


def _compare_vocabulary(path: Path, folder: Path, keys: dict, rows: int) -> None:
    vocabulary = pad_to_rows(read_vocabulary(folder, "<|im_end|>"), rows)
    _require(keys["tokenizer.ggml.tokens"] == vocabulary.pieces, f"{path.name}: its pieces are not those of tokenizer.model")
    _require(keys["tokenizer.ggml.token_type"] == vocabulary.types, f"{path.name}: its piece types are not the tokenizer's")


def _sources_by_gguf_name(config: dict, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    mapped = {names.get_name(source, try_suffixes=(".weight", ".bias")): source for source in shapes}
    if config["tie_word_embeddings"]:
        mapped.pop("output.weight", None)
    return mapped


def _rows_in_file_order(name: str, values: np.ndarray, config: dict) -> np.ndarray:
    """Row r of head h in the file is dimension r // 2 of the half r % 2 (interleaved rotary pairs)."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return values
    size = config["head_dim"]
    rows = np.arange(len(values))
    head, inside = rows // size, rows % size
    return values[head * size + (inside % 2) * (size // 2) + inside // 2]


def _one_of_each_kind(names: Sequence[str]) -> list[str]:
    """A mistake is made for all blocks alike, so one tensor of each kind, from a random block, shows it."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(re.sub(r"\d+", "N", name), []).append(name)
    chance = np.random.default_rng(0)
    return [str(chance.choice(members)) for members in kinds.values()]


def _compare_values(path: Path, name: str, tensor, values: np.ndarray) -> None:
    decoded = dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
    scale = np.abs(values)
    if tensor.tensor_type == GGMLQuantizationType.Q8_0:
        blocks = scale.reshape(-1, 32)
        scale = np.broadcast_to(blocks.max(-1, keepdims=True), blocks.shape).reshape(values.shape)
    allowed = STORED_ERROR[tensor.tensor_type] * scale + (0.0 if tensor.tensor_type == 0 else 1e-7)
    wrong = int((np.abs(decoded - values) > allowed).sum())
    _require(wrong == 0, f"{path.name}: {name} holds {wrong:,} of {values.size:,} values that are not the checkpoint's")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise StageError(message, fix="this is a defect of the conversion; nothing was sealed")
