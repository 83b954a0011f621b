"""
20 -- corpus: read, clean, judge, deduplicate and split text.

    python scripts/20_prepare_corpus.py --config config/demo/20_prepare_corpus.json

Reads   local files, text rows of stage 10, docstrings of installed packages
Writes  train/ and val/ shards, removed/ by reason, stats.json, DATA_CARD.md, manifest.json
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.corpus import CorpusConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: CorpusConfig, stage: Stage) -> dict:
    import numpy as np

    from utils.corpus.card import corpus_metrics, corpus_stats, data_card, source_stats
    from utils.corpus.dedup import DedupSettings, permutations
    from utils.corpus.executor import open_executor
    from utils.corpus.intake import read_source
    from utils.corpus.segments import Segments
    from utils.corpus.select import check_validation, in_validation, remove_duplicates
    from utils.corpus.write import write_removed, write_split

    started = time.monotonic()
    names = [source.name for source in config.sources]
    dedup, keep_text = config.deduplicate, config.keep_removed == "text"
    hashing = permutations(dedup.bands * dedup.rows, dedup.seed) if dedup.near else None

    segments = Segments(stage.partial, stage.journal("blocks"), keep_text)
    with open_executor(config.executor) as executor:
        for number, source in enumerate(config.sources):
            read_source(number, source, config, stage, executor, segments, hashing)
    documents = segments.documents()

    near = DedupSettings(dedup.bands, dedup.rows, dedup.similarity) if dedup.near else None
    selection = remove_duplicates(documents, near)
    val = in_validation(documents.entries["split"], config.split.val_fraction)
    kept_val, kept_train = np.flatnonzero(selection.kept & val), np.flatnonzero(selection.kept & ~val)
    check_validation(
        documents.entries["split"][selection.kept], len(kept_val), config.split.min_val_documents
    )

    target_bytes = config.shards.target_mebibytes << 20
    train = write_split(stage.partial, "train", documents, kept_train, target_bytes)
    validation = write_split(stage.partial, "val", documents, kept_val, target_bytes)
    samples = write_removed(stage.partial, segments.removed_rows(), documents, selection, names, keep_text)

    numbers = range(len(names))
    by_source = source_stats(
        [(source.name, source.kind) for source in config.sources],
        [segments.rows_read(number) for number in numbers],
        [segments.removed(number) for number in numbers],
        documents,
        selection,
        val,
    )
    for source, found in zip(config.sources, by_source.values(), strict=True):
        stage.log("source", f"{source.name:<10}{found.line()}")
        if source.kind != "generated":
            stage.source(source.name).count(found.read, found.kept)
    stage.log(
        "split",
        f"train {train.documents:,} documents, val {validation.documents:,} in {validation.groups:,} groups",
    )

    stats = corpus_stats(by_source, train, validation, selection, samples)
    (stage.partial / "stats.json").write_text(
        json.dumps(stats, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    (stage.partial / "DATA_CARD.md").write_text(data_card(stats, stage.waivers), encoding="utf-8")
    seconds = time.monotonic() - started
    stage.run_info(megabytes_per_second=round((train.bytes + validation.bytes) / 1e6 / seconds, 2))
    return corpus_metrics(stats)


if __name__ == "__main__":
    run_stage("20_prepare_corpus", CorpusConfig, main)
