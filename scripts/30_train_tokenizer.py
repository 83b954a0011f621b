"""
30 -- tokenizer: train the one frozen tokenizer of a profile and prove that it can be trusted.

    python scripts/30_train_tokenizer.py --config config/demo/30_train_tokenizer.json

Reads   corpus shards (20)
Writes  tokenizer.model tokenizer.json tokenizer_config.json report.json TOKENIZER_CARD.md, manifest.json
"""

import json
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.tokenizer import TokenizerConfig
from utils.pipeline.stage import Stage, run_stage

MAX_GATE_DOCUMENTS = 5_000


def main(config: TokenizerConfig, stage: Stage) -> dict:
    from utils.corpus.shards import read_lines
    from utils.tokenizer.frozen import FrozenTokenizer
    from utils.tokenizer.gates import GateSettings, check_tokenizer
    from utils.tokenizer.hf import write_hf_files
    from utils.tokenizer.report import summary, tokenizer_card, tokenizer_report
    from utils.tokenizer.train import (
        choose_documents,
        document_sizes,
        sample_texts,
        train_model,
        training_sentences,
    )  # fmt: skip

    corpus = stage.input("corpus")
    sizes = document_sizes(read_lines(corpus, "train"))
    chosen = choose_documents(sizes, config.sample_mebibytes << 20, config.seed)
    stage.log("sample", f"{len(chosen):,} of {len(sizes):,} training documents")

    texts = sample_texts(read_lines(corpus, "train"), chosen)
    model = train_model(training_sentences(texts), config.vocab_size)
    (stage.partial / "tokenizer.model").write_bytes(model)
    write_hf_files(stage.partial)
    stage.stop_point()

    rows = [json.loads(line) for line in islice(read_lines(corpus, "val"), MAX_GATE_DOCUMENTS)]
    settings = GateSettings(config.vocab_size, config.min_chars_per_token)
    parity = check_tokenizer(stage.partial, [row["text"] for row in rows], settings)

    tokenizer = FrozenTokenizer(stage.partial)
    report = tokenizer_report(tokenizer, rows, parity)
    (stage.partial / "report.json").write_text(
        json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    (stage.partial / "TOKENIZER_CARD.md").write_text(tokenizer_card(report), encoding="utf-8")
    stage.set_tokenizer(tokenizer.block)
    metrics = summary(report)
    stage.log(
        "tokenizer", f"{config.vocab_size:,} pieces, {metrics['chars_per_token']:.2f} characters per token"
    )
    return metrics


if __name__ == "__main__":
    run_stage("30_train_tokenizer", TokenizerConfig, main)
