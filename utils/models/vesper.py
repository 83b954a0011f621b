"""
VesperLM: the Llama skeleton of transformers with a gate of our own, dense or with experts.

Attention, RMSNorm, rotary embedding, embedding and head are transformers' modules under their names; the FFN
is down(act(gate(x)) * up(x)) (GLU, Shazeer 2020) with act one of

    era        GELU_tanh(x) + gamma softplus(x); gamma 0 is exactly gelu_tanh
    gelu_tanh  x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    silu       x sigmoid(x): then the state dict is a Llama's or a Mixtral's, key for key

`utils.models.load` registers both classes, so AutoModelForCausalLM reads the folders without remote code.

    config = VesperConfig(vocab_size=512, hidden_size=64, ..., hidden_act="era", gamma=0.1)
    model = VesperForCausalLM(config)

B rows, T tokens, N = B T, D width, E experts, K experts per token, M = N K rows of the sorted order.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers import initialization as init
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.output_capturing import OutputRecorder

from kernels import era, moe
from kernels.era import era_glu
from kernels.resolution import Asked, Resolution
from utils.config.adapter import AdapterConfig
from utils.models.expert_adapters import Routed, expert_weight
from utils.models.flylora import attach_adapters, counted_selections, merge_adapters
from utils.models.ranks import rebalance


class VesperConfig(LlamaConfig):
    """A LlamaConfig with `hidden_act` era, gelu_tanh or silu, and the fields of MixtralConfig for experts."""

    model_type = "vesper"

    hidden_act: str = "era"
    gamma: float = 0.1
    num_local_experts: int = 0
    num_experts_per_tok: int = 0
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001
    adapter: dict | None = None


class GatedUnit(nn.Module):
    """act(gate) * up. `kernel` is the form of kernels/era.py, set by `VesperForCausalLM.choose_kernels`."""

    def __init__(self, config: VesperConfig) -> None:
        super().__init__()
        self.kind, self.kernel = config.hidden_act, "auto"
        self.gamma = config.gamma if self.kind == "era" else 0.0
        if self.kind not in ("era", "gelu_tanh", "silu"):
            raise ValueError(f'hidden_act "{self.kind}" is none of era, gelu_tanh, silu')

    def forward(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.kind == "silu":
            return F.silu(gate) * up
        return era_glu(gate, up, self.gamma, self.kernel)


class VesperMLP(nn.Module):
    """The dense FFN: D -> F -> D."""

    def __init__(self, config: VesperConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.unit = GatedUnit(config)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.down_proj(self.unit(self.gate_proj(hidden_BTD), self.up_proj(hidden_BTD)))


class VesperRouter(nn.Module):
    """Softmax over all experts in fp32, whatever the dtype around it; the best K share a weight of 1."""

    def __init__(self, config: VesperConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))

    def forward(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [N, E], weights [N, K] and expert numbers [N, K]."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            logits_NE = F.linear(hidden_ND.float(), self.weight.float())
            weights_NK, chosen_NK = torch.topk(logits_NE.softmax(-1), self.top_k, dim=-1)
        return logits_NE, weights_NK / weights_NK.sum(-1, keepdim=True), chosen_NK


class VesperExperts(nn.Module):
    """
    All experts of a layer in two tensors, in Mixtral's layout: gate and up rows of each, then its down rows.

    No token is dropped, there is no capacity, and nothing waits for the device.
    """

    def __init__(self, config: VesperConfig) -> None:
        super().__init__()
        self.num_experts, self.kernel = config.num_local_experts, "auto"
        inner, width = config.intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(self.num_experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.unit = GatedUnit(config)
        self.adapters = nn.ModuleDict()

    def forward(self, hidden_ND: Tensor, chosen_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """Sum over the K experts of each token of weight x expert(token)."""
        sorted_MD, offsets_E, order_M = moe.permute(hidden_ND, chosen_NK, self.num_experts)
        if self.adapters and not self._trains_merged():
            rows = Routed(offsets_E, order_M // chosen_NK.shape[1], self.kernel)
            output_MD = self._adapted(sorted_MD, rows)
        else:
            weights = self._merged() if self.adapters else (self.gate_up_proj, self.down_proj)
            output_MD = moe.grouped_glu(sorted_MD, *weights, offsets_E, self.unit, self.kernel)
        return moe.unpermute(output_MD, order_M, weights_NK)

    def _trains_merged(self) -> bool:
        """Whether the base trains with adapters that are sums, so that one product serves both."""
        trains = torch.is_grad_enabled() and self.gate_up_proj.requires_grad
        return trains and all(each.is_plain_sum for each in self.adapters.values())

    def _merged(self) -> tuple[Tensor, Tensor]:
        """`gate_up_proj` and `down_proj` with what the adapters add to them."""

        def merged(target: str) -> Tensor:
            weight_Emn = expert_weight(self, target)
            return self.adapters[target].merged(weight_Emn) if target in self.adapters else weight_Emn

        return torch.cat([merged("gate_proj"), merged("up_proj")], dim=1), merged("down_proj")

    def _adapted(self, sorted_MD: Tensor, rows: Routed) -> Tensor:
        """What `moe.grouped_glu` does, with the updates of the adapters on each product."""

        def updated(product: Tensor, target: str, x: Tensor) -> Tensor:
            return product + self.adapters[target](x, rows) if target in self.adapters else product

        hidden_M2F = moe.grouped_linear(sorted_MD, self.gate_up_proj, rows.offsets_E, self.kernel)
        gate_MF, up_MF = hidden_M2F.chunk(2, dim=-1)
        inner_MF = self.unit(updated(gate_MF, "gate_proj", sorted_MD), updated(up_MF, "up_proj", sorted_MD))
        output_MD = moe.grouped_linear(inner_MF, self.down_proj, rows.offsets_E, self.kernel)
        return updated(output_MD, "down_proj", inner_MF)


class VesperSparseMoeBlock(nn.Module):
    """Router and experts in place of the dense FFN."""

    def __init__(self, config: VesperConfig) -> None:
        super().__init__()
        self.gate, self.experts = VesperRouter(config), VesperExperts(config)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_ND = hidden_BTD.flatten(0, 1)
        _, weights_NK, chosen_NK = self.gate(hidden_ND)
        return self.experts(hidden_ND, chosen_NK, weights_NK).view_as(hidden_BTD)


class VesperDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with our FFN or experts."""

    def __init__(self, config: VesperConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = LlamaAttention(config, layer_idx)
        self.mlp = VesperSparseMoeBlock(config) if config.num_local_experts else VesperMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class VesperPreTrainedModel(PreTrainedModel):
    """What transformers may do with the model, and how it fills weights that nobody gave."""

    config: VesperConfig
    config_class = VesperConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VesperDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {
        "router_logits": OutputRecorder(VesperRouter, index=0),
        "hidden_states": VesperDecoderLayer,
        "attentions": LlamaAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VesperExperts | VesperRouter):
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class VesperModel(VesperPreTrainedModel, LlamaModel):
    """The decoder: Llama's forward pass over our layers."""

    def __init__(self, config: VesperConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [VesperDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class VesperForCausalLM(VesperPreTrainedModel, GenerationMixin):
    """Decoder and head, tied where the config says so."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    forward = LlamaForCausalLM.forward

    def __init__(self, config: VesperConfig) -> None:
        super().__init__(config)
        self.model = VesperModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        if config.adapter:
            attach_adapters(self, AdapterConfig.model_validate(config.adapter), seed=0)

    def adapt(self, adapter: AdapterConfig, seed: int) -> None:
        """Attach fresh adapters, which change nothing yet, and say so in the config."""
        attach_adapters(self, adapter, seed)
        self.config.adapter = adapter.model_dump(mode="json", exclude_none=True)

    def merge_adapters(self) -> None:
        """Fold the adapters into the weights, where that is possible, and say so in the config."""
        merge_adapters(self)
        self.config.adapter = None

    def counting(self, trained_BT: Tensor) -> AbstractContextManager[None]:
        """The region of a training pass in which adapters count the ranks that trained positions use."""
        return counted_selections(self, trained_BT)

    def after_step(self, skipped: Tensor) -> None:
        """
        What follows every optimizer step besides the update: adapters even out the use of their ranks, unless
        the step was `skipped` (a boolean on the device).
        """
        rebalance(self, skipped)

    def choose_kernels(self, asked: Asked) -> tuple[Resolution, ...]:
        """
        Choose the form of the kernels of this model; what was resolved, for the manifest. Called in the
        autocast region that the model runs in.
        """
        experts = [module for module in self.modules() if isinstance(module, VesperExperts)]
        units = [module for module in self.modules() if isinstance(module, GatedUnit)]
        for module in (*experts, *units):
            module.kernel = asked
        used = [era.resolution(asked, self.device.type)] if any(unit.kind != "silu" for unit in units) else []
        return (*used, *([moe.resolution(asked, self.device, self.dtype)] if experts else []))
