"""
120 -- GGUF: write the model as files that llama.cpp loads, and seal them only when they are the checkpoint.

    python scripts/120_convert_gguf.py --config config/demo/120_convert_gguf.json

Reads   a merged or full checkpoint (110); corpus texts (20) and held-out conversations (60) for the gates,
        the evaluation (100) for the card
Writes  model-<type>.gguf, verify.json, Modelfile, MODEL_CARD.md, manifest.json
"""

import json
import sys
from itertools import chain, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.gguf import GGUFConfig
from utils.pipeline.errors import ConfigError
from utils.pipeline.stage import Stage, run_stage

WOULD_CONVERT = 'would convert: "activation": "silu" and adapter none, dense, or fly with active_ranks = rank'
METRICS = ("bytes", "mean_kl", "p99_kl", "top1_agreement", "perplexity", "checkpoint_perplexity")


def main(config: GGUFConfig, stage: Stage) -> dict:
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.export.checkpoint import read_config
    from utils.export.gguf_convert import convert
    from utils.export.gguf_verify import LlamaCpp
    from utils.export.gguf_vocab import read_vocabulary
    from utils.models.load import load_model
    from utils.tokenizer.frozen import FrozenTokenizer

    model = stage.input("model")
    refuse_obstacles(model.path, stage.workspace.relative(model.path))
    read_config(model.path)  # refuses what llama.cpp cannot express before anything is loaded
    tokenizer = FrozenTokenizer(model.path)
    encoder = ChatEncoder(ChatTemplate.load(model.file("chat_template.jinja")), tokenizer)
    read_vocabulary(model.path, encoder.end_of_turn)  # likewise for the tokenizer
    evidence = gather_evidence(config, stage, load_model(model.path).eval(), encoder, tokenizer)
    llama = LlamaCpp(config.llama_timeout_seconds, config.threads)
    description = describe(config, stage, encoder, tokenizer)

    def progress(event: str, message: str = "", **fields: object) -> None:
        stage.log(event, message, **fields)
        stage.stop_point()

    report = convert(model.path, stage.partial, config.outputs, description, evidence, llama, progress)
    write_text(
        stage.partial / "verify.json", json.dumps(report, indent=1, sort_keys=True, allow_nan=False) + "\n"
    )
    write_cards(config, stage, report, encoder)
    return {
        "parameters": report["parameters"],
        "max_logit_difference": report["gates"]["logits"]["max_logit_difference"],
        "files": {name: {key: found[key] for key in METRICS} for name, found in report["files"].items()},
    }


def refuse_obstacles(folder: Path, shown: str) -> None:
    """ConfigError that names everything in the model that llama.cpp has no graph for."""
    from transformers import AutoConfig

    from utils.models.presets import gguf_obstacles, in_columns

    if not (folder / "config.json").is_file():
        return
    found = gguf_obstacles(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict())
    if found:
        lines = in_columns([*found, WOULD_CONVERT, f"runs as it is: python tools/serve.py --model {shown}"])
        raise ConfigError("\n  ".join([f"120_convert_gguf cannot express {shown}", *lines]))


def gather_evidence(config: GGUFConfig, stage: Stage, checkpoint: Any, encoder: Any, tokenizer: Any) -> Any:
    """What checkpoint and tokenizer say about held-out data; the written files must say the same."""
    from utils.chat.conversation import Message
    from utils.evaluation.held_out import question_of, read_rows
    from utils.export.gguf_convert import Evidence
    from utils.export.merge import sequence_logits, within_memory
    from utils.packing.rows import RowsDataset
    from utils.serving.batch import greedy_answers

    def prompt_ids(messages: list[dict]) -> list[int]:
        return encoder.prompt([Message(m["role"], m["content"]) for m in messages]).tolist()

    held_out, window = (
        RowsDataset(stage.input("prompts").path, "val"),
        checkpoint.config.max_position_embeddings,
    )
    count = min(config.verify.sequences, held_out.num_documents)
    sequences = within_memory(
        [held_out.document(i)[0][:window].tolist() for i in range(count)], checkpoint.config.vocab_size
    )
    questions = [question_of(row) for row in read_rows(stage.input("prompts"), "val", config.verify.prompts)]
    prompts = [prompt_ids(question.messages) for question in questions]
    prompts = [ids for ids in prompts if len(ids) + config.verify.max_new_tokens <= window]
    answers = greedy_answers(checkpoint, prompts, config.verify.max_new_tokens, set(encoder.stop_ids))
    return Evidence(
        texts=corpus_texts(stage, config.verify.texts),
        encode=tokenizer.encode_text,
        conversations=[question.messages for question in questions] + longer_conversations(questions),
        prompt_ids=prompt_ids,
        sequences=sequences,
        logits=sequence_logits(checkpoint, sequences),
        prompts=prompts,
        answers=[answer.ids for answer in answers],
        gaps=[answer.gaps for answer in answers],
        bos=tokenizer.special("bos"),
        stop_ids=set(encoder.stop_ids),
    )


def corpus_texts(stage: Stage, count: int) -> list[str]:
    """The first documents of the corpus, validation before training."""
    from utils.corpus.shards import read_lines

    lines = chain.from_iterable(read_lines(stage.input("corpus"), split) for split in ("val", "train"))
    return [json.loads(line)["text"] for line in islice(lines, count)]


def longer_conversations(questions: list) -> list[list[dict]]:
    """Two and three turns and a system message, made of the held-out questions."""
    turns = [
        [*q.messages, {"role": "assistant", "content": q.reference}]
        for q in questions
        if len(q.messages) == 1
    ]
    two = [*turns[0], *turns[-1][:1]] if turns else []
    three = [*turns[0], *turns[-1], *turns[0][:1]] if turns else []
    with_system = [{"role": "system", "content": "Answer in one sentence."}, *three]
    return [two, three, with_system] if turns else []


def describe(config: GGUFConfig, stage: Stage, encoder: Any, tokenizer: Any) -> Any:
    """Name, licence, ancestors and lineage keys for the header of every file."""
    from utils.export.gguf_write import Description
    from utils.pipeline.lineage import gguf_metadata, lineage_of

    folder = stage.input("model").path
    lineage = lineage_of(folder, stage.workspace)
    return Description(
        name=config.name,
        license=config.license,
        base_models=[entry["path"] for entry in lineage if entry["stage"] == "50_pretrain"],
        datasets=sorted({source["id"] for entry in lineage for source in entry["sources"]}),
        end_of_turn=encoder.end_of_turn,
        keys=gguf_metadata(folder, tokenizer.block, stage.workspace),
    )


def write_cards(config: GGUFConfig, stage: Stage, report: dict, encoder: Any) -> None:
    """MODEL_CARD.md and the Modelfile of Ollama."""
    from utils.chat.conversation import Message
    from utils.export.card import CardFacts, gguf_card, modelfile, preferred_type, probe_messages
    from utils.export.checkpoint import read_config
    from utils.pipeline.lineage import lineage_of

    model = stage.input("model")
    context = read_config(model.path)["max_position_embeddings"]
    table = (
        stage.input("evaluation").file("table.md").read_text(encoding="utf-8")
        if stage.has_input("evaluation")
        else ""
    )
    facts = CardFacts(
        name=config.name,
        license=config.license,
        parameters=report["parameters"],
        context_tokens=context,
        files=report["files"],
        lineage=lineage_of(model.path, stage.workspace),
        evaluation_table=table,
        waivers=stage.waivers,
    )
    write_text(stage.partial / "MODEL_CARD.md", gguf_card(facts))
    probe = [Message(m["role"], m["content"]) for m in probe_messages()]
    segments = encoder.template.segments(probe, encoder.specials)
    rendered = "".join(s.text for s in segments if not (s.special and s.text == encoder.specials.bos_token))
    text = modelfile(
        f"model-{preferred_type(config.outputs)}.gguf",
        rendered,
        context,
        [encoder.end_of_turn],
        config.system,
    )
    write_text(stage.partial / "Modelfile", text)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_stage("120_convert_gguf", GGUFConfig, main)
