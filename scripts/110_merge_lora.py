"""
110 -- merge: fold an adapter into weights, and measure that nothing changed.

    python scripts/110_merge_lora.py --config config/demo/110_merge_lora.json

Reads   the base (50), an adapter, a model with adapters of its own or a full fine-tune (70, 90), held-out
        conversations (60)
Writes  model.safetensors, config.json, generation_config.json, the adapter's tokenizer set, MODEL_CARD.md,
manifest.json
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.merge import MergeConfig
from utils.pipeline.stage import Stage, run_stage

TOKENIZER_SET = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def main(config: MergeConfig, stage: Stage) -> dict:
    from utils.export.card import merged_card
    from utils.export.merge import has_own_adapters
    from utils.models.adapt import is_adapter
    from utils.pipeline.lineage import lineage_of

    tuned = stage.input("adapter")
    copy_files(tuned, stage.partial, [name for name in TOKENIZER_SET if (tuned.path / name).is_file()])
    if is_adapter(tuned.path) or has_own_adapters(tuned.path):
        metrics = merge(config, stage)
    else:
        weights = [
            path.name
            for path in tuned.files()
            if path.name.startswith(("model", "config", "generation_config"))
        ]
        copy_files(tuned, stage.partial, weights)
        metrics = {"mode": "copied", "dtype": "as given"}
    stage.log("merged", **metrics)
    card = merged_card(config.output, metrics, lineage_of(tuned.path, stage.workspace), stage.waivers)
    (stage.partial / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    return metrics


def merge(config: MergeConfig, stage: Stage) -> dict:
    """
    Merge, write, load again, and compare the written model with the adapted one on held-out conversations.
    """
    from utils.chat.masks import ChatEncoder
    from utils.chat.templates import ChatTemplate
    from utils.export.merge import (
        merge_adapter,
        parity,
        require_parity,
        sequence_logits,
        within_memory,
        write_merged,
    )
    from utils.models.load import load_model
    from utils.packing.rows import RowsDataset
    from utils.tokenizer.frozen import FrozenTokenizer

    tuned = stage.input("adapter")
    adapted = open_adapted(stage).eval()
    encoder = ChatEncoder(ChatTemplate.load(tuned.file("chat_template.jinja")), FrozenTokenizer(tuned.path))

    held_out = RowsDataset(stage.input("prompts").path, "val")
    window = adapted.config.max_position_embeddings
    compared = range(min(config.verify.prompts, held_out.num_documents))
    sequences = within_memory([held_out.document(i)[0][:window] for i in compared], adapted.config.vocab_size)
    before = sequence_logits(adapted, sequences)
    write_merged(merge_adapter(adapted).eval(), stage.partial, config.dtype, encoder.stop_ids)
    measured = parity(before, sequence_logits(load_model(stage.partial), sequences))
    require_parity(measured, config.dtype, config.verify.max_mean_kl)
    return {"mode": "merged", "dtype": config.dtype, "prompts": len(sequences), **asdict(measured)}


def open_adapted(stage: Stage) -> Any:
    """The adapted model: base and adapter together, or one model with adapters of its own."""
    from utils.models.adapt import attach_adapter, is_adapter
    from utils.models.load import load_model
    from utils.serving.adapters import recorded_base, refuse_other_base

    base, tuned = stage.input("base"), stage.input("adapter")
    if not is_adapter(tuned.path):
        return load_model(tuned.path)
    refuse_other_base(stage.name, recorded_base(tuned.manifest).output_digest, base.manifest.output_digest)
    return attach_adapter(load_model(base.path), tuned.path)


def copy_files(source, target: Path, names: list[str]) -> None:
    """Copy listed files of an input byte for byte."""
    for name in names:
        shutil.copyfile(source.file(name), target / name)


if __name__ == "__main__":
    run_stage("110_merge_lora", MergeConfig, main)
