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
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.sft import AUTO_LEARNING_RATES, SFTConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: SFTConfig, stage: Stage) -> dict:
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.models.adapt import count_trainable, prepare_for_tuning
    from utils.models.load import load_model
    from utils.optim.groups import build_optimizer
    from utils.optim.schedule import Schedule
    from utils.packing.inputs import MixedInputs
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.training.attention import resolve_attention
    from utils.training.conversations import TrainedTokenLoss, read_draws
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
    from utils.training.validation import spread_batches

    seed_everything(config.seed)
    machine = Machine.of(config)
    base, data = stage.input("base"), stage.inputs("data")
    check_layout(data, "chat", "60_prepare_sft")
    encoder = ChatEncoder(ChatTemplate.load(data[0].file("chat_template.jinja")), FrozenTokenizer(base.path))
    train, val = (open_rows(config, stage, split) for split in ("train", "val"))
    plan = plan_tuning(config, sum(each.num_rows for each in train), AUTO_LEARNING_RATES[config.tuning.mode])
    schedule = Schedule.of(config.schedule, plan.learning_rate, plan.steps, config.optimizer.betas[1])
    fill = sum(each.fill * each.num_rows for each in train) / plan.num_rows
    stage.log("budget", f"{plan.describe()}; fill {fill:.2f}; {schedule.describe()}")
    stage.run_info(schedule=resolved_schedule(config, schedule))

    model = load_model(base.path, resolve_attention(config, machine.device, machine.precision).resolved)
    check_context(train + val, model.config.max_position_embeddings)
    model = prepare_for_tuning(model, config.tuning, encoder.marker_ids, config.seed).to(machine.device)
    trained, total = count_trainable(model)
    stage.log("model", f"{config.tuning.mode}: {trained:,} of {total:,} parameters are trained")
    mixed = MixedInputs(train, data, config.inputs.data, config.seed, plan.batch_rows)
    stage.log("epochs", mixed.describe(plan.steps))
    order = MixtureRows(mixed.mixture, partial(read_draws, train))
    rows = Prefetched(order, pin=machine.device.type == "cuda")
    optimizer = build_optimizer(model, config.optimizer, plan.learning_rate, config.kernels)
    loss = TrainedTokenLoss(HeadOptions(config.optimizer.follows_entropy, config.kernels))
    trainer = Trainer(model, rows, optimizer, schedule, config, stage, loss)
    trainer.watch.count(mixed.epochs(plan.steps))
    batches = [batch for each in val for batch in spread_batches(each, config.eval_max_tokens)]
    examiner = AnswerExaminer(trainer, batches, *held_out_questions(config, stage, encoder))

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
        write_model(
            stage, model, encoder, metrics, trainer.records.get("samples", [])[-config.sample_prompts :]
        )
    metrics["datasets"] = mixed.drawn(rows.cursor())
    if config.tuning.mode == "lora":
        metrics["adapter_base"] = {"role": "base", "output_digest": base.manifest.output_digest}
    return metrics


def open_rows(config: SFTConfig, stage: Stage, split: str) -> list[Any]:
    """One split of every dataset of the config, planned into rows."""
    from utils.packing.plan import plan_best_fit
    from utils.packing.rows import RowsDataset
    from utils.training.conversations import PackedConversations
    from utils.training.tuning import check_row_tokens

    opened = []
    for given in stage.inputs("data"):
        given.file(f"{split}.bin")
        dataset = RowsDataset(given.path, split, given.manifest.tokenizer["fingerprint"])
        check_row_tokens(dataset.lengths, config.row_tokens, f"{given.path.name} ({split})")
        order = stage.generator(f"{given.role}.{split}").permutation(dataset.num_documents)
        plan = plan_best_fit(dataset.lengths, config.row_tokens, order)
        opened.append(PackedConversations(dataset, plan, config.row_tokens, pad=dataset.special.padding))
    return opened


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

    def answer(model: Any) -> list[str]:
        found = greedy_answers(model, prompts, config.sample_tokens, stop_ids)
        return [encoder.tokenizer.decode(i for i in each.ids if i not in stop_ids).strip() for each in found]

    return [HeldOutQuestion(each.messages[-1]["content"], each.reference) for each in asked], answer


def write_model(stage: Stage, model: Any, encoder: Any, metrics: dict, samples: list[dict]) -> None:
    """
    Everything that makes the build folder a model that answers: weights or adapter, tokenizer, template,
    card.
    """
    from utils.models.adapt import save_tuned
    from utils.models.load import copy_tokenizer
    from utils.training.card import model_card

    base = stage.input("base")
    save_tuned(model, stage.partial, stage.workspace.relative(base.path), encoder.stop_ids)
    copy_tokenizer(base.path, stage.partial)
    (stage.partial / "chat_template.jinja").write_text(encoder.template.source, encoding="utf-8")
    shown = [{"prompt": row["prompt"], "text": row["answer"]} for row in samples]
    card = model_card("Supervised fine-tuning", metrics, shown, stage.waivers)
    (stage.partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    run_stage("70_train_sft", SFTConfig, main)
