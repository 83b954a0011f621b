"""
The shape of a model: what `config/architectures/<name>.json` may say.

Every field reaches the model, and `declared_parameters` is asserted by a test, so a size in this project is a
number and not a label.

    {"family": "llama", "hidden_size": 256, "num_layers": 4, ..., "declared_parameters": 4458752}
"""

from typing import Literal

from pydantic import Field, model_validator

from utils.config.adapter import AdapterConfig
from utils.pipeline.config import Section

DEFAULT_GAMMA = 0.1


class ExpertsConfig(Section):
    """
    Experts in place of every FFN: softmax over all, the best few renormalised, no token dropped.

    The coefficients belong to terms of the gradient that no reported loss contains: the balance of Fedus 2021
    and the z-loss of Zoph 2022.
    """

    num_experts: int = Field(ge=2)
    """Experts per layer."""
    experts_per_token: int = Field(ge=1)
    """How many of them see a token."""
    balance_coefficient: float = Field(0.01, ge=0)
    """Weight of E sum f_i P_i, which is 1 when the load is even."""
    z_coefficient: float = Field(0.001, ge=0)
    """Weight of the mean squared logsumexp of the router's logits."""

    @model_validator(mode="after")
    def _some_are_left_out(self) -> "ExpertsConfig":
        if self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} of {self.num_experts} experts")
        return self


class Architecture(Section):
    """One decoder-only transformer, without its vocabulary (that is the tokenizer's)."""

    family: Literal["llama", "vesper"]
    """
    Which building code reads this file: "llama" is transformers' own Llama (Mixtral with `moe`), "vesper" is
    the same skeleton with a gate of its own.
    """
    hidden_size: int = Field(ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(ge=1)
    """Decoder layers."""
    num_heads: int = Field(ge=1)
    """Query heads."""
    num_kv_heads: int = Field(ge=1)
    """Key and value heads; divides `num_heads`."""
    head_dim: int = Field(ge=2)
    """Width of one head, even (rotary embedding turns pairs)."""
    ffn_size: int = Field(ge=1)
    """Inner width of the gated block, of each expert with `moe`."""
    moe: ExpertsConfig | None = None
    """Experts; without it every token sees the one FFN."""
    activation: Literal["era", "gelu_tanh", "silu"] | None = None
    """Gate of the FFN. Left out: SiLU for llama, which has no other, and ERA for vesper."""
    gamma: float | None = Field(None, ge=0)
    """Share of softplus in ERA(x) = GELU_tanh(x) + gamma softplus(x); left out: 0.1."""
    adapter: AdapterConfig | None = None
    """Low-rank adapters that are part of the model, vesper only; llama takes PEFT's in stage 70."""
    context_length_tokens: int = Field(ge=2)
    """Longest sequence the model declares, in tokens."""
    rope_theta: float = Field(gt=0)
    """Base of the rotary frequencies."""
    norm_epsilon: float = Field(gt=0)
    """Epsilon of RMSNorm."""
    tie_embeddings: bool
    """Whether the output head is the embedding matrix."""
    reference_vocab_size: int = Field(ge=1)
    """Vocabulary for which `declared_parameters` was counted."""
    declared_parameters: int = Field(ge=1)
    """Parameters at `reference_vocab_size`, exactly."""

    @property
    def gate(self) -> str:
        """The activation that runs."""
        return self.activation or ("silu" if self.family == "llama" else "era")

    @property
    def attention_width(self) -> int:
        """Outputs of the query projection."""
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Outputs of the key projection, and of that of the values."""
        return self.num_kv_heads * self.head_dim

    @property
    def softplus_share(self) -> float:
        """The gamma that runs."""
        return DEFAULT_GAMMA if self.gamma is None else self.gamma

    @model_validator(mode="after")
    def _gate_exists(self) -> "Architecture":
        if self.family == "llama" and self.gate != "silu":
            raise ValueError(f'activation "{self.gate}" needs family "vesper"; llama has "silu" only')
        if self.adapter and self.family == "llama":
            raise ValueError('adapter needs family "vesper"; stage 70 gives a llama its adapters')
        if self.gamma is not None and self.gate != "era":
            raise ValueError(f'gamma belongs to activation "era", this is "{self.gate}"')
        return self

    @model_validator(mode="after")
    def _shapes_fit(self) -> "Architecture":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        return self
