"""
30 -- tokenizer: train the one frozen tokenizer of a profile, or adopt one, and prove that it can be trusted.

    python scripts/30_train_tokenizer.py --config config/demo/30_train_tokenizer.json

Reads   corpus shards (20); to adopt: a local folder or a commit of the Hub
Writes  tokenizer.model tokenizer.json tokenizer_config.json (adopted: the files as they came), report.json,
        TOKENIZER_CARD.md, manifest.json
"""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.tokenizer import TokenizerConfig
from utils.pipeline.stage import Stage, run_stage

MAX_GATE_DOCUMENTS = 5_000


def main(config: TokenizerConfig, stage: Stage) -> dict:
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.tokenizer.gates import check_adopted, check_density, check_parity, check_trained, proven_texts
    from utils.tokenizer.parity import compare_libraries, parity_sample
    from utils.tokenizer.report import summary, tokenizer_card, tokenizer_report

    trains = config.mode == "train"
    origin = train(config, stage) if trains else adopt(config, stage)
    stage.stop_point()

    tokenizer, rows = FrozenTokenizer(stage.partial), validation_rows(stage)
    texts = proven_texts(rows)
    ids = check_trained(tokenizer, texts, config.vocab_size) if trains else check_adopted(tokenizer, texts)
    num_probes = len(texts) - len(rows)
    origin |= gguf_facts(stage)
    sample = parity_sample(texts, ids, num_probes, tokenizer.processor.encode)
    no_gguf = origin["no_gguf"]
    agreements = compare_libraries(stage.partial, sample.texts, sample.ids, no_gguf, sample.note)
    if trains:
        check_density(texts[num_probes:], ids[num_probes:], config.min_chars_per_token)
        check_parity(texts, agreements)

    report = tokenizer_report(tokenizer, origin, rows, ids[num_probes:], agreements)
    write_text(stage.partial / "report.json", json.dumps(report, indent=1, sort_keys=True) + "\n")
    write_text(stage.partial / "TOKENIZER_CARD.md", tokenizer_card(report))
    stage.set_tokenizer(tokenizer.block)
    metrics = summary(report)
    per_token = (
        f"{metrics['chars_per_token']:.2f} characters per token" if rows else "no corpus to measure on"
    )
    stage.log("tokenizer", f"{tokenizer.vocab_size:,} pieces, {per_token}")
    return metrics


def train(config: TokenizerConfig, stage: Stage) -> dict:
    """Train on a sample of the corpus; returns what the report says of where the tokenizer comes from."""
    from utils.corpus.shards import read_lines
    from utils.tokenizer.hf import write_hf_files
    from utils.tokenizer.report import trained_origin
    from utils.tokenizer.train import choose_sample, train_model, training_sentences

    lines = read_lines(stage.input("corpus"), "train")
    sample = choose_sample(lines, config.sample_mebibytes << 20, config.seed)
    stage.log("sample", f"{len(sample.texts):,} of {sample.num_documents:,} training documents")
    model = train_model(training_sentences(sample.texts), config.vocab_size, config.recipe)
    (stage.partial / "tokenizer.model").write_bytes(model)
    write_hf_files(stage.partial, config.recipe)
    return trained_origin(config.recipe, len(sample.texts), sample.num_documents)


def adopt(config: TokenizerConfig, stage: Stage) -> dict:
    """Copy somebody else's files; returns what the report says of where the tokenizer comes from."""
    from utils.tokenizer.adopt import (
        check_files,
        copy_local,
        fetch_from_hub,
        remote_code,
        write_own_template,
    )
    from utils.tokenizer.report import adopted_origin

    given = config.source
    if given.id:
        names = fetch_from_hub(given.id, given.revision, stage.partial)
    else:
        names = copy_local(stage.source("tokenizer"), stage.partial)
    check_files(stage.partial)
    stage.log("adopted", f"{', '.join(names)} from {given.id or given.path}")
    template = write_own_template(stage.partial)
    return adopted_origin(given.id, given.revision, names, remote_code(stage.partial), template)


def validation_rows(stage: Stage) -> list[dict[str, Any]]:
    """The validation documents that the tokenizer is proven on; none without a corpus."""
    from utils.corpus.shards import read_lines

    if not stage.has_input("corpus"):
        return []
    return [json.loads(line) for line in islice(read_lines(stage.input("corpus"), "val"), MAX_GATE_DOCUMENTS)]


def gguf_facts(stage: Stage) -> dict:
    """Whether stage 120 can write this vocabulary, and if not, why."""
    from utils.export.gguf_vocab import read_vocabulary
    from utils.pipeline.errors import ConfigError

    try:
        read_vocabulary(stage.partial, end_of_turn="<|im_end|>")
    except ConfigError as error:
        return {"gguf": False, "no_gguf": str(error).replace(f"{stage.partial} ", "it ")}
    return {"gguf": True, "no_gguf": ""}


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_stage("30_train_tokenizer", TokenizerConfig, main)
