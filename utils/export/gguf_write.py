"""
Write a Llama, Mixtral or VesperLM (SiLU) checkpoint as one GGUF file, tensor by tensor.

The file says everything that llama.cpp needs, read from config.json and tokenizer.model and never from
defaults. Query and key rows are re-ordered because Hugging Face rotates halves (i, i + d/2) and llama.cpp
rotates neighbours (2i, 2i + 1). Memory stays at one tensor: infos go first, data follow one by one.

    write_gguf(Path("checkpoints/demo/merged"), Path("model-f16.gguf"), "f16", Description(name="demo"))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, RopeScalingType
from gguf.quants import quant_shape_to_byte_shape, quantize

from utils.export.checkpoint import CheckpointTensors, read_config
from utils.export.gguf_vocab import Vocabulary, pad_to_rows, read_vocabulary
from utils.export.template_marks import chat_template_without_marks
from utils.pipeline.errors import StageError

WRITTEN_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
BLOCK_VALUES = 32  # values per q8_0 block
TENSOR_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
BLOCK_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
FFN_NAMES = {
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
EXPERT_NAMES = {
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.down_proj.weight": "ffn_down_exps.weight",
}
KEPT_EXACT = "ffn_gate_inp.weight"  # the router: rounding it sends tokens to other experts


@dataclass(frozen=True)
class Description:
    """What the file says about itself besides the architecture; `keys` holds further string keys."""

    name: str
    license: str = ""
    base_models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    end_of_turn: str = "<|im_end|>"
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file: where it comes from, how its rows move and which type it is written as."""

    source: str
    name: str
    shape: tuple[int, ...]
    rotary_heads: int
    type: GGMLQuantizationType


def write_gguf(folder: Path, target: Path, file_type: str, description: Description) -> list[PlannedTensor]:
    """Write the checkpoint in `folder` to `target`; returns the tensors in file order.

    Raises ConfigError for a model that llama.cpp's llama graph cannot express, StageError when checkpoint
    tensors are left over or missing.
    """
    config = read_config(folder)
    checkpoint = CheckpointTensors(folder)
    plan = plan_tensors(config, checkpoint.shapes, file_type)
    rows = checkpoint.shapes["model.embed_tokens.weight"][0]
    vocabulary = pad_to_rows(read_vocabulary(folder, description.end_of_turn), rows)

    writer = GGUFWriter(path=target, arch="llama")
    _add_description(writer, description, file_type)
    _add_architecture(writer, config, rows)
    _add_vocabulary(writer, vocabulary, chat_template_without_marks(folder))
    for tensor in plan:
        _add_tensor_info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan:
        writer.write_tensor_data(encode(tensor_values(checkpoint, tensor), tensor.type))
    writer.close()
    return plan


def plan_tensors(config: dict, shapes: dict[str, tuple[int, ...]], file_type: str) -> list[PlannedTensor]:
    """Map every checkpoint tensor to exactly one GGUF tensor; StageError names leftovers and gaps."""
    sources = list(_expected_sources(config))
    missing = sorted({source for source, _ in sources} - shapes.keys())
    surplus = sorted(shapes.keys() - {source for source, _ in sources})
    if config["tie_word_embeddings"] and surplus == ["lm_head.weight"]:
        surplus = []  # the same values as the embedding; tied files carry no output tensor
    if missing or surplus:
        raise StageError(
            f"checkpoint tensors do not match config.json: missing {missing[:5] or 'none'}, "
            f"left over {surplus[:5] or 'none'}",
            fix="rebuild the checkpoint; config.json and weights come from different models",
        )
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    return [
        PlannedTensor(
            source=source,
            name=name,
            shape=shapes[source],
            rotary_heads=heads.get(name.split(".")[-2], 0),
            type=_tensor_type(name, shapes[source], WRITTEN_TYPES[file_type][0]),
        )
        for source, name in sources
    ]


def interleave_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """Re-order the rows of each head from halves (i, i + d/2) to neighbours (2i, 2i + 1)."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def tensor_values(checkpoint: CheckpointTensors, tensor: PlannedTensor) -> np.ndarray:
    """The fp32 values of one planned tensor, in the row order of the file."""
    values = checkpoint.read(tensor.source)
    return interleave_rotary(values, tensor.rotary_heads) if tensor.rotary_heads else values


def encode(values: np.ndarray, tensor_type: GGMLQuantizationType) -> np.ndarray:
    """fp32 values as stored bytes: float arrays for F32 and F16, blocks of bytes for the rest."""
    return np.ascontiguousarray(quantize(np.ascontiguousarray(values, dtype=np.float32), tensor_type))


def _expected_sources(config: dict) -> Iterator[tuple[str, str]]:
    names = BLOCK_NAMES | (EXPERT_NAMES if config.get("num_local_experts") else FFN_NAMES)
    yield "model.embed_tokens.weight", TENSOR_NAMES["model.embed_tokens.weight"]
    for block in range(config["num_hidden_layers"]):
        for source, name in names.items():
            yield f"model.layers.{block}.{source}", f"blk.{block}.{name}"
    yield "model.norm.weight", TENSOR_NAMES["model.norm.weight"]
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", TENSOR_NAMES["lm_head.weight"]


def _tensor_type(name: str, shape: tuple[int, ...], wanted: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(shape) == 1 or name.endswith(KEPT_EXACT):
        return GGMLQuantizationType.F32
    if wanted == GGMLQuantizationType.Q8_0 and shape[-1] % BLOCK_VALUES:
        return GGMLQuantizationType.F16
    return wanted


def _add_tensor_info(writer: GGUFWriter, tensor: PlannedTensor) -> None:
    stored = quant_shape_to_byte_shape(tensor.shape, tensor.type)
    if tensor.type == GGMLQuantizationType.F32:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), int(np.prod(stored)))
    elif tensor.type == GGMLQuantizationType.F16:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), int(np.prod(stored)))
    else:
        writer.add_tensor_info(tensor.name, stored, np.dtype(np.uint8), int(np.prod(stored)), tensor.type)


def _add_description(writer: GGUFWriter, description: Description, file_type: str) -> None:
    writer.add_type("model")
    writer.add_name(description.name)
    writer.add_license(description.license)
    for kind, names in (("base_model", description.base_models), ("dataset", description.datasets)):
        if names:
            writer.add_uint32(f"general.{kind}.count", len(names))
        for index, name in enumerate(names):
            writer.add_string(f"general.{kind}.{index}.name", name)
    writer.add_file_type(int(WRITTEN_TYPES[file_type][1]))
    writer.add_quantization_version(2)
    for key, value in description.keys.items():
        writer.add_string(key, value)


def _add_architecture(writer: GGUFWriter, config: dict, vocabulary_rows: int) -> None:
    head_size = config["head_dim"]
    writer.add_vocab_size(vocabulary_rows)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, chat_template: str) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    ids = {
        "bos": vocabulary.bos,
        "eos": vocabulary.eos,
        "unknown": vocabulary.unk,
        "padding": vocabulary.pad,
        "eot": vocabulary.eot,
    }
    for name, token_id in ids.items():
        if token_id >= 0:
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_bool("tokenizer.ggml.add_eos_token", False)
    writer.add_bool("tokenizer.ggml.add_space_prefix", vocabulary.add_space_prefix)
    if chat_template:
        writer.add_chat_template(chat_template)
