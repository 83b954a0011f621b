"""
What a shape costs, without building it: exact parameter counts, FLOPs, and the rules behind every "auto".

    architecture = load_architecture("demo", REPOSITORY)
    count = count_parameters(architecture, vocab_size=4096)       # total 4,458,752, body 3,410,176
    flops_per_token(architecture, 4096, 256)                      # 29.9 million

Imports no torch, so a plan can be printed in a blink.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.config.adapter import AdapterConfig
from utils.config.architecture import Architecture
from utils.config.pretrain import PretrainConfig
from utils.pipeline.config import load_config
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import Workspace

K_QUANT_BLOCK = 256
EXPERT_TARGETS = ("gate_proj", "up_proj", "down_proj")
CAUSE_COLUMN = 34
REFERENCE_PARAMETERS = 23e6
REFERENCE_BATCH_TOKENS = 32_768


@dataclass(frozen=True)
class ParameterCount:
    """
    Parameters of a model with its vocabulary. `body` is everything but embedding and head, `active` the part
    of the body that a token meets: all of it without experts.
    """

    total: int
    body: int
    active: int


def load_architecture(name: str, workspace: Workspace) -> Architecture:
    """The shape in config/architectures/<name>.json. ConfigError names what is wrong with it."""
    return load_config(Path(f"config/architectures/{name}.json"), Architecture, workspace).config


def count_parameters(architecture: Architecture, vocab_size: int) -> ParameterCount:
    """
    body = L (2 d a + 2 d k + 3 d f + 2 d) + d; embedding V d, and once more for a head of its own. With E
    experts 3 d f becomes E 3 d f + E d.
    """
    width, moe = architecture.hidden_size, architecture.moe
    attention, keys = architecture.attention_width, architecture.key_width
    rest, ffn = 2 * width * (attention + keys + 1), 3 * width * architecture.ffn_size
    router, experts, met = (
        (moe.num_experts * width, moe.num_experts, moe.experts_per_token) if moe else (0, 1, 1)
    )
    body, active = (
        architecture.num_layers * (rest + router + count * ffn) + width for count in (experts, met)
    )
    body += adapter_parameters(architecture, experts)
    active += adapter_parameters(architecture, met)
    tables = 1 if architecture.tie_embeddings else 2
    return ParameterCount(body + tables * vocab_size * width, body, active)


def adapter_parameters(architecture: Architecture, num_experts: int = 1) -> int:
    """
    Parameters of the adapters: r m for B on m outputs, and for dense r n for A on n inputs; those of the FFN
    once per expert.
    """
    adapter, width, ffn = architecture.adapter, architecture.hidden_size, architecture.ffn_size
    if adapter is None:
        return 0
    attention, keys = architecture.attention_width, architecture.key_width
    sides = {"q_proj": (width, attention), "k_proj": (width, keys), "v_proj": (width, keys)}
    sides |= {"o_proj": (attention, width), "gate_proj": (width, ffn), "up_proj": (width, ffn)}
    sides["down_proj"] = (ffn, width)
    total = 0
    for name in set(adapter.targets):
        inputs, outputs = sides[name]
        times = num_experts if name in EXPERT_TARGETS else 1
        total += times * (outputs + (inputs if adapter.kind == "dense" else 0))
    return architecture.num_layers * adapter.num_ranks * total


def flops_per_token(
    architecture: Architecture, vocab_size: int, sequence_length: int, causal: bool = False
) -> float:
    """
    Forward and backward: 6 per weight that multiplies a token (the head, not the lookup; the experts it
    meets; not the norms), 12 L a T for attention, half of that when `causal` leaves out what the mask hides.
    """
    layers, width = architecture.num_layers, architecture.hidden_size
    matrices = count_parameters(architecture, vocab_size).active - (2 * layers + 1) * width
    multiplied = matrices + vocab_size * width
    scores = (6 if causal else 12) * layers * architecture.attention_width * sequence_length
    return 6 * multiplied + scores


def quantizes_to_k(architecture: Architecture) -> bool:
    """Whether every row is a multiple of 256, the block of llama.cpp's K-quants."""
    lengths = architecture.hidden_size, architecture.ffn_size, architecture.attention_width
    return all(length % K_QUANT_BLOCK == 0 for length in lengths)


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
    """The arithmetic of a run, resolved; `rules` says how each "auto" and the budget became a number."""

    steps: int
    batch_rows: int
    row_tokens: int
    learning_rate: float
    parameters: ParameterCount
    dataset_rows: int
    rules: tuple[str, ...] = ()

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

    ConfigError when the datasets have rows of different lengths, or longer ones than the model declares, or
    fewer than the config wants in a step.
    """
    row_tokens = _row_tokens(architecture, config.model, {length for _, length in datasets})
    parameters = count_parameters(architecture, vocab_size)
    rows = sum(count for count, _ in datasets)
    wanted, batch_rule = _batch_tokens(config, parameters)
    if wanted < row_tokens:
        raise ConfigError(
            f'"global_batch_tokens": {wanted:,} is less than one row of {row_tokens:,} tokens',
            fix=f'"global_batch_tokens": {row_tokens} or more',
        )
    batch_rows = round(wanted / row_tokens)
    if config.global_batch_tokens != "auto" and batch_rows > rows:
        raise ConfigError(
            f'"global_batch_tokens": {wanted:,} is {batch_rows:,} rows of {row_tokens:,} tokens, '
            f"and there are only {rows:,}: a step would read the same row twice",
            fix=f'"global_batch_tokens": {rows * row_tokens} or less, or more data',
        )
    step_tokens = batch_rows * row_tokens
    unit, units = config.budget.unit, {"tokens": 1, "steps": step_tokens, "epochs": rows * row_tokens}
    size = (units | {"tokens_per_parameter": parameters.total})[unit]
    tokens = config.budget.value * size
    steps = max(1, math.ceil(tokens / step_tokens))
    peak, rate_rule = _learning_rate(config, parameters)
    rules = (
        f"global_batch_tokens = {batch_rule} -> {batch_rows} rows x {row_tokens} = {step_tokens:,}",
        f"tokens = {config.budget.value:,g} {unit} x {size:,} = {tokens:,.0f}",
        f"steps = ceil({tokens:,.0f} / {step_tokens:,}) = {steps:,}",
        f"learning_rate = {rate_rule} = {peak:.3g}",
    )
    return TrainingPlan(steps, batch_rows, row_tokens, peak, parameters, rows, rules)


def _batch_tokens(config: PretrainConfig, parameters: ParameterCount) -> tuple[int, str]:
    asked = config.global_batch_tokens
    if asked != "auto":
        return asked, f"{asked:,}"
    found = auto_batch_tokens(parameters.total)
    rule = f"2^round(log2(32,768 sqrt({parameters.total:,} / 23e6))) within 2^13..2^19 = {found:,}"
    return found, rule


def _learning_rate(config: PretrainConfig, parameters: ParameterCount) -> tuple[float, str]:
    asked = config.optimizer.learning_rate
    if asked != "auto":
        return asked, "as configured"
    return auto_learning_rate(parameters.body), f"0.003239 - 0.0001395 ln({parameters.body:,})"


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
            f"the data has rows of {row_tokens}",
            fix=f'"context_length_tokens": {row_tokens} or more in config/architectures/{name}.json, '
            'a "model" that has it, or '
            f'"sequence_length_tokens": {architecture.context_length_tokens} in stage 40',
        )
    return row_tokens


def describe_model(name: str, architecture: Architecture, vocab_size: int, sequence_length: int) -> str:
    """The model as one line: counts, tying and cost."""
    count = count_parameters(architecture, vocab_size)
    flops, causal = (
        flops_per_token(architecture, vocab_size, sequence_length, causal) / 1e6 for causal in (False, True)
    )
    active = f", {count.active:,} of them active per token" if architecture.moe else ""
    return (
        f"{name}: {count.total:,} parameters ({count.body:,} without embeddings{active}), "
        f"{'tied' if architecture.tie_embeddings else 'untied'}, vocabulary {vocab_size:,}, "
        f"{flops:.1f} MFLOP/token ({causal:.1f} causal)"
    )


def gguf_obstacles(config: Mapping) -> list[str]:
    """
    Why llama.cpp cannot compute this model, one line per cause; empty when a GGUF of it is possible.

    `config` is what `config.json` of the checkpoint says (`obstacle_view` makes one of an architecture).
    """
    found = []
    gate, gamma = config.get("hidden_act", "silu"), config.get("gamma", 0.0)
    if gate != "silu":
        share = f" (gamma {gamma:g})" if gate == "era" else ""
        found.append(f"activation {gate}{share}: llama.cpp's llama graph computes SiLU only")
    if config.get("adapter"):
        adapter = AdapterConfig.model_validate(config["adapter"])
        active, ranks = adapter.num_active_ranks, adapter.num_ranks
        found.append(
            f"adapter fly, {active} of {ranks} ranks: depends on the token, cannot be merged"
            if active < ranks
            else f"adapter {adapter.kind}, rank {ranks}: not merged into the weights"
        )
    return found


def in_columns(obstacles: Sequence[str]) -> list[str]:
    """Lines of `gguf_obstacles` as the columns of a refusal: what, and why not."""
    return [
        f"{cause:<{CAUSE_COLUMN}}{reason}" for cause, reason in (each.split(": ", 1) for each in obstacles)
    ]


def obstacle_view(architecture: Architecture) -> dict:
    """The part of the checkpoint's config.json that decides about a GGUF."""
    adapter = architecture.adapter and architecture.adapter.model_dump()
    return {"hidden_act": architecture.gate, "gamma": architecture.softplus_share, "adapter": adapter}


def describe_gguf(architecture: Architecture) -> str:
    """What a GGUF of the model can be, or why there is none."""
    if obstacles := gguf_obstacles(obstacle_view(architecture)):
        return f"no GGUF: {'; '.join(obstacles)}"
    if quantizes_to_k(architecture):
        return "GGUF: yes, K-quants: yes"
    return "GGUF: yes, as F16, Q8_0 or a type with blocks of 32; K-quants: no (rows are no multiple of 256)"


def readable(count: float) -> str:
    """A count with three figures: 1.60 M, 11.2 M, 512."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"
