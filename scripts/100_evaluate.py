"""
100 -- evaluation: every model of the run side by side, on one protocol.

    python scripts/100_evaluate.py --config config/demo/100_evaluate.json

Reads   base (50), sft (70) and dpo (90) models; held-out documents (20), questions (60) and pairs (80)
Writes  results.json, table.md, samples.jsonl, manifest.json
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.evaluate import EvaluateConfig
from utils.pipeline.stage import Stage, run_stage

MODELS = ("base", "sft", "dpo")


def main(config: EvaluateConfig, stage: Stage) -> dict:
    import torch

    from utils.evaluation.protocol import score_model, summarise
    from utils.evaluation.table import render_samples, render_table

    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    tests, answer = prepare_tests(config, stage)
    names = [name for name in MODELS if stage.has_input(name)]
    scores = {}
    for name in names:
        scores[name] = score_model(open_model(stage, name), tests, answer)
        stage.log("scored", model=name)
        stage.stop_point()

    results = summarise(scores, tests, {"dpo": "sft"}, config.bootstrap_resamples, config.seed)
    results["models"] = {name: stage.input(name).manifest.output_digest for name in names}
    if stage.corpora:
        results["corpora"] = stage.corpora
    results["validation"] = validation_losses(stage.input("base").manifest.metrics)
    table = render_table(results)
    write_text(
        stage.partial / "results.json", json.dumps(results, indent=1, sort_keys=True, allow_nan=False) + "\n"
    )
    write_text(stage.partial / "table.md", table)
    answers = {name: found.answers for name, found in scores.items()}
    write_text(
        stage.partial / "samples.jsonl", render_samples(tests.questions, answers, worst_first=names[-1])
    )
    stage.log("table", "\n" + table)
    return {name: metric["models"] for name, metric in results["metrics"].items()}


def prepare_tests(config: EvaluateConfig, stage: Stage) -> tuple[Any, Any]:
    """
    Texts, questions and pairs as every model gets them, proven not to be trained on; and how models
    answer.
    """
    from utils.chat.conversation import Message
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.evaluation.held_out import question_of, read_rows
    from utils.evaluation.protocol import HeldOut, Written
    from utils.serving.batch import greedy_answers
    from utils.tokenizer.frozen import FrozenTokenizer

    chats, pairs = stage.input("sft_data"), stage.input("preference_data")
    tokenizer = FrozenTokenizer(stage.input("base").path)
    encoder = ChatEncoder(ChatTemplate.load(chats.file("chat_template.jinja")), tokenizer)
    questions = [
        question_of(row) for row in read_rows(chats, config.generation.split, config.generation.limit_rows)
    ]
    pair_rows = read_rows(pairs, config.preferences.split, config.preferences.limit_pairs)
    refuse_trained_prompts(stage, questions, pair_rows)
    prompts = [encoder.prompt([Message(m["role"], m["content"]) for m in q.messages]) for q in questions]
    stop_ids = set(encoder.stop_ids)

    def answer(model: Any, prompts: Any) -> list[Written]:
        found = greedy_answers(model, prompts, config.generation.max_new_tokens, stop_ids)
        return [
            Written(tokenizer.decode(i for i in a.ids if i not in stop_ids), len(a.ids), a.stopped)
            for a in found
        ]

    texts = text_sets(config, stage, tokenizer)
    return HeldOut(
        texts, questions, prompts, pair_set(pairs.path, config.preferences.split, len(pair_rows))
    ), answer


def text_sets(config: EvaluateConfig, stage: Stage, tokenizer: Any) -> list:
    """
    Validation documents of the corpus and, where asked for, local text files, up to `limit_tokens` each.
    """
    from utils.corpus.shards import read_lines
    from utils.evaluation.protocol import text_set

    corpus = (json.loads(line)["text"] for line in read_lines(stage.input("corpus"), "val"))
    sets = [text_set("corpus", corpus, tokenizer, config.perplexity.limit_tokens)]
    if config.perplexity.texts:
        source = stage.source("texts")
        files = (path.read_text(encoding="utf-8") for path in source.files)
        sets.append(text_set("texts", files, tokenizer, config.perplexity.limit_tokens))
        source.count(rows_read=len(source.files), rows_kept=len(sets[-1].texts))
    return sets


def pair_set(folder: Path, split: str, count: int) -> Any:
    """Token ids of the first `count` held-out pairs, as stage 80 wrote them."""
    from utils.evaluation.protocol import PairSet
    from utils.packing.rows import RowsDataset

    data = RowsDataset(folder, split)
    documents = [data.document(i) for i in range(2 * count)]
    return PairSet([ids for ids, _ in documents], [trained for _, trained in documents])


def refuse_trained_prompts(stage: Stage, questions: list, pair_rows: list[dict]) -> None:
    """No question and no pair may come from a prompt that a compared model was trained on (exit 3)."""
    from utils.evaluation.held_out import first_user_turn, read_rows
    from utils.evaluation.leakage import prompt_hashes, refuse_leaks

    chats, pairs = (
        read_rows(stage.input("sft_data"), "train"),
        read_rows(stage.input("preference_data"), "train"),
    )
    training = {
        "the training split of sft_data": prompt_hashes(first_user_turn(row["messages"]) for row in chats),
        "the training split of preference_data": prompt_hashes(
            first_user_turn(row["prompt"]) for row in pairs
        ),
    }
    refuse_leaks("the questions", [question.first_user_turn for question in questions], training)
    refuse_leaks("the pairs", [first_user_turn(row["prompt"]) for row in pair_rows], training)


def open_model(stage: Stage, name: str) -> Any:
    """The model in this role; an adapter is put on the base that it records."""
    from utils.models.adapt import attach_adapter, is_adapter
    from utils.models.load import load_model
    from utils.serving.adapters import recorded_base, refuse_other_base

    found = stage.input(name)
    if not is_adapter(found.path):
        return load_model(found.path).eval()
    record = recorded_base(found.manifest)
    role = "base" if record.role == "base" else "sft"
    refuse_other_base(stage.name, record.output_digest, stage.input(role).manifest.output_digest)
    return attach_adapter(load_model(stage.input(role).path), found.path).eval()


def validation_losses(metrics: dict) -> dict[str, float]:
    """Stage 50's validation loss beside its counting baselines, where it recorded them."""
    return {
        name: metrics[name]
        for name in ("val_loss", "bigram_loss", "unigram_loss", "uniform_loss")
        if name in metrics
    }


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_stage("100_evaluate", EvaluateConfig, main)
