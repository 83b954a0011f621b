"""
20 -- corpus: read, clean, judge, deduplicate, weigh and split text.

    python scripts/20_prepare_corpus.py --config config/demo/20_prepare_corpus.json

Reads   local files, datasets of the Hub, text rows of stage 10, docstrings of installed packages
Writes  train/ and val/ shards, removed/ by reason, documents.parquet, stats.json, DATA_CARD.md, manifest.json
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.corpus import CorpusConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: CorpusConfig, stage: Stage) -> dict:
    from utils.corpus.budget import Budget
    from utils.corpus.card import data_card
    from utils.corpus.executor import open_executor
    from utils.corpus.reading import Reader, read_everything
    from utils.corpus.segments import Segments
    from utils.corpus.select import check_validation, select
    from utils.corpus.stats import Outcome, Run, corpus_metrics, corpus_stats
    from utils.corpus.write import write_removed, write_split, write_table
    from utils.tokenizer.frozen import FrozenTokenizer

    started = time.monotonic()
    budget, names = Budget.of(config), [source.name for source in config.sources]
    counts_tokens = config.budget.count == "tokenizer"
    tokenizer = FrozenTokenizer(stage.input("tokenizer").path) if counts_tokens else None
    segments = Segments(stage.partial, stage.journal("blocks"), len(names))
    with open_executor(config.executor) as executor:
        reader = Reader(config, stage, executor, segments, tokenizer)
        documents, duplicates = read_everything(reader, budget)
    stage.stop_point()

    selection = select(documents, duplicates, budget, config.split.val_fraction)
    split_hashes = documents.column("split")[selection.written]
    check_validation(split_hashes, int(selection.val.sum()), config.split.min_val_documents)

    shards = {
        split: write_split(stage.partial, split, documents, getattr(selection, split), config.shards, stage)
        for split in ("train", "val")
    }
    stage.stop_point()
    write_table(stage.partial / "documents.parquet", documents, selection, names)
    keep_text = config.keep_removed == "text"
    samples = write_removed(stage.partial, segments, documents, duplicates, names, keep_text)

    evaluation_sets = reader.intake.evaluation_sets
    run = Run(config, budget, identities(config, stage), evaluation_sets, stage.waivers)
    outcome = Outcome(segments.sources, documents, duplicates, selection, shards, samples)
    stats = corpus_stats(run, outcome)
    text = json.dumps(stats, indent=1, sort_keys=True) + "\n"
    (stage.partial / "stats.json").write_text(text, encoding="ascii")
    (stage.partial / "DATA_CARD.md").write_text(data_card(stats), encoding="utf-8", newline="\n")
    say(stats, config, stage)

    tokens = sum(split["tokens"] for split in stats["splits"].values())
    stage.run_info(tokens_per_second=round(tokens / (time.monotonic() - started)))
    return corpus_metrics(stats)


def identities(config: CorpusConfig, stage: Stage) -> list[dict[str, str]]:
    """Id, revision and digest of every source."""
    from utils.corpus.stats import source_identity

    found = []
    for source in config.sources:
        if source.kind == "generated":
            digest = stage.input("generated").manifest.output_digest
            found.append({"id": source.dataset, "revision": "", "digest": digest})
        else:
            found.append(source_identity(source, stage.source(source.name).record))
    return found


def say(stats: dict, config: CorpusConfig, stage: Stage) -> None:
    """Print what came out, and count rows for the manifest."""
    from utils.corpus.lines import counted, mix_line, source_line, split_line

    for source in config.sources:
        found = stats["sources"][source.name]
        numbers = {key: found[key] for key in ("read", "kept", "kept_tokens", "over_budget", "removed")}
        stage.log(source.name, source_line(found, counted(stats)), **numbers)
        if source.kind != "generated":
            stage.source(source.name).count(found["read"], found["kept"])
    stage.log("mix", mix_line(stats), **stats["mix"])
    splits = stats["splits"].items()
    stage.log(
        "split",
        split_line(stats),
        **{
            name: {key: one[key] for key in ("documents", "groups", "bytes", "tokens")}
            for name, one in splits
        },
    )


if __name__ == "__main__":
    run_stage("20_prepare_corpus", CorpusConfig, main)
