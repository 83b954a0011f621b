"""
The shape of a model: what `config/architectures/<name>.json` may say.

Every field reaches the model, and `declared_parameters` is asserted by a test, so a size in this project is a
number and not a label.

    {"family": "llama", "hidden_size": 256, "num_layers": 4, ..., "declared_parameters": 4458752}
"""

from typing import Literal

from pydantic import Field, model_validator

from utils.pipeline.config import Section


class Architecture(Section):
    """One decoder-only transformer, without its vocabulary (that is the tokenizer's)."""

    family: Literal["llama"]
    """Which building code reads this file."""
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
    """Inner width of the SwiGLU block."""
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

    @model_validator(mode="after")
    def _shapes_fit(self) -> "Architecture":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding turns pairs")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of num_heads {self.num_heads}")
        return self
