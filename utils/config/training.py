"""
What every training stage (50, 70, 90) says about its run: optimizer, schedule, batch, precision, checkpoints.

    class PretrainConfig(TrainingConfig):
        stage: ClassVar[str] = "50_pretrain"
        model: ...

Semantic fields decide the weights and enter the key; runtime fields decide how fast they come and how often
they are saved.
"""

import math
import os
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from utils.pipeline.config import Neutral, Runtime, Section, StageConfig

SLOWEST_BETA1 = 0.5
FASTEST_BETA1 = 0.98


class EntropyConfig(Section):
    """Velvet: the learning rate follows the entropy of the predictions, h = entropy / ln V in [0, 1]."""

    enabled: bool = True
    """Off: the schedule alone decides the learning rate."""
    source: Literal["entropy", "loss"] = "entropy"
    """What h is: the entropy of the predictions, or the loss over ln V, which costs nothing to compute."""
    target_fraction: float = Field(0.5, gt=0, le=1)
    """The h at which the learning rate is the schedule's; the factor is h over this."""
    bounds: tuple[float, float] = (0.7, 1.3)
    """Least and greatest factor on the learning rate."""

    @field_validator("bounds")
    @classmethod
    def _around_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= 1 <= value[1]:
            raise ValueError(f"bounds {value} must hold 0 < low <= 1 <= high")
        return value


class PerplexityConfig(Section):
    """
    Velvet: beta1 follows the perplexity, 1 - (1 - beta1) clamp((perplexity / baseline)^exponent, 1/2, 2).
    """

    enabled: bool = True
    """Off: beta1 is constant."""
    baseline: float = Field(40.0, gt=0)
    """The perplexity at which beta1 is the one of `betas`; above it the momentum forgets faster."""
    exponent: float = 0.5
    """How strongly; negative turns the direction round."""


class OptimizerConfig(Section):
    """
    AdamW (Loshchilov 2019), or Velvet, which is AdamW with a learning rate and a beta1 that follow the run;
    decoupled decay on matrices only.
    """

    kind: Literal["adamw", "velvet"] = "adamw"
    """The update rule."""
    learning_rate: float | Literal["auto"] = "auto"
    """Peak learning rate; "auto" follows the number of non-embedding parameters."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the first and second moment."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of tensors with two or more dimensions, embeddings apart."""
    decay_embeddings: bool = False
    """Whether embeddings (and a tied head) decay as well."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Global norm above which the gradient is scaled down."""
    smoothing: Annotated[float, Neutral(0.98)] = Field(0.98, ge=0, lt=1)
    """Velvet: weight of the past in the averages of loss and entropy."""
    entropy: Annotated[EntropyConfig, Neutral(EntropyConfig())] = EntropyConfig()
    """Velvet: what the learning rate follows."""
    perplexity: Annotated[PerplexityConfig, Neutral(PerplexityConfig())] = PerplexityConfig()
    """Velvet: what beta1 follows."""

    @property
    def follows_entropy(self) -> bool:
        """Whether the head has to compute the entropy of its predictions."""
        return self.kind == "velvet" and self.entropy.enabled and self.entropy.source == "entropy"

    @property
    def largest_beta1(self) -> float:
        """The longest momentum that Velvet's perplexity control may reach: min(0.98, sqrt(beta2) - 0.005)."""
        return min(FASTEST_BETA1, math.sqrt(self.betas[1]) - 0.005)

    @model_validator(mode="after")
    def _momentum_fits(self) -> Self:
        beta1 = self.betas[0]
        if self.kind != "velvet" or not self.perplexity.enabled:
            return self
        if not SLOWEST_BETA1 <= beta1 <= self.largest_beta1:
            raise ValueError(
                f"betas {self.betas}: with the perplexity control beta1 must lie in [{SLOWEST_BETA1}, "
                f"min({FASTEST_BETA1}, sqrt(beta2) - 0.005) = {self.largest_beta1:.4f}]"
            )
        return self

    @field_validator("learning_rate")
    @classmethod
    def _not_negative(cls, value: float | str) -> float | str:
        if value != "auto" and value < 0:
            raise ValueError(f"learning_rate {value} is below 0")
        return value

    @field_validator("betas")
    @classmethod
    def _below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"betas {value} must lie in [0, 1)")
        return value


class ScheduleConfig(Section):
    """Learning rate over the run, as a share of the peak."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "wsd"
    """Shape after the warm-up; "wsd" stays at the peak and then falls with a square root."""
    warmup_steps: int | Literal["auto"] = "auto"
    """Steps of linear rise."""
    decay_fraction: float = Field(0.3, ge=0, le=1)
    """Share of all steps in which "wsd" falls."""
    final_fraction: float = Field(0.0, ge=0, le=1)
    """Learning rate after the last step, as a share of the peak."""

    @field_validator("warmup_steps")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if value != "auto" and value < 1:
            raise ValueError(f"warmup_steps {value} is below 1")
        return value


def refuse_twice(paths: Sequence[str]) -> None:
    """ValueError for a dataset that a mixture names more than once: its weight is what says how often."""
    places = [os.path.normpath(path) for path in paths]
    if twice := next((place for place in places if places.count(place) > 1), ""):
        raise ValueError(f"{twice} is named twice; name it once, with the sum of the weights")


class TrainingConfig(StageConfig):
    """The part of a training stage's config that the shared loop reads."""

    stage_version: ClassVar[int] = 4
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "seeded"
    keeps_partial: ClassVar[bool] = True
    work: ClassVar[str] = "checkpoints/step_*"

    seed: int = Field(0, ge=0)
    """Seed of initial weights, row order and dropout."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The update rule."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over the run."""
    global_batch_tokens: int | Literal["auto"] = "auto"
    """Tokens of one optimizer step over all processes, rounded to whole rows."""
    micro_batch_rows: Runtime[int | Literal["auto"]] = "auto"
    """Rows per forward pass and process; must divide the rows of a process. "auto" tries what fits."""
    document_attention: Annotated[Literal["isolated", "full"], Neutral("isolated")] = "isolated"
    """
    Whether a token sees only its own document ("isolated") or everything before it in its row ("full") while
    it is trained on; validation isolates documents either way.
    """
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """
    Arithmetic of the forward pass; parameters, gradients and moments are fp32. "auto" is bf16 where the
    device has it, else fp16 on CUDA (with a scaled loss) and fp32 on a CPU.
    """
    deterministic: Annotated[bool, Neutral(False)] = False
    """Equal bits on every run on CUDA as well, at some cost in speed; a CPU gives them anyway."""
    attention: Runtime[Literal["auto", "flash_attention_2", "sdpa", "eager", "tiled"]] = "auto"
    """
    Form of attention: "auto" is flash attention 2 where it is installed and can run, "tiled" (our own) in
    bf16 on a CPU, else torch's SDPA.
    """
    compile: Runtime[Literal["off", "auto", "on"]] = "off"
    """Compile the decoder layers: "auto" does on CUDA for runs of 500 steps and more."""
    activation_checkpointing: Runtime[bool] = False
    """Keep only the inputs of each decoder layer and compute the rest again in the backward pass."""
    kernels: Runtime[Literal["auto", "torch", "triton"]] = "auto"
    """
    Form of the head loss and of Velvet's update: "auto" is Triton on CUDA where it agrees with torch, else
    torch.
    """
    cpu_threads: Runtime[int | Literal["auto"]] = "auto"
    """
    Threads per process; "auto" is this process's share of the usable cores, or one where that is clearly
    faster, found once and kept with the run. The last bits depend on it: give a number where runs have to be
    equal to the byte.
    """
    eval_every_steps: int | Literal["auto"] = "auto"
    """Optimizer steps between evaluations; "auto" is a twentieth of the run."""
    early_stopping_patience_evals: Annotated[int, Neutral(0)] = Field(0, ge=0)
    """Evaluations without a new best after which the run ends; 0 never ends it early."""
    save_every_steps: Runtime[int | Literal["auto"]] = "auto"
    """Optimizer steps between checkpoints; "auto" is a twentieth of the run."""
    save_every_minutes: Runtime[float] = Field(15.0, gt=0)
    """A checkpoint is also written when this long has passed since the last."""
    keep_last: Runtime[int] = Field(2, ge=1)
    """Checkpoints kept, counted from the newest."""
    keep_best: Runtime[bool] = True
    """Whether the checkpoint with the lowest validation loss is kept as well."""
    publish: Literal["last", "best"] = "last"
    """Which checkpoint's weights become the artifact."""
    max_consecutive_skips: int = Field(5, ge=1)
    """Steps in a row with a non-finite gradient after which the run ends."""
    preempt_deadline_seconds: Runtime[float] = Field(25.0, gt=0)
    """Time from SIGTERM to a sealed checkpoint; after it the one before stands. torchrun kills after 30."""
    log_every_steps: Runtime[int] = Field(10, ge=1)
    """Optimizer steps between lines in the log."""
    trackers: Runtime[list[Literal["tensorboard", "wandb"]]] = ["tensorboard"]
    """Where curves go besides log/metrics.jsonl; "wandb" wants its package and WANDB_API_KEY."""

    @field_validator(
        "global_batch_tokens", "micro_batch_rows", "cpu_threads", "eval_every_steps", "save_every_steps"
    )
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if value != "auto" and value < 1:
            raise ValueError(f"{value} is below 1")
        return value
