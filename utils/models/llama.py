"""
LLaMA models from an architecture file: `transformers.LlamaForCausalLM`, unforked, with our own initial
weights.

Evaluation, PEFT, merging, GGUF and serving then work on it unchanged. The weights are drawn by one generator
in the order of the parameters' names, so a seed means the same model on one process and on many.

    architecture = load_architecture("demo", REPOSITORY)
    model = build_llama(architecture, vocab_size=4096, special_ids={"bos": 1, "eos": 2, "pad": 3})
    initialise(model, architecture, seed=0)
"""

import hashlib
import math

import torch
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from utils.config.architecture import Architecture
from utils.models.presets import initial_deviation


def llama_config(architecture: Architecture, vocab_size: int, special_ids: dict[str, int]) -> LlamaConfig:
    """
    The transformers config of an architecture; `special_ids` holds unk, bos, eos, pad (-1 or absent: none).
    """
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocab_size,
        hidden_size=architecture.hidden_size,
        intermediate_size=architecture.ffn_size,
        num_hidden_layers=architecture.num_layers,
        num_attention_heads=architecture.num_heads,
        num_key_value_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        max_position_embeddings=architecture.context_length_tokens,
        rms_norm_eps=architecture.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        tie_word_embeddings=architecture.tie_embeddings,
        initializer_range=initial_deviation(architecture),
        dtype="float32",
        **_special_token_ids(special_ids),
    )


def build_llama(
    architecture: Architecture, vocab_size: int, special_ids: dict[str, int], attention: str = "sdpa"
) -> LlamaForCausalLM:
    """
    The model with weights as transformers leaves them; `initialise` draws ours. Works under the meta device
    too.
    """
    config = llama_config(architecture, vocab_size, special_ids)
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
    trains_padding(model)
    model.generation_config = GenerationConfig(do_sample=False, **_special_token_ids(special_ids))
    return model


def trains_padding(model: nn.Module) -> None:
    """Give the padding row gradients like any other: with a tied head it is a row of the softmax."""
    model.get_input_embeddings().padding_idx = None


@torch.no_grad()
def initialise(model: nn.Module, architecture: Architecture, seed: int) -> None:
    """
    Matrices N(0, s^2) with s = 0.02 min(1, sqrt(768 / d)), those that write into the residual stream times
    1/sqrt(2 L) (Radford 2019), norms 1; in name order from one generator.
    """
    generator = torch.Generator().manual_seed(_seed_of("init", seed))
    deviation = initial_deviation(architecture)
    residual = deviation / math.sqrt(2 * architecture.num_layers)
    for name, parameter in sorted(model.named_parameters()):
        if parameter.ndim < 2:
            parameter.fill_(1.0)
            continue
        scale = residual if name.endswith(("o_proj.weight", "down_proj.weight")) else deviation
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))


def _special_token_ids(special_ids: dict[str, int]) -> dict[str, int | None]:
    found = {f"{name}_token_id": special_ids.get(name, -1) for name in ("bos", "eos", "pad")}
    return {key: value if value >= 0 else None for key, value in found.items()}


def _seed_of(purpose: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{seed}".encode()).digest()[:8], "big") >> 1
