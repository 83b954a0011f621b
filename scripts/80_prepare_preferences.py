"""
80 -- preference data: pairs of answers to one prompt as token ids.

    python scripts/80_prepare_preferences.py --config config/demo/80_prepare_preferences.json

Reads   pairs that stage 10 wrote, files of your own, datasets of the Hub; the frozen tokenizer (30), a chat
        template
Writes  per split .bin .trained .idx (documents 2k and 2k + 1 are the sides of pair k) and .rows.jsonl.zst;
        rejected.jsonl.zst, stats.json, DATA_CARD.md, chat_template.jinja
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.preference_data import PreferenceDataConfig
from utils.pipeline.stage import Stage, run_stage


def main(config: PreferenceDataConfig, stage: Stage) -> dict:
    from utils.chat.admit import Limits, admit_pairs
    from utils.chat.build import DatasetBuild
    from utils.chat.card import dataset_stats, write_description
    from utils.chat.masks import ChatEncoder
    from utils.chat.pairs import PAIR_FORMATS, pair_format
    from utils.chat.prepare import Item, Tally
    from utils.chat.reading import RowShape, read_sources
    from utils.chat.templates import ChatTemplate
    from utils.corpus.row_lines import row_lines
    from utils.packing.index import SpecialIds
    from utils.packing.rows import RowsWriter
    from utils.pipeline.tokenizer_identity import with_template
    from utils.tokenizer.frozen import FrozenTokenizer

    tokenizer = FrozenTokenizer(stage.input("tokenizer").path)
    template = ChatTemplate.load(stage.workspace.path(f"config/templates/{config.template}.jinja"))
    encoder = ChatEncoder(template, tokenizer)
    block = with_template(tokenizer.block, template.source)
    special = SpecialIds(*(tokenizer.special(name) for name in ("bos", "eos", "pad")))
    limits = Limits(config.max_pair_tokens, drop_old=config.on_too_long == "drop_old_turns")

    def open_tokens(split: str) -> RowsWriter:
        return RowsWriter(stage.partial, split, tokenizer.vocab_size, block["fingerprint"], special)

    def admit(items: list[Item], source: int) -> None:
        admit_pairs(build, items, encoder, limits, source)

    fractions = {"val": config.split.val_fraction, "test": config.split.test_fraction}
    tally = Tally(config.max_rejected_fraction)
    build = DatasetBuild(stage.partial, fractions, config.seed, tally, open_tokens)
    shape = RowShape(PAIR_FORMATS, pair_format, "duplicate_pair")
    formats = read_sources(stage, config.sources, row_lines, shape, admit)
    build.finish()

    for source in config.sources:
        if source.kind != "generated":
            build.count_into(stage.source(source.name))
    stats = dataset_stats(
        "pairs", build.stats, tally, formats=formats, notes=dict(sorted(build.notes.items()))
    )
    stage.set_tokenizer(block)
    write_description(stage, "Preference pairs", stats, encoder, config.template, config.sources)
    return {"template": config.template, "end_of_turn": encoder.end_of_turn} | stats


if __name__ == "__main__":
    run_stage("80_prepare_preferences", PreferenceDataConfig, main)
