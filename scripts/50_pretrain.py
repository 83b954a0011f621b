"""
50 -- pre-training: a base model from random weights, or from a checkpoint of another run.

    python scripts/50_pretrain.py --config config/demo/50_pretrain.json
    accelerate launch --config_file config/accelerate/cpu.yaml scripts/50_pretrain.py \\
        --config config/demo/50_pretrain.json

Reads   the frozen tokenizer (30), packed rows (40) or raw text, an architecture file
Writes  model.safetensors config.json generation_config.json, the tokenizer's files byte for byte,
        history.jsonl, samples.jsonl, MODEL_CARD.md, manifest.json; beside them log/ and checkpoints/
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.pretrain import PretrainConfig
from utils.pipeline.stage import Stage, run_stage
from utils.pipeline.workspace import Workspace


def main(config: PretrainConfig, stage: Stage) -> dict:
    from utils.models.load import build_initialised
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
    from utils.packing.inputs import epochs_of, open_data
    from utils.packing.mixture import drawn_shares
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.training.attention import resolve_attention
    from utils.training.continuing import starting_point
    from utils.training.cost import tell_cost_of_determinism
    from utils.training.examine import Examiner
    from utils.training.loop import Trainer
    from utils.training.loss import HeadOptions, NextTokenLoss
    from utils.training.machine import Machine, store_parameters
    from utils.training.memory import building_watched
    from utils.training.prefetch import Prefetched
    from utils.training.rng import seed_everything
    from utils.training.rows import MixtureRows
    from utils.training.timing import resolved_schedule

    seed_everything(config.seed)
    machine = Machine.of(config)
    tokenizer = FrozenTokenizer(stage.input("tokenizer").path)
    architecture = load_architecture(config.model, stage.workspace)
    data = open_data(config, stage, tokenizer, architecture.context_length_tokens)
    plan = plan_training(config, architecture, tokenizer.vocab_size, data.sizes)
    start = starting_point(stage)
    schedule = Schedule.of(
        config.schedule, plan.learning_rate, plan.steps, config.optimizer.betas[1], warm=start is not None
    )
    stage.log("model", describe_model(config.model, architecture, tokenizer.vocab_size, plan.row_tokens))
    stage.log("model", describe_gguf(architecture))
    for rule in plan.rules:
        stage.log("budget", rule)
    stage.log("budget", f"{plan.describe()}; {schedule.describe()}")
    stage.run_info(schedule=resolved_schedule(config, schedule))

    attention = resolve_attention(config, machine.device, machine.precision).resolved
    shape = (architecture, tokenizer.vocab_size, tokenizer.block["special_ids"], attention)
    size = (config.model, plan.parameters.total, machine.device, machine.num_shares)
    with building_watched(*size):
        model = build_initialised(*shape, seed=config.seed, on_meta=machine.sharded)
        machine.place(model)
    store_parameters(model, config.parameter_dtype, machine)
    optimizer = build_optimizer(model, config.optimizer, plan.learning_rate, config.kernels)
    stage.log("optimizer", f"{config.optimizer.kind}, {describe_groups(optimizer)}")

    epochs = epochs_of(data, plan.steps * plan.batch_rows)
    stage.log("epochs", data.describe(epochs))
    order = MixtureRows(data.order(config.seed, plan.batch_rows), data.read)
    rows = Prefetched(order, pin=machine.device.type == "cuda")
    loss = NextTokenLoss(HeadOptions(config.optimizer.follows_entropy, config.kernels))
    with building_watched(*size):  # sharded, the weights are made in it
        trainer = Trainer(model, rows, optimizer, schedule, config, stage, loss)
    trainer.watch.count(epochs)
    trainer.measure_speed(flops_per_token(architecture, tokenizer.vocab_size, plan.row_tokens))
    examiner = Examiner(trainer, config, tokenizer, data)

    if not trainer.resume():
        if start:
            start.refuse_other_batch(plan.batch_rows)
            trainer.adopt(start.folder)
        examiner.prove(None if start else expected_initial_loss(architecture, tokenizer.vocab_size))
        examiner.evaluate()
    tell_cost_of_determinism(trainer)
    for step, _ in trainer:
        if trainer.evaluates(step):
            examiner.evaluate()
        trainer.save_if_due()

    metrics = plan.figures() | trainer.finish() | examiner.figures() | (start.figures() if start else {})
    if stage.is_main:
        write_model(stage, model, f"Base model {config.model}", metrics, examiner.last_samples())
    return metrics | {"datasets": drawn_shares(data.names, data.weights, rows.cursor()["counts"])}


def write_model(stage: Stage, model: Any, title: str, metrics: dict, samples: list[dict]) -> None:
    """Everything that makes the build folder a model that transformers, stage 70 and stage 120 load."""
    from utils.models.load import copy_tokenizer, save_model
    from utils.training.card import model_card

    save_model(model, stage.partial)
    copy_tokenizer(stage.input("tokenizer").path, stage.partial)
    (stage.partial / "MODEL_CARD.md").write_text(
        model_card(title, metrics, samples, stage.waivers), encoding="utf-8"
    )


def forecast(config: PretrainConfig, workspace: Workspace) -> str:
    """The arithmetic of a run, for a dry one; of raw text only what needs no look into it."""
    from utils.models.presets import describe_model, load_architecture, plan_training
    from utils.packing.dataset import PackedDataset
    from utils.tokenizer.frozen import FrozenTokenizer

    architecture = load_architecture(config.model, workspace)
    vocabulary = FrozenTokenizer(workspace.path(config.inputs.tokenizer)).vocab_size
    model = describe_model(config.model, architecture, vocabulary, architecture.context_length_tokens)
    if config.inputs.raw:
        return model
    data = [PackedDataset(workspace.path(entry.path), "train") for entry in config.inputs.data]
    sizes = [(each.num_rows, each.sequence_length) for each in data]
    plan = plan_training(config, architecture, vocabulary, sizes)
    return "\n".join([model, *plan.rules, plan.describe()])


if __name__ == "__main__":
    run_stage("50_pretrain", PretrainConfig, main, forecast)
