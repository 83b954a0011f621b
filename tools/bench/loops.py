"""
Our training loop and transformers' over the same rows, weights and rules, ready to take turns.

    def body(stage):
        trainer = our_trainer(CASES["demo"], config, stage)
        ...
    in_stage(body, precision="bf16", steps=40)

The rules are those that both have: fused AdamW without decay, a constant learning rate, gradients clipped at
1, no curves, rows of one document each.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer as TransformersTrainer
from transformers import TrainerCallback, TrainingArguments
from transformers.data.data_collator import default_data_collator
from transformers.trainer_callback import PrinterCallback

from tools.bench.text import Rows as Batch
from tools.bench.text import one_document_each, story_rows
from utils.config.training import TrainingConfig
from utils.models.llama import initialise
from utils.models.load import build_model
from utils.models.presets import load_architecture
from utils.optim.groups import build_optimizer
from utils.optim.schedule import Schedule
from utils.pipeline.stage import Stage, execute
from utils.pipeline.workspace import REPOSITORY, Workspace
from utils.training.attention import resolve_attention
from utils.training.loop import Trainer
from utils.training.machine import Machine
from utils.training.rows import Rows

STAGE = "50_pretrain"
LEARNING_RATE = 1e-3
BETAS, EPSILON = (0.9, 0.95), 1e-8
NUM_STORIES = 400
SPECIAL_IDS = {"bos": 1, "eos": 2, "pad": 3}


class Case(NamedTuple):
    """A model and a batch: preset, rows of the head, rows of a step, tokens of a row."""

    preset: str
    vocab_size: int
    batch_rows: int
    row_tokens: int

    @property
    def tokens(self) -> int:
        """Trained tokens of an optimizer step."""
        return self.batch_rows * self.row_tokens


CASES = {"demo": Case("demo", 4096, 8, 256), "tiny": Case("tiny", 32_768, 2, 1024)}


class BenchConfig(TrainingConfig):
    """The shared part of a training config, and how long to run."""

    stage: ClassVar[str] = STAGE

    steps: int = 1_000_000
    """Optimizer steps of the schedule; the benchmark stops when it has seen enough."""


class StoryRows:
    """The stories in order, again from the start after the last."""

    def __init__(self, case: Case) -> None:
        self.batch_rows, self.drawn = case.batch_rows, 0
        self._rows = story_rows(NUM_STORIES, 0, case.row_tokens)

    def numbered(self, first: int, count: int) -> Batch:
        """Rows first, first + 1, ..."""
        return one_document_each(self._rows[[i % len(self._rows) for i in range(first, first + count)]])

    def next_step(self, rank: int, num_ranks: int, micro_rows: int) -> list[Batch]:
        share = self.batch_rows // num_ranks
        first = self.drawn + rank * share
        self.drawn += self.batch_rows
        starts = range(first, first + share, micro_rows)
        return [self.numbered(start, min(micro_rows, first + share - start)) for start in starts]

    def cursor(self) -> dict:
        return {"rows_drawn": self.drawn}

    def restore(self, cursor: dict) -> None:
        self.drawn = cursor["rows_drawn"]

    def row_ids(self, cursor: dict) -> list[list[int]]:
        return []

    def epochs(self, steps: int) -> float:
        return steps * self.batch_rows / len(self._rows)


def model_of(case: Case) -> nn.Module:
    """The preset with the product's own initial weights, the same every time."""
    architecture = load_architecture(case.preset, REPOSITORY)
    model = build_model(architecture, case.vocab_size, SPECIAL_IDS)
    initialise(model, architecture, seed=0)
    return model


def in_stage(body: Callable[[BenchConfig, Stage], None], **values: object) -> None:
    """Run `body` as a stage in a temporary folder with these values of its config; SystemExit on failure."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        defaults = {"output": "checkpoints/bench", "trackers": [], "save_every_minutes": 1e6}
        optimizer = {"betas": BETAS, "epsilon": EPSILON, "weight_decay": 0.0, "max_gradient_norm": 1.0}
        schedule = {"kind": "constant", "warmup_steps": 1}
        config = defaults | {"optimizer": optimizer, "schedule": schedule} | values
        (root / "bench.json").write_text(json.dumps(config))

        def main(config: BenchConfig, stage: Stage) -> dict:
            body(config, stage)
            return {}

        workspace = Workspace(root, {STAGE: "tools.bench.loops:BenchConfig"})
        arguments = ["--config", str(root / "bench.json"), "--log-level", "error"]
        code = execute(STAGE, BenchConfig, main, arguments, workspace)
        if code:
            raise SystemExit(code)


def our_trainer(case: Case, config: BenchConfig, stage: Stage, rows: Rows | None = None) -> Trainer:
    """The product's loop, over the stories where no rows are given."""
    machine = Machine.of(config)
    model = model_of(case).to(machine.device)
    model.set_attn_implementation(resolve_attention(config, machine.device, machine.precision).resolved)
    optimizer = build_optimizer(model, config.optimizer, LEARNING_RATE)
    schedule = Schedule.of(config.schedule, LEARNING_RATE, config.steps, BETAS[1])
    return Trainer(model, rows or StoryRows(case), optimizer, schedule, config, stage)


@contextmanager
def separate_accelerators() -> Iterator[None]:
    """
    Inside, an Accelerator of another precision may be made: accelerate allows one per process, remembers what
    the first one was, and TrainingArguments tell it in the environment.
    """
    state, environment = dict(AcceleratorState._shared_state), dict(os.environ)
    AcceleratorState._shared_state.clear()
    try:
        yield
    finally:
        AcceleratorState._shared_state.update(state)
        os.environ.clear()
        os.environ.update(environment)


def their_trainer(
    case: Case, precision: str, compiled: bool, steps: int, folder: Path, callback: TrainerCallback
) -> TransformersTrainer:
    """transformers.Trainer with the settings of ours; `callback` sees every step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=case.batch_rows,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPSILON,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=precision == "bf16",
        torch_compile=compiled,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=0,
    )
    trainer = _InOrder(
        model_of(case),
        arguments,
        data_collator=default_data_collator,
        train_dataset=_Examples(case, steps),
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _InOrder(TransformersTrainer):
    """Rows in their order, as our rows come."""

    def _get_train_sampler(self, *_: object) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class _Examples(Dataset):
    """Each row as transformers takes it; targets are shifted already, as ours are."""

    def __init__(self, case: Case, steps: int) -> None:
        self._rows, self._count = StoryRows(case), steps * case.batch_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = self._rows.numbered(i, 1)
        tokens, position = (torch.from_numpy(each[0]) for each in (row.tokens, row.position))
        inputs = {"input_ids": tokens[:-1], "position_ids": position[:-1]}
        return inputs | {"labels": tokens[1:], "shift_labels": tokens[1:]}
