"""
The arithmetic of fine-tuning: rows, steps and learning rate, and what is refused before it starts.

    check_layout(stage.inputs("data"), "chat", "60_prepare_sft")
    check_context(train + val, model.config.max_position_embeddings)
    plan = plan_tuning(config, num_rows=812, auto_learning_rate=2e-4)    # .steps .batch_rows .learning_rate
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.config.sft import TuningRun
from utils.pipeline.errors import ConfigError
from utils.pipeline.inputs import Input
from utils.training.conversations import PackedConversations


@dataclass(frozen=True)
class TuningPlan:
    """How many steps of how many rows, at which peak learning rate."""

    steps: int
    batch_rows: int
    num_rows: int
    row_tokens: int
    learning_rate: float

    @property
    def epochs(self) -> float:
        return self.steps * self.batch_rows / self.num_rows

    def describe(self) -> str:
        return (
            f"{self.steps:,} steps x {self.batch_rows} rows x {self.row_tokens}; "
            f"{self.epochs:.2f} epochs of {self.num_rows:,} rows; peak lr {self.learning_rate:.2e}"
        )

    def figures(self) -> dict:
        """What the manifest says of the plan."""
        return {"planned_steps": self.steps, "batch_rows": self.batch_rows, "epochs": round(self.epochs, 6)}


def plan_tuning(config: TuningRun, num_rows: int, auto_learning_rate: float) -> TuningPlan:
    """
    Steps from `epochs` or `max_steps`; a step holds `global_batch_tokens` rounded to whole rows, at least
    one. ConfigError when that is more rows than there are.
    """
    asked, row_tokens = config.global_batch_tokens, config.row_tokens
    batch_rows = max(1, round(asked / row_tokens))
    if batch_rows > num_rows:
        raise ConfigError(
            f'"global_batch_tokens": {asked:,} is {batch_rows:,} rows of {row_tokens:,} tokens, '
            f"and there are only {num_rows:,}: a step would read the same row twice",
            fix=f'"global_batch_tokens": {num_rows * row_tokens} or less, or more data',
        )
    steps = config.max_steps or max(1, math.ceil(config.epochs * num_rows / batch_rows))
    rate = config.optimizer.learning_rate
    return TuningPlan(steps, batch_rows, num_rows, row_tokens, auto_learning_rate if rate == "auto" else rate)


def check_context(splits: Sequence[PackedConversations], context_tokens: int) -> None:
    """ConfigError when a conversation is longer than what the model was made to read."""
    longest = max(int(np.max(each.dataset.lengths)) for each in splits)
    if longest > context_tokens + 1:
        raise ConfigError(
            f"the longest conversation has {longest:,} ids, the model reads {context_tokens:,} tokens",
            fix="prepare the data with a lower limit (max_conversation_tokens, max_pair_tokens)",
        )


def check_layout(inputs: Sequence[Input], layout: str, writer: str) -> None:
    """ConfigError when a dataset was prepared for another kind of training."""
    for given in inputs:
        found = given.manifest.metrics.get("layout", "none")
        if found != layout:
            raise ConfigError(
                f'input "{given.role}" ({given.path.name}, of {given.manifest.stage}) has the layout '
                f'"{found}", this stage trains on "{layout}"',
                fix=f"name a folder written by {writer}",
            )
