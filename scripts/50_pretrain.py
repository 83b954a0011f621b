"""
50 -- pre-training: a base model from random weights.

    python scripts/50_pretrain.py --config config/demo/50_pretrain.json
    accelerate launch --config_file config/accelerate/cpu.yaml scripts/50_pretrain.py \\
        --config config/demo/50_pretrain.json

Reads   the frozen tokenizer (30), packed rows (40), an architecture file
Writes  model.safetensors config.json generation_config.json, the tokenizer's files byte for byte,
        history.jsonl, samples.jsonl, MODEL_CARD.md, manifest.json; beside them log/ and checkpoints/
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.pretrain import PretrainConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: PretrainConfig, stage: Stage) -> dict:
    from utils.models.llama import initialise
    from utils.models.load import build_model
    from utils.models.presets import (
        describe_gguf,
        describe_model,
        expected_initial_loss,
        flops_per_token,
        load_architecture,
        plan_training,
    )
    from utils.optim.groups import build_optimizer, describe_groups
    from utils.optim.schedule import Schedule
    from utils.packing.mixture import mix_inputs, read_draws
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.training.examine import Examiner
    from utils.training.loop import Trainer
    from utils.training.loss import HeadOptions, NextTokenLoss
    from utils.training.machine import Machine, store_parameters
    from utils.training.rng import seed_everything
    from utils.training.rows import MixtureRows

    seed_everything(config.seed)
    machine = Machine.of(config)
    tokenizer = FrozenTokenizer(stage.input("tokenizer").path)
    train, val = (open_split(stage, split, tokenizer.fingerprint) for split in ("train", "val"))
    architecture = load_architecture(config.model, stage.workspace)
    plan = plan_training(
        config, architecture, tokenizer.vocab_size, [(each.num_rows, each.sequence_length) for each in train]
    )
    schedule = Schedule.of(config.schedule, plan.learning_rate, plan.steps, config.optimizer.betas[1])
    stage.log("model", describe_model(config.model, architecture, tokenizer.vocab_size, plan.row_tokens))
    stage.log("model", describe_gguf(architecture))
    for rule in plan.rules:
        stage.log("budget", rule)
    stage.log("budget", f"{plan.describe()}; {schedule.describe()}")

    model = build_model(architecture, tokenizer.vocab_size, tokenizer.block["special_ids"])
    initialise(model, architecture, config.seed)
    if architecture.adapter:
        model.adapt(architecture.adapter, config.seed)
    model.to(machine.device)
    store_parameters(model, config.parameter_dtype, machine)
    optimizer = build_optimizer(model, config.optimizer, plan.learning_rate, config.kernels)
    stage.log("optimizer", f"{config.optimizer.kind}, {describe_groups(optimizer)}")

    mixture = mix_inputs(train, stage.inputs("data"), config.inputs.data, config.seed, plan.batch_rows)
    names = [given.path.name for given in stage.inputs("data")]
    stage.log("epochs", mixture.epochs_line(names, plan.steps))
    rows = MixtureRows(mixture, partial(read_draws, train))
    loss = NextTokenLoss(HeadOptions(config.optimizer.follows_entropy, config.kernels))
    trainer = Trainer(model, rows, optimizer, schedule, config, stage, loss)
    stage.log("device", f"{machine.describe()}, sdpa, micro-batch {trainer.micro_rows} rows")
    trainer.measure_speed(flops_per_token(architecture, tokenizer.vocab_size, plan.row_tokens))
    examiner = Examiner(trainer, config, tokenizer, train, val)

    if not trainer.resume():
        examiner.prove(expected_initial_loss(architecture, tokenizer.vocab_size))
        examiner.evaluate()
    for step, _ in trainer:
        if trainer.evaluates(step):
            examiner.evaluate()
        trainer.save_if_due()

    metrics = plan.figures() | trainer.finish() | examiner.figures()
    if stage.is_main:
        write_model(stage, model, f"Base model {config.model}", metrics, examiner.last_samples())
    return metrics


def open_split(stage: Stage, split: str, fingerprint: str) -> list[Any]:
    """One split of every packed dataset of the config."""
    from utils.packing.dataset import PackedDataset

    return [PackedDataset(given.path, split, fingerprint) for given in stage.inputs("data")]


def write_model(stage: Stage, model: Any, title: str, metrics: dict, samples: list[dict]) -> None:
    """Everything that makes the build folder a model that transformers, stage 70 and stage 120 load."""
    from utils.models.load import copy_tokenizer, save_model
    from utils.training.card import model_card

    save_model(model, stage.partial)
    copy_tokenizer(stage.input("tokenizer").path, stage.partial)
    (stage.partial / "MODEL_CARD.md").write_text(
        model_card(title, metrics, samples, stage.waivers), encoding="utf-8"
    )


if __name__ == "__main__":
    run_stage("50_pretrain", PretrainConfig, main)
