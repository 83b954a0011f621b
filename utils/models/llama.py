"""
LLaMA models from an architecture file: `transformers.LlamaForCausalLM`, with experts `MixtralForCausalLM`,
unforked, with our own initial weights.

Evaluation, PEFT, merging, GGUF and serving then work on it unchanged. The weights are drawn by one generator
in the order of the parameters' names, so a seed means the same model on one process and on many.

    architecture = load_architecture("demo", REPOSITORY)
    model = build_llama(architecture, vocab_size=4096, special_ids={"bos": 1, "eos": 2, "pad": 3})
    initialise(model, architecture, seed=0)
"""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from utils.config.architecture import Architecture, ExpertsConfig
from utils.models.flylora import ADAPTER_PARAMETERS, initial_adapters
from utils.models.presets import initial_deviation
from utils.models.vesper import VesperRouter


class MixtralRouter(MixtralTopKRouter):
    """Mixtral's router in fp32 whatever the dtype around it; transformers' own follows autocast to bf16."""

    forward = VesperRouter.forward


def llama_config(
    architecture: Architecture, vocab_size: int, special_ids: dict[str, int]
) -> LlamaConfig | MixtralConfig:
    """
    The transformers config of an architecture; `special_ids` holds unk, bos, eos, pad (-1 or absent: none).
    """
    shared = shared_fields(architecture, vocab_size, special_ids)
    if architecture.moe is None:
        return LlamaConfig(architectures=["LlamaForCausalLM"], **shared)
    return MixtralConfig(architectures=["MixtralForCausalLM"], **shared, **expert_fields(architecture.moe))


def shared_fields(architecture: Architecture, vocab_size: int, special_ids: dict[str, int]) -> dict:
    """What Llama, Mixtral and Vesper configs have in common."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.context_length_tokens,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rope_theta},
        "tie_word_embeddings": architecture.tie_embeddings,
        "initializer_range": initial_deviation(architecture),
        "dtype": "float32",
        **special_token_ids(special_ids),
    }


def expert_fields(moe: ExpertsConfig) -> dict:
    """The experts under Mixtral's names; the z coefficient, which Mixtral has not, rides along."""
    return {
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.experts_per_token,
        "router_aux_loss_coef": moe.balance_coefficient,
        "router_z_loss_coef": moe.z_coefficient,
    }


def build_llama(
    architecture: Architecture, vocab_size: int, special_ids: dict[str, int], attention: str = "sdpa"
) -> LlamaForCausalLM | MixtralForCausalLM:
    """
    The model with weights as transformers leaves them; `initialise` draws ours. Works under the meta device
    too.
    """
    model_class = MixtralForCausalLM if architecture.moe else LlamaForCausalLM
    return from_config(model_class, llama_config(architecture, vocab_size, special_ids), attention)


def from_config(
    model_class: type[PreTrainedModel], config: PretrainedConfig, attention: str
) -> PreTrainedModel:
    """A model of `config` that generates greedily and whose padding row trains."""
    model = model_class._from_config(config, attn_implementation=attention)
    trains_padding(model)
    routes_in_fp32(model)
    special = {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(do_sample=False, **special)
    return model


def trains_padding(model: nn.Module) -> None:
    """Give the padding row gradients like any other: with a tied head it is a row of the softmax."""
    model.get_input_embeddings().padding_idx = None


def routes_in_fp32(model: nn.Module) -> None:
    """Let Mixtral's routers compute in fp32, with the weights and names that they have."""
    for module in model.modules():
        if type(module) is MixtralTopKRouter:
            module.__class__ = MixtralRouter


@torch.no_grad()
def initialise(model: nn.Module, architecture: Architecture, seed: int) -> None:
    """Give every parameter its initial value."""
    parameters = dict(model.named_parameters())
    for name, tensor in initial_weights(model, architecture, seed):
        parameters[name].copy_(tensor)


def initial_weights(
    model: nn.Module, architecture: Architecture, seed: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """
    Name and initial value of every parameter, whole and on the CPU, one at a time; of `model` only names and
    shapes count, so it may be on the meta device or in parts.

    Matrices N(0, s^2) with s = 0.02 min(1, sqrt(768 / d)), those that write into the residual stream times
    1/sqrt(2 L) (Radford 2019), norms 1; in name order from one generator. Adapters as they are attached.
    """
    generator = torch.Generator().manual_seed(_seed_of("init", seed))
    deviation = initial_deviation(architecture)
    residual = deviation / math.sqrt(2 * architecture.num_layers)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in sorted(shapes.items()):
        if name.endswith(ADAPTER_PARAMETERS):
            continue
        if len(shape) < 2:
            yield name, torch.ones(shape)
            continue
        scale = residual if name.removesuffix(".weight").endswith(("o_proj", "down_proj")) else deviation
        yield name, torch.empty(shape).normal_(0.0, scale, generator=generator)
    yield from initial_adapters(model, seed)


def special_token_ids(special_ids: dict[str, int]) -> dict[str, int | None]:
    """The ids as transformers names them, None for those that the tokenizer lacks."""
    found = {f"{name}_token_id": special_ids.get(name, -1) for name in ("bos", "eos", "pad")}
    return {key: value if value >= 0 else None for key, value in found.items()}


def _seed_of(purpose: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}\n{seed}".encode()).digest()[:8], "big") >> 1
