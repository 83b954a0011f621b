"""
70 -- supervised fine-tuning: teach a base model to answer.

    python scripts/70_train_sft.py --config config/demo/70_train_sft.json
    accelerate launch --config_file config/accelerate/cpu.yaml scripts/70_train_sft.py --config FILE

Reads   a base checkpoint (50), conversations (60)
Writes  an adapter or full weights, the tokenizer's files byte for byte, chat_template.jinja,
        generation_config.json, samples.jsonl, history.jsonl, MODEL_CARD.md, manifest.json; beside them log/
        and checkpoints/
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.sft import AUTO_LEARNING_RATES, SFTConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: SFTConfig, stage: Stage) -> dict:
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.optim.groups import build_optimizer
    from utils.optim.schedule import Schedule
    from utils.packing.inputs import MixedInputs, open_rows
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.training.conversations import PackedConversations, TrainedTokenLoss, read_draws
    from utils.training.cost import tell_cost_of_determinism
    from utils.training.examine_tuning import AnswerExaminer
    from utils.training.loop import Trainer
    from utils.training.loss import HeadOptions
    from utils.training.machine import Machine
    from utils.training.prefetch import Prefetched
    from utils.training.rng import seed_everything
    from utils.training.rows import MixtureRows
    from utils.training.timing import resolved_schedule
    from utils.training.tuning import check_context, check_layout, plan_tuning

    seed_everything(config.seed)
    machine = Machine.of(config)
    base, data = stage.input("base"), stage.inputs("data")
    check_layout(data, "chat", "60_prepare_sft")
    encoder = ChatEncoder(ChatTemplate.load(data[0].file("chat_template.jinja")), FrozenTokenizer(base.path))
    opened = partial(open_rows, stage, row_tokens=config.row_tokens, packed=PackedConversations)
    train, val = opened("train"), opened("val")
    plan = plan_tuning(config, sum(each.num_rows for each in train), AUTO_LEARNING_RATES[config.tuning.mode])
    schedule = Schedule.of(config.schedule, plan.learning_rate, plan.steps, config.optimizer.betas[1])
    fill = sum(each.fill * each.num_rows for each in train) / plan.num_rows
    stage.log("budget", f"{plan.describe()}; fill {fill:.2f}; {schedule.describe()}")
    stage.run_info(schedule=resolved_schedule(config, schedule))

    model, trained = open_model(config, stage, machine, encoder.marker_ids)
    check_context(train + val, model.config.max_position_embeddings)
    mixed = MixedInputs(train, data, config.inputs.data, config.seed, plan.batch_rows)
    stage.log("epochs", mixed.describe(plan.steps))
    order = MixtureRows(mixed.mixture, partial(read_draws, train))
    rows = Prefetched(order, pin=machine.device.type == "cuda")
    optimizer = build_optimizer(model, config.optimizer, plan.learning_rate, config.kernels)
    loss = TrainedTokenLoss(HeadOptions(config.optimizer.follows_entropy, config.kernels))
    trainer = Trainer(model, rows, optimizer, schedule, config, stage, loss)
    trainer.watch.count(mixed.epochs(plan.steps))
    examiner = AnswerExaminer(trainer, val, *held_out_questions(config, stage, encoder))

    if not trainer.resume():
        examiner.evaluate()
    tell_cost_of_determinism(trainer)
    for step, _ in trainer:
        if trainer.evaluates(step):
            examiner.evaluate()
        trainer.save_if_due()

    figures = plan.figures() | {
        "fill": round(fill, 4),
        "mode": config.tuning.mode,
        "trained_parameters": trained,
    }
    metrics = figures | trainer.finish() | examiner.figures()
    stage.set_tokenizer(data[0].manifest.tokenizer)
    if stage.is_main:
        samples = trainer.records.get("samples", [])[-config.sample_prompts :]
        write_model(stage, model, encoder, metrics, samples)
    metrics["datasets"] = mixed.drawn(rows.cursor())
    if config.tuning.mode == "lora":
        metrics["adapter_base"] = {"role": "base", "output_digest": base.manifest.output_digest}
    return metrics


def open_model(config: SFTConfig, stage: Stage, machine: Any, marker_ids: list[int]) -> tuple[Any, int]:
    """The base model on its device, ready for the config's kind of tuning, and how much of it is trained."""
    from utils.models.adapt import count_trainable, prepare_for_tuning
    from utils.models.load import load_model
    from utils.training.attention import resolve_attention

    attention = resolve_attention(config, machine.device, machine.precision).resolved
    model = load_model(stage.input("base").path, attention)
    model = prepare_for_tuning(model, config.tuning, marker_ids, config.seed)
    machine.place(model)
    trained, total = count_trainable(model)
    stage.log("model", f"{config.tuning.mode}: {trained:,} of {total:,} parameters are trained")
    return model, trained


def held_out_questions(config: SFTConfig, stage: Stage, encoder: Any) -> tuple[list[Any], Any]:
    """The first validation questions with their answers, and how a model answers them."""
    from utils.chat.conversation import Message
    from utils.evaluation.held_out import question_of, read_rows
    from utils.serving.batch import greedy_answers
    from utils.training.examine_tuning import HeldOutQuestion

    count = config.sample_prompts
    asked = [question_of(row) for row in read_rows(stage.inputs("data")[0], "val", count)] if count else []
    prompts = [
        encoder.prompt([Message(m["role"], m["content"]) for m in each.messages]).tolist() for each in asked
    ]
    stop_ids = set(encoder.stop_ids)

    def answer(model: Any, stopping: Callable[[], bool]) -> list[str]:
        found = greedy_answers(model, prompts, config.sample_tokens, stop_ids, stopping=stopping)
        return [encoder.tokenizer.decode(i for i in each.ids if i not in stop_ids).strip() for each in found]

    return [HeldOutQuestion(each.messages[-1]["content"], each.reference) for each in asked], answer


def write_model(stage: Stage, model: Any, encoder: Any, metrics: dict, samples: list[dict]) -> None:
    """
    Everything that makes the build folder a model that answers: weights or adapter, tokenizer, template,
    card.
    """
    from utils.models.adapt import save_tuned
    from utils.models.load import copy_tokenizer
    from utils.training.card import model_card, write_chat_texts

    base = stage.input("base")
    save_tuned(model, stage.partial, stage.workspace.relative(base.path), encoder.stop_ids)
    copy_tokenizer(base.path, stage.partial)
    shown = [{"prompt": row["prompt"], "text": row["answer"]} for row in samples]
    card = model_card("Supervised fine-tuning", metrics, shown, stage.waivers)
    write_chat_texts(stage.partial, encoder.template.source, card)


if __name__ == "__main__":
    run_stage("70_train_sft", SFTConfig, main)
