"""
Gate a: read a GGUF file back and hold it against the checkpoint, sharing nothing with the writer.

    reader_gate(Path("model-f16.gguf"), Path("checkpoints/demo/merged"))     # StageError names what differs

Tensor names come from the gguf package's own table and rows are found by index.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFReader, get_tensor_name_map
from gguf.quants import dequantize

from utils.export.checkpoint import CheckpointTensors, read_config
from utils.export.gguf_quantize import read_keys
from utils.export.gguf_vocab import pad_to_rows, read_vocabulary
from utils.pipeline.errors import StageError

STORED_ERROR = {  # largest |stored - value| in units of the largest value of its block or of the value itself
    GGMLQuantizationType.F32: 0.0,
    GGMLQuantizationType.F16: 2.0**-11,
    GGMLQuantizationType.BF16: 2.0**-8,
    GGMLQuantizationType.Q8_0: 0.5 / 127 + 2.0**-11,  # half a step, and the scale itself is an F16
}


def reader_gate(path: Path, folder: Path) -> dict[str, object]:
    """
    Gate a: keys, vocabulary, tensor names and shapes are the checkpoint's, and stored values decode to its
    values.

    Names come from the gguf package's own table and rows are found by index, so nothing of the writer is
    reused.
    """
    config, checkpoint, reader = read_config(folder), CheckpointTensors(folder), GGUFReader(path)
    _compare_keys(path, config, read_keys(path))
    _compare_vocabulary(path, folder, read_keys(path), checkpoint.shapes["model.embed_tokens.weight"][0])
    sources = _sources_by_gguf_name(config, checkpoint.shapes)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    require(
        sources.keys() == stored.keys(),
        f"{path.name}: tensors {sorted(sources.keys() ^ stored.keys())[:5]} differ",
    )
    for name, tensor in stored.items():
        found = tuple(int(size) for size in reversed(tensor.shape))
        require(found == checkpoint.shapes[sources[name]], f"{path.name}: {name} has shape {found}")
    chosen = _one_of_each_kind(
        [name for name, tensor in stored.items() if tensor.tensor_type in STORED_ERROR]
    )
    for name in chosen:
        values = _rows_in_file_order(name, checkpoint.read(sources[name]), config)
        _compare_values(path, name, stored[name], values)
    return {"tensors": len(stored), "rederived": len(chosen)}


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
    if config.get("num_local_experts"):
        expected["llama.expert_count"] = config["num_local_experts"]
        expected["llama.expert_used_count"] = config["num_experts_per_tok"]
    for key, value in expected.items():
        require(keys.get(key) == value, f"{path.name}: {key} is {keys.get(key)}, config.json says {value}")


def _compare_vocabulary(path: Path, folder: Path, keys: dict, rows: int) -> None:
    vocabulary = pad_to_rows(read_vocabulary(folder, "<|im_end|>"), rows)
    require(
        keys["tokenizer.ggml.tokens"] == vocabulary.pieces,
        f"{path.name}: its pieces are not those of tokenizer.model",
    )
    require(
        keys["tokenizer.ggml.token_type"] == vocabulary.types,
        f"{path.name}: its piece types are not the tokenizer's",
    )


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
    require(
        wrong == 0,
        f"{path.name}: {name} holds {wrong:,} of {values.size:,} values that are not the checkpoint's",
    )


def require(holds: bool, message: str) -> None:
    """StageError when a gate does not hold."""
    if not holds:
        raise StageError(message, fix="this is a defect of the conversion; nothing was sealed")
