"""
40 -- packing: the corpus as memory-mapped rows of token ids.

    python scripts/40_pack_dataset.py --config config/demo/40_pack_dataset.json

Reads   corpus shards (20), the frozen tokenizer (30)
Writes  train.bin train.idx val.bin val.idx, manifest.json
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.pack import PackConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: PackConfig, stage: Stage) -> dict:
    from utils.corpus.executor import open_executor
    from utils.packing.dataset import verify_packed
    from utils.packing.index import SpecialIds
    from utils.packing.pack import Layout
    from utils.packing.report import check_disjoint, check_padding, estimate_of, packing_metrics
    from utils.tokenizer.frozen import FrozenTokenizer

    tokenizer = FrozenTokenizer(stage.input("tokenizer").path)
    special = SpecialIds(tokenizer.special("bos"), tokenizer.special("eos"), tokenizer.special("pad"))
    sources = sorted(stage.input("corpus").manifest.metrics["sources"])
    length = config.sequence_length_tokens
    layout = Layout(config.mode, length, tokenizer.vocab_size, tokenizer.fingerprint, special, sources)

    with open_executor(config.executor) as executor:
        train = pack_split("train", config.max_train_tokens, stage, layout, tokenizer, executor)
        val = pack_split("val", config.max_val_tokens, stage, layout, tokenizer, executor)

    check_padding(train, length, config.max_padding_fraction)
    check_disjoint(verify_packed(stage.partial, "train"), verify_packed(stage.partial, "val"))
    estimate = None
    if rate := bytes_per_token(stage):
        estimate = estimate_of([train, val], rate)
        stage.log("estimate", estimate.line(), tokens=estimate.tokens, estimated=estimate.estimated_tokens)
    return packing_metrics(train, val, estimate)


def bytes_per_token(stage: Stage) -> float:
    """By how many bytes stage 20 estimated a token; 0 where it counted them."""
    budget = stage.input("corpus").manifest.config.resolved["budget"]
    return budget["bytes_per_token"] if budget["count"] == "estimate" else 0.0


def pack_split(split: str, max_tokens: int, stage: Stage, layout: Any, tokenizer: Any, executor: Any) -> Any:
    """Tokenise the blocks of a split in parallel, append them in order, build its rows."""
    from utils.corpus.executor import stoppable_map
    from utils.corpus.shards import read_blocks
    from utils.packing.pack import SplitPacker, encode_rows

    packer = SplitPacker(stage.partial, split, layout, stage.journal(split), max_tokens)
    if packer.rows_done:
        stage.log("resuming", split=split, rows=packer.rows_done)
    if not packer.full:
        blocks = read_blocks(stage.input("corpus"), split, packer.rows_done)
        encode = partial(encode_rows, tokenizer.encode_text, layout.special)
        for block in stoppable_map(executor, stage, encode, blocks):
            if not packer.append(block):
                break
    report = packer.finish()
    stage.log("packed", f"{split}: {report.line()}")
    return report


if __name__ == "__main__":
    run_stage("40_pack_dataset", PackConfig, main)
