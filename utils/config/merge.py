"""
Config of stage 110: an adapter into the weights of its base, with measured parity.

    {"output": "checkpoints/demo/merged",
     "inputs": {"base": "checkpoints/demo/base", "adapter": "checkpoints/demo/preferences", "prompts":
     "data/demo/sft"}}
"""

from typing import ClassVar, Literal

from pydantic import Field

from utils.pipeline.config import InputFolder, Section, StageConfig


class MergeInputs(Section):
    """What is merged, and the held-out prompts that prove it."""

    base: InputFolder
    """The model that the adapter was trained on (stage 50)."""
    adapter: InputFolder
    """Adapter or full fine-tune (stage 70 or 90); full weights pass through unchanged."""
    prompts: InputFolder
    """Chat data (stage 60) whose held-out conversations are compared."""


class MergeVerification(Section):
    """When the merged model is the adapted one."""

    prompts: int = Field(default=64, ge=1)
    """Held-out conversations compared."""
    max_mean_kl: float = Field(default=1e-4, gt=0)
    """Largest mean KL divergence per token, in nats, of merged against base plus adapter."""


class MergeConfig(StageConfig):
    """Stage 110."""

    stage: ClassVar[str] = "110_merge_lora"
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "seeded"

    inputs: MergeInputs
    """What is merged, and what proves it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the written weights; the merge itself is done in float32."""
    verify: MergeVerification = MergeVerification()
    """How parity is measured and what is allowed."""
