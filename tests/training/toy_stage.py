"""
A training stage small enough for tests: a real runner, a real Trainer, rows that count upwards, a model of
3,000 weights.

    python tests/training/toy_stage.py ROOT --config toy.json        # as a process of its own, to be killed
"""

import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from utils.config.architecture import Architecture
from utils.config.training import TrainingConfig
from utils.models.load import build_initialised
from utils.optim.groups import build_optimizer
from utils.optim.schedule import Schedule
from utils.pipeline.errors import StageError
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import Workspace
from utils.training.checkpoint import Snapshot
from utils.training.loop import Trainer
from utils.training.loss import PLAIN_HEAD, HeadOptions, LossSums, NextTokenLoss
from utils.training.machine import Machine
from utils.training.rng import seed_everything

STAGE = "50_pretrain"
STOPPED = "TOY_STOPPED_IN"  # "1 8": rank 1 gets SIGTERM in the evaluation after step 8
FAILED = "TOY_FAILED_IN"  # "1 memory 8": rank 1 runs out of memory once it has taken 8 steps
FAILURES = {
    "memory": lambda: RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    "host memory": lambda: MemoryError(),
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "bug": lambda: ZeroDivisionError("division by zero"),
}
VOCAB = 32
ARCHITECTURE = Architecture(
    family="llama",
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    ffn_size=32,
    context_length_tokens=64,
    rope_theta=10000.0,
    norm_epsilon=1e-5,
    tie_embeddings=True,
    reference_vocab_size=VOCAB,
    declared_parameters=3120,
)


class ToyConfig(TrainingConfig):
    """The shared part of a training config and a few knobs."""

    stage: ClassVar[str] = STAGE

    steps: int = 10
    """Optimizer steps."""
    dropout: float = 0.0
    """Attention dropout, to see that random state is restored."""
    batch_rows: int = 4
    """Rows of a global batch."""
    poisoned_rows: list[int] = []
    """Rows whose loss is not a number."""
    full_disk_step: int = -1
    """The step whose checkpoint finds no room."""


class ToyBatch(NamedTuple):
    """Rows [B, T + 1]."""

    tokens: torch.Tensor
    document: torch.Tensor
    position: torch.Tensor


class CountingRows:
    """Row i holds two documents that count upwards from different starts; short ones end in padding."""

    def __init__(self, batch_rows: int = 4, length: int = 12, seed: int = 0) -> None:
        self.batch_rows, self.length, self.seed = batch_rows, length, seed
        self.drawn, self.read = 0, []

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[ToyBatch]:
        share = self.batch_rows // num_ranks
        first = self.drawn + rank * share
        self.drawn += self.batch_rows
        self.read = [*range(first, first + share)]
        return [
            self.rows(range(i, min(i + micro_rows, first + share)))
            for i in range(first, first + share, micro_rows)
        ]

    def rows(self, numbers: range) -> ToyBatch:
        made = [self._row(number + 1000 * self.seed) for number in numbers]
        return ToyBatch(*(torch.tensor(column) for column in zip(*made, strict=True)))

    def _row(self, number: int) -> tuple[list[int], list[int], list[int]]:
        split, padding = 4 + number % 5, number % 3
        lengths = (split, self.length + 1 - split - padding)
        tokens = [(7 * number + 3 * d + i) % VOCAB for d, n in enumerate(lengths) for i in range(n)] + [
            0
        ] * padding
        document = [d for d, n in enumerate(lengths) for _ in range(n)] + [-1] * padding
        position = [i for n in lengths for i in range(n)] + [0] * padding
        return tokens, document, position

    def cursor(self) -> dict:
        return {"rows_drawn": self.drawn, "seed": self.seed}

    def row_ids(self, cursor: dict) -> list[list[int]]:
        return [[0, cursor["rows_drawn"] + i] for i in range(self.batch_rows)]

    def epochs(self, steps: int) -> float:
        return steps * self.batch_rows / 100

    def restore(self, cursor: dict) -> None:
        if cursor["seed"] != self.seed:
            raise StageError("the cursor belongs to other rows")
        self.drawn = cursor["rows_drawn"]


class PoisonedRow(NextTokenLoss):
    """A loss that is not a number wherever the rows of these numbers are read."""

    def __init__(self, numbers: list[int], head: HeadOptions = PLAIN_HEAD) -> None:
        super().__init__(head)
        self.rows = CountingRows()
        self.poisoned = [self.rows.rows(range(n, n + 1)).tokens for n in numbers]

    def __call__(self, model: torch.nn.Module, batch: ToyBatch) -> LossSums:
        sums = super().__call__(model, batch)
        found = any((batch.tokens == tokens).all(-1).any() for tokens in self.poisoned)
        return replace(sums, loss_sum=sums.loss_sum * math.nan) if found else sums


def toy_model(seed: int = 0, dropout: float = 0.0, on_meta: bool = False) -> torch.nn.Module:
    special = {"bos": 1, "eos": 2, "pad": 3}
    model = build_initialised(ARCHITECTURE, VOCAB, special, seed=seed, on_meta=on_meta)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    return model


def toy_trainer(config: ToyConfig, stage: Stage) -> Trainer:
    seed_everything(config.seed)
    model = toy_model(config.seed, config.dropout, on_meta=Machine.of(config).sharded)
    schedule = Schedule.of(config.schedule, 1e-2, config.steps, 0.95)
    optimizer = build_optimizer(model, config.optimizer, 1e-2, config.kernels)
    loss = PoisonedRow(config.poisoned_rows, HeadOptions(config.optimizer.follows_entropy, config.kernels))
    return Trainer(model, CountingRows(config.batch_rows), optimizer, schedule, config, stage, loss)


def full_disk(seal: Callable[[Snapshot], None], step: int) -> Callable[[Snapshot], None]:
    """What seals a checkpoint, but for that of a step."""

    def seal_or_fail(snapshot: Snapshot) -> None:
        if snapshot.step == step:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(snapshot)

    return seal_or_fail


def fail_where_asked(trainer: Trainer) -> None:
    """Let one process alone meet what FAILED says: in a forward pass, or where it notes a skipped step."""
    rank, _, asked = os.environ.get(FAILED, "-1 memory 0").partition(" ")
    kind, _, step = asked.rpartition(" ")
    if int(rank) != trainer.machine.rank:
        return
    owner, name = (trainer.skips, "_write") if kind == "disk" else (trainer._gradients, "backward")
    work = getattr(owner, name)

    def fail_or_work(*given: object) -> object:
        if trainer.step >= int(step):
            raise FAILURES[kind]()
        return work(*given)

    setattr(owner, name, fail_or_work)


def note_rows(folder: Path, trainer: Trainer) -> None:
    """One line per step and process: the numbers of the rows that it read."""
    with open(folder / f"rows_{trainer.machine.rank}.jsonl", "a") as file:
        file.write(json.dumps({"step": trainer.step, "rows": trainer.rows.read}) + "\n")


def main(config: ToyConfig, stage: Stage) -> dict:
    trainer = toy_trainer(config, stage)
    trainer._store._seal = full_disk(trainer._store._seal, config.full_disk_step)
    fail_where_asked(trainer)
    assert not getattr(trainer._gradients._wrapped, "broadcast_buffers", False)
    val = [CountingRows(seed=1).rows(range(8))]
    if not trainer.resume():
        trainer.observe(trainer.validate(val))
    for step, _ in trainer:
        note_rows(stage.partial / "log", trainer)
        if trainer.evaluates(step):
            if os.environ.get(STOPPED) == f"{trainer.machine.rank} {step}":
                os.kill(os.getpid(), signal.SIGTERM)
            trainer.observe(trainer.validate(val))
            trainer.record("samples", {"text": f"after {step}"})
        trainer.save_if_due()
    metrics = trainer.finish()
    if stage.is_main:
        torch.save(
            {name: each.detach() for name, each in trainer.model.named_parameters()},
            stage.partial / "weights.pt",
        )
    return metrics


def workspace_of(root: Path) -> Workspace:
    return Workspace(root, {STAGE: "tests.training.toy_stage:ToyConfig"})


def write_config(root: Path, name: str = "toy.json", **values: object) -> Path:
    defaults = {
        "output": "checkpoints/toy",
        "cpu_threads": 1,
        "micro_batch_rows": 4,
        "precision": "fp32",
        "trackers": [],
        "log_every_steps": 100,
    }
    path = root / name
    path.write_text(json.dumps(defaults | {"save_every_steps": 3, "eval_every_steps": 5} | values))
    return path


def run(root: Path, *arguments: str, entry=main) -> int:
    return execute(
        STAGE, ToyConfig, entry, ["--config", str(root / "toy.json"), *arguments], workspace_of(root)
    )


if __name__ == "__main__":
    from utils.pipeline.ranks import Ranks

    ranks = Ranks.from_environment()
    root = Path(sys.argv[1])
    ranks.leave(
        ranks.code_of(lambda: execute(STAGE, ToyConfig, main, sys.argv[2:], workspace_of(root), ranks))
    )
