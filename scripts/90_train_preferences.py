"""
90 -- preference training: make preferred answers likelier than rejected ones, close to a reference.

    python scripts/90_train_preferences.py --config config/demo/90_train_preferences.json
    accelerate launch --config_file config/accelerate/cpu.yaml scripts/90_train_preferences.py --config FILE

Reads   a supervised model (70) and, when that is an adapter, its base (50); pairs (80)
Writes  an adapter or full weights, the tokenizer's files byte for byte, chat_template.jinja,
        generation_config.json, history.jsonl, MODEL_CARD.md, manifest.json; beside them log/ and checkpoints/
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.preferences import AUTO_LEARNING_RATES, PreferencesConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: PreferencesConfig, stage: Stage) -> dict:
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.optim.groups import build_optimizer
    from utils.optim.schedule import Schedule
    from utils.packing.inputs import MixedInputs, open_rows
    from utils.preferences.losses import dpo_loss, dpo_start
    from utils.preferences.measures import check_start, measure
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.training.cost import tell_cost_of_determinism
    from utils.training.examine_tuning import PreferenceExaminer
    from utils.training.loop import Trainer
    from utils.training.machine import Machine
    from utils.training.pairs import PackedPairs, PreferenceObjective, pair_lengths, read_pair_draws
    from utils.training.prefetch import Prefetched
    from utils.training.rng import seed_everything
    from utils.training.rows import MixtureRows
    from utils.training.timing import resolved_schedule
    from utils.training.tuning import check_context, check_layout, plan_tuning

    seed_everything(config.seed)
    machine = Machine.of(config)
    tuned, data = stage.input("model"), stage.inputs("data")
    check_layout(data, "pairs", "80_prepare_preferences")
    encoder = ChatEncoder(ChatTemplate.load(data[0].file("chat_template.jinja")), FrozenTokenizer(tuned.path))
    opened = partial(
        open_rows, stage, row_tokens=config.row_tokens, packed=PackedPairs, item_lengths=pair_lengths
    )
    train, val = opened("train"), opened("val")
    mode = "full" if config.adapter == "none" else "lora"
    plan = plan_tuning(config, sum(each.num_rows for each in train), AUTO_LEARNING_RATES[mode])
    schedule = Schedule.of(config.schedule, plan.learning_rate, plan.steps, config.optimizer.betas[1])
    stage.log("budget", f"{plan.describe()}; {schedule.describe()}")
    stage.run_info(schedule=resolved_schedule(config, schedule))

    model, trained = open_policy(config, stage, machine)
    check_context(train + val, model.config.max_position_embeddings)
    reference = open_reference(config, stage, machine, model, {"train": train, "val": val})
    loss = partial(dpo_loss, beta=config.beta, label_smoothing=config.label_smoothing)
    mixed = MixedInputs(train, data, config.inputs.data, config.seed, plan.batch_rows)
    stage.log("epochs", mixed.describe(plan.steps))
    order = MixtureRows(mixed.mixture, partial(read_pair_draws, train))
    rows = Prefetched(order, pin=machine.device.type == "cuda")
    optimizer = build_optimizer(model, config.optimizer, plan.learning_rate, config.kernels)
    objective = PreferenceObjective(loss, reference, config.optimizer.follows_entropy)
    trainer = Trainer(model, rows, optimizer, schedule, config, stage, objective)
    trainer.watch.count(mixed.epochs(plan.steps))
    examiner = PreferenceExaminer(trainer, val, reference, partial(measure, loss=loss))

    if not trainer.resume():
        check_start(examiner.evaluate()["val_loss"], dpo_start(), machine.precision.name)
    tell_cost_of_determinism(trainer)
    for step, _ in trainer:
        if trainer.evaluates(step):
            examiner.evaluate()
        trainer.save_if_due()

    figures = plan.figures() | {
        "method": config.method,
        "adapter": config.adapter,
        "trained_parameters": trained,
    }
    metrics = figures | trainer.finish() | examiner.figures()
    metrics["pairs_seen"] = metrics.pop("trained_tokens")
    stage.set_tokenizer(data[0].manifest.tokenizer)
    if stage.is_main:
        write_model(config, stage, model, encoder, metrics)
    metrics["datasets"] = mixed.drawn(rows.cursor())
    if config.adapter == "new" or (config.adapter == "continue" and stage.has_input("base")):
        role = "base" if stage.has_input("base") else "model"
        metrics["adapter_base"] = {"role": role, "output_digest": stage.input(role).manifest.output_digest}
    return metrics


def open_policy(config: PreferencesConfig, stage: Stage, machine: Any) -> tuple[Any, int]:
    """
    The supervised model on its device, ready to be trained further without dropout, and how much of it is
    trained.
    """
    from utils.models.adapt import (
        LoRAShape,
        add_adapter,
        attach_adapter,
        count_trainable,
        is_adapter,
        merge_adapter,
        without_dropout,
    )
    from utils.models.flylora import adapters_of, freeze_base
    from utils.models.load import load_model
    from utils.pipeline.errors import ConfigError
    from utils.serving.adapters import recorded_base, refuse_other_base
    from utils.training.attention import resolve_attention

    tuned = stage.input("model")
    attention = resolve_attention(config, machine.device, machine.precision).resolved
    if is_adapter(tuned.path) != stage.has_input("base"):
        kind = "an adapter: name its base" if is_adapter(tuned.path) else "full weights: name no base"
        raise ConfigError(f'input "model" ({tuned.path.name}) holds {kind} in inputs.base')
    if is_adapter(tuned.path):
        base = stage.input("base")
        refuse_other_base(
            stage.name, recorded_base(tuned.manifest).output_digest, base.manifest.output_digest
        )
        model = attach_adapter(load_model(base.path, attention), tuned.path, trainable=True)
    else:
        model = load_model(tuned.path, attention)
        if config.adapter == "continue":
            if next(adapters_of(model), None) is None:
                raise ConfigError(
                    f'adapter "continue": input "model" ({tuned.path.name}) holds no adapter',
                    fix='use "new" or "none"',
                )
            freeze_base(model)
    if config.adapter != "continue" and is_adapter(tuned.path):
        model = merge_adapter(model)
    if config.adapter == "new":
        model = add_adapter(
            model, LoRAShape(config.lora.rank, config.lora.alpha, 0.0, config.lora.target_modules)
        )
    elif config.adapter == "none":
        model.requires_grad_(True)
    model = without_dropout(model).to(machine.device)
    trained, total = count_trainable(model)
    stage.log("model", f"adapter {config.adapter}: {trained:,} of {total:,} parameters are trained")
    return model, trained


def open_reference(
    config: PreferencesConfig, stage: Stage, machine: Any, model: Any, splits: dict[str, list[Any]]
) -> Callable[[Any, Any], Any]:
    """
    What gives the reference's log-probabilities of a batch. Cached ones are those of the policy before its
    first step, computed here for every pair, once per build.
    """
    from utils.preferences.reference import cached
    from utils.training.pairs import adapter_off_reference, all_answer_logps, cached_reference

    if config.reference != "cached":
        return adapter_off_reference
    with machine.precision.autocast():
        for split, opened in splits.items():
            for number, packed in enumerate(opened):
                compute = partial(all_answer_logps, model, packed, 8, stage.stop_point)
                packed.reference = cached(stage.partial, f"{split}.{number}", compute)
    return cached_reference


def write_model(config: PreferencesConfig, stage: Stage, model: Any, encoder: Any, metrics: dict) -> None:
    """
    Everything that makes the build folder a model that answers: one adapter or weights, tokenizer,
    template, card.
    """
    from utils.models.adapt import is_adapter, save_tuned
    from utils.models.load import copy_tokenizer
    from utils.training.card import model_card, write_chat_texts

    tuned = stage.input("model")
    under = tuned.path if config.adapter == "new" and is_adapter(tuned.path) else None
    base = stage.input("base" if stage.has_input("base") else "model")
    save_tuned(model, stage.partial, stage.workspace.relative(base.path), encoder.stop_ids, below=under)
    copy_tokenizer(tuned.path, stage.partial)
    card = model_card("Preference training", metrics, [], stage.waivers)
    write_chat_texts(stage.partial, encoder.template.source, card)


if __name__ == "__main__":
    run_stage("90_train_preferences", PreferencesConfig, main)
