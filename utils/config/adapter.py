"""
Low-rank adapters that are part of a model of our own: what the `adapter` block of an architecture may say.

    {"kind": "fly", "targets": ["gate_proj", "up_proj", "down_proj"], "rank": 32, "active_ranks": 8}

`dense` is LoRA (Hu 2021), `fly` is FlyLoRA (Zou 2025, arXiv 2510.08396); `utils.models.flylora` builds both.
"""

from typing import Literal

from pydantic import Field, model_validator

from utils.pipeline.config import Section

DEFAULT_RANKS = {"dense": 16, "fly": 32}
DEFAULT_ACTIVE_RANKS = 8
BALANCE_STEP = 1e-3
Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class AdapterConfig(Section):
    """One kind of adapter on every linear layer, and every expert's matrix, with a name in `targets`."""

    kind: Literal["dense", "fly"]
    """
    "dense" adds B A x and merges exactly; "fly" adds the part of B A x that the strongest ranks of each token
    carry, over a fixed sparse A.
    """
    targets: tuple[Target, ...] = Field(("gate_proj", "up_proj", "down_proj"), min_length=1)
    """Last names of the linear layers; with experts the last three mean the matrices of every expert."""
    rank: int | None = Field(None, ge=1)
    """Rows of A. Left out: 16 for dense, 32 for fly."""
    alpha: float | None = Field(None, gt=0)
    """The update is alpha / rank times B A. Left out: twice the rank."""
    train_base: bool = False
    """Whether the model's own weights train as well."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of inputs hidden from the adapter in training; dense only."""
    active_ranks: int | None = Field(None, ge=1)
    """Ranks that a token uses; fly only. Left out: 8. Equal to the rank, the adapter can be merged."""
    density: float | None = Field(None, gt=0, le=1)
    """Share of non-zeros in each row of A; fly only. Left out: active_ranks / rank."""
    balance: Literal["magnitude", "published", "off"] | None = None
    """
    Score that picks ranks, fly only: |z| + d (the default, ours), |z + d| (as published; it does not even
    out the load), or |z|. d rises for ranks used less than the mean.
    """
    balance_step: float | None = Field(None, gt=0)
    """What d moves by after each optimizer step; fly only. Left out: 0.001."""

    @property
    def num_ranks(self) -> int:
        """The rank that is built."""
        return DEFAULT_RANKS[self.kind] if self.rank is None else self.rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / self.num_ranks

    @property
    def num_active_ranks(self) -> int:
        """Ranks that a token uses."""
        if self.kind == "dense":
            return self.num_ranks
        return min(DEFAULT_ACTIVE_RANKS, self.num_ranks) if self.active_ranks is None else self.active_ranks

    @property
    def row_density(self) -> float:
        """Share of non-zeros in each row of A."""
        return self.num_active_ranks / self.num_ranks if self.density is None else self.density

    @property
    def score(self) -> str:
        """The rule that picks ranks."""
        return self.balance or "magnitude"

    @property
    def offset_step(self) -> float:
        """What d moves by after each optimizer step."""
        return BALANCE_STEP if self.balance_step is None else self.balance_step

    @model_validator(mode="after")
    def _fields_belong_to_the_kind(self) -> "AdapterConfig":
        foreign = ("active_ranks", "density", "balance", "balance_step")
        if self.kind == "dense" and (named := [name for name in foreign if getattr(self, name) is not None]):
            raise ValueError(f'{", ".join(named)} belong to kind "fly"')
        if self.kind == "fly" and self.dropout:
            raise ValueError('dropout belongs to kind "dense"')
        if self.num_active_ranks > self.num_ranks:
            raise ValueError(f"active_ranks {self.num_active_ranks} of rank {self.num_ranks}")
        return self
