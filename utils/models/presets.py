"""
What a shape costs, without building it: exact parameter counts, FLOPs, and the rules behind every "auto".

    architecture = load_architecture("demo", REPOSITORY)
    count = count_parameters(architecture, vocab_size=4096)       # total 4,458,752, body 3,410,176
    flops_per_token(architecture, 4096, 256)                      # 29.9 million

Imports no torch, so a plan can be printed in a blink.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config.architecture import Architecture
from utils.config.pretrain import PretrainConfig
from utils.pipeline.config import load_config
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import Workspace

K_QUANT_BLOCK = 256
REFERENCE_PARAMETERS = 23e6
REFERENCE_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model with its vocabulary; `body` is everything but embedding and head."""

    total: int
    body: int


def load_architecture(name: str, workspace: Workspace) -> Architecture:
    """The shape in config/architectures/<name>.json. ConfigError names what is wrong with it."""
    return load_config(Path(f"config/architectures/{name}.json"), Architecture, workspace).config


def count_parameters(architecture: Architecture, vocab_size: int) -> ParameterCount:
    """body = L (2 d a + 2 d k + 3 d f + 2 d) + d; embedding V d, and once more for a head of its own."""
    width, ffn = architecture.hidden_size, architecture.ffn_size
    attention = architecture.num_heads * architecture.head_dim
    keys = architecture.num_kv_heads * architecture.head_dim
    layer = 2 * width * attention + 2 * width * keys + 3 * width * ffn + 2 * width
    body = architecture.num_layers * layer + width
    tables = 1 if architecture.tie_embeddings else 2
    return ParameterCount(body + tables * vocab_size * width, body)


def flops_per_token(architecture: Architecture, vocab_size: int, sequence_length: int) -> float:
    """
    Forward and backward: 6 per weight that multiplies a token (the head, not the lookup), 12 L a T for
    attention.
    """
    multiplied = count_parameters(architecture, vocab_size).body + vocab_size * architecture.hidden_size
    attention = architecture.num_heads * architecture.head_dim
    return 6 * multiplied + 12 * architecture.num_layers * attention * sequence_length


def quantizes_to_k(architecture: Architecture) -> bool:
    """Whether every row is a multiple of 256, the block of llama.cpp's K-quants."""
    attention = architecture.num_heads * architecture.head_dim
    return all(
        rows % K_QUANT_BLOCK == 0 for rows in (architecture.hidden_size, architecture.ffn_size, attention)
    )


def initial_deviation(architecture: Architecture) -> float:
    """Standard deviation s of the initial weights: 0.02, less for widths above 768."""
    return 0.02 * min(1.0, math.sqrt(768 / architecture.hidden_size))


def expected_initial_loss(architecture: Architecture, vocab_size: int) -> float:
    """Nats at step 0: ln V, and d s^2 / 2 for logits of variance d s^2."""
    return math.log(vocab_size) + architecture.hidden_size * initial_deviation(architecture) ** 2 / 2


def auto_learning_rate(body: int) -> float:
    """Peak learning rate after Kaplan 2020, equation D.1, for Adam-like rules."""
    return 0.003239 - 0.0001395 * math.log(body)


def auto_batch_tokens(total: int) -> int:
    """
    Tokens per step: 32,768 at 23 M parameters, growing with the root of the size, a power of two in
    2^13..2^19.
    """
    exponent = round(math.log2(REFERENCE_BATCH_TOKENS * math.sqrt(total / REFERENCE_PARAMETERS)))
    return 2 ** min(max(exponent, 13), 19)


@dataclass(frozen=True)
class TrainingPlan:
    """The arithmetic of a run, resolved."""

    steps: int
    batch_rows: int
    row_tokens: int
    learning_rate: float
    parameters: ParameterCount
    dataset_rows: int

    @property
    def batch_tokens(self) -> int:
        return self.batch_rows * self.row_tokens

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def epochs(self) -> float:
        return self.steps * self.batch_rows / self.dataset_rows

    def figures(self) -> dict:
        """The resolved numbers, for the manifest."""
        return {
            "parameters": self.parameters.total,
            "parameters_without_embeddings": self.parameters.body,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "batch_rows": self.batch_rows,
            "learning_rate": self.learning_rate,
        }

    def describe(self) -> str:
        """The budget as one line of arithmetic."""
        ratio, body_ratio = self.tokens / self.parameters.total, self.tokens / self.parameters.body
        return (
            f"{readable(self.tokens)} tokens = "
            f"{self.steps:,} steps x {self.batch_rows} rows x {self.row_tokens}; "
            f"{ratio:.2f} tokens/parameter ({body_ratio:.2f} without embeddings); "
            f"{self.epochs:.2f} epochs of {readable(self.dataset_rows * self.row_tokens)}"
        )


def plan_training(
    config: PretrainConfig, architecture: Architecture, vocab_size: int, datasets: Sequence[tuple[int, int]]
) -> TrainingPlan:
    """
    Steps, rows per step and peak learning rate; `datasets` holds (rows, tokens per row) of each.

    ConfigError when the datasets have rows of different lengths, or longer ones than the model declares.
    """
    row_tokens = _row_tokens(architecture, config.model, {length for _, length in datasets})
    parameters = count_parameters(architecture, vocab_size)
    auto = config.global_batch_tokens == "auto"
    wanted = auto_batch_tokens(parameters.total) if auto else config.global_batch_tokens
    if wanted < row_tokens:
        raise ConfigError(f'"global_batch_tokens": {wanted:,} is less than one row of {row_tokens:,} tokens')
    batch_rows = round(wanted / row_tokens)
    rows = sum(count for count, _ in datasets)
    tokens = (
        config.budget.value
        * {
            "tokens": 1,
            "steps": batch_rows * row_tokens,
            "epochs": rows * row_tokens,
            "tokens_per_parameter": parameters.total,
        }[config.budget.unit]
    )
    steps = max(1, math.ceil(tokens / (batch_rows * row_tokens)))
    asked = config.optimizer.learning_rate
    peak = auto_learning_rate(parameters.body) if asked == "auto" else asked
    return TrainingPlan(steps, batch_rows, row_tokens, peak, parameters, rows)


def _row_tokens(architecture: Architecture, name: str, lengths: set[int]) -> int:
    if len(lengths) > 1:
        raise ConfigError(
            f'"inputs.data": rows of {" and ".join(map(str, sorted(lengths)))} tokens cannot share a batch',
            fix='pack them with one "sequence_length_tokens"',
        )
    (row_tokens,) = lengths
    if row_tokens > architecture.context_length_tokens:
        raise ConfigError(
            f'"model": {name} declares a context of {architecture.context_length_tokens} tokens, '
            f"the data has rows of {row_tokens}"
        )
    return row_tokens


def describe_model(name: str, architecture: Architecture, vocab_size: int, sequence_length: int) -> str:
    """The model as one line: counts, tying, cost, and what a GGUF of it can be quantised to."""
    count = count_parameters(architecture, vocab_size)
    flops = flops_per_token(architecture, vocab_size, sequence_length)
    quants = "K-quants: yes" if quantizes_to_k(architecture) else "K-quants: no (rows are no multiple of 256)"
    return (
        f"{name}: {count.total:,} parameters ({count.body:,} without embeddings), "
        f"{'tied' if architecture.tie_embeddings else 'untied'}, vocabulary {vocab_size:,}, "
        f"{flops / 1e6:.1f} MFLOP/token; GGUF: yes, {quants}"
    )


def readable(count: float) -> str:
    """A count with three figures: 1.60 M, 11.2 M, 512."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
