"""
What the nine toy stages do: a few milliseconds of work, with everything that floor 1 looks at done for real.

    MAINS["40_pack_dataset"](config, stage, at)         # `at("40.committed")` tells a test where it is
"""

import json
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import sentencepiece
import zstandard
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tests.pipeline.toy_configs import (
    ChatConfig,
    CorpusConfig,
    EvaluateConfig,
    GGUFConfig,
    MergeConfig,
    PackConfig,
    PretrainConfig,
    TokenizerConfig,
    TuneConfig,
)
from utils.pipeline import lineage, tokenizer_identity
from utils.pipeline.errors import StageError, UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import sha256_hex
from utils.pipeline.refusal import build_command
from utils.pipeline.stage import Stage
from utils.pipeline.verdict import Verdict
from utils.pipeline.verify import Verifier, changes_since, stored_currency

At = Callable[[str], None]
TEMPLATE = "chat_template.jinja"


@lru_cache
def prepared_tokenizer(sample: int) -> bytes:
    """A real SentencePiece model of 320 pieces, trained on one of two samples."""
    words = ["the tale of a brave hero", "this thing that they think"][sample]
    sentences = [f"{words} {number}" for number in range(40)]
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=320, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, character_coverage=1.0, pad_id=3, num_threads=1,
        control_symbols=["<|im_start|>", "<|im_end|>"], minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def prepare_corpus(config: CorpusConfig, stage: Stage, at: At) -> dict:
    journal = stage.journal("files")
    (stage.partial / "train").mkdir(exist_ok=True)
    books = stage.source("books")
    lines = 0
    for number, path in enumerate(books.files[: int(len(books.files) * config.cut)]):
        with books.open(path) as file:
            text = file.read().decode()
        kept = [line for line in text.splitlines() if not any(word in line for word in config.rules.banned)]
        lines += len(kept)
        if number < len(journal.records):
            continue
        text = "\n".join(kept) + f"\n{config.seed}"
        text = text.lower() if config.rules.lowercase else text
        name = f"train/{number:05d}.jsonl.zst"
        (stage.partial / name).write_bytes(zstandard.compress(text.encode(), 3))
        at("20.work")
        journal.commit({"file": number, "ends": {name: (stage.partial / name).stat().st_size}})
        at("20.committed")
        stage.stop_point()
    books.count(rows_read=lines, rows_kept=lines)
    stage.run_info(lines_per_second=1e6)
    return {"lines": lines}


def train_tokenizer(config: TokenizerConfig, stage: Stage, at: At) -> dict:
    model = prepared_tokenizer(config.sample)
    (stage.partial / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    report = {"probe_ids": tokenizer_identity.encode_probes(processor)}
    (stage.partial / "report.json").write_text(json.dumps(report))
    stage.set_tokenizer(tokenizer_identity.tokenizer_block(stage.partial))
    return {"pieces": processor.get_piece_size()}


def pack_dataset(config: PackConfig, stage: Stage, at: At) -> dict:
    corpus, tokenizer = stage.input("corpus"), stage.input("tokenizer").file("tokenizer.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    journal = stage.journal("shards")
    shards = [path.relative_to(corpus.path).as_posix() for path in corpus.files("train/")]
    begun = {name for record in journal.records for name in record["ends"]}
    for shard in shards[len(journal.records) :]:
        at("40.before_read")
        with corpus.open(shard) as file:
            text = zstandard.decompress(file.read()).decode()
            at("40.after_read")
        ids = processor.encode(text)[: config.sequence_length_tokens]
        split = "val" if shard == shards[-1] else "train"
        names = [f"{split}.bin", f"{split}.idx"]
        for name, data in zip(names, (np.array(ids, "<u2"), np.array([len(ids)], "<u4")), strict=True):
            with open(stage.partial / name, "ab" if name in begun else "wb") as file:
                file.write(data.tobytes())
        begun.update(names)
        at("40.before_commit")
        journal.commit({"ends": {name: (stage.partial / name).stat().st_size for name in names}})
        at("40.committed")
        stage.stop_point()
    at("40.done")
    return {"shards": len(shards)}


def pretrain(config: PretrainConfig, stage: Stage, at: At) -> dict:
    data = b"".join(found.file("train.bin").read_bytes() for found in stage.inputs("data"))
    gradient = np.frombuffer(bytes.fromhex(sha256_hex(data)), np.uint8) / 255
    weights, step = np.zeros(32), 0
    if folder := newest_checkpoint(stage):
        weights, step = load_checkpoint(stage, folder)
    parent = folder and json.loads((folder / "manifest.json").read_text())["output_digest"]
    while step < config.steps:
        step += 1
        weights = weights * 0.99 + config.optimizer.learning_rate * (gradient + np.sin(step + config.seed))
        if stage.every(config.checkpoint_every, step):
            at("50.step")
            parent = write_checkpoint(stage, weights, step, parent or "")
            at("50.sealed")
            stage.stop_point()
    save_file({"weights": weights}, stage.partial / "model.safetensors")
    shutil.copyfile(stage.input("tokenizer").file("tokenizer.model"), stage.partial / "tokenizer.model")
    at("50.done")
    return {"final": float(weights.sum())}


def prepare_sft(config: ChatConfig, stage: Stage, at: At) -> dict:
    template = stage.workspace.path(f"config/templates/{config.template}.jinja").read_text()
    stage.set_tokenizer(
        tokenizer_identity.with_template(stage.input("tokenizer").manifest.tokenizer, template)
    )
    rows = [{"template": template, "text": path.name} for path in stage.input("corpus").files("train/")]
    (stage.partial / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (stage.partial / TEMPLATE).write_text(template)
    return {"rows": len(rows)}


def train_sft(config: TuneConfig, stage: Stage, at: At) -> dict:
    base, data = stage.input("base"), stage.inputs("data")[0]
    weights = load_file(base.file("model.safetensors"))["weights"][: config.rank] * 0.5
    save_file({"adapter": weights}, stage.partial / "adapter_model.safetensors")
    (stage.partial / "adapter_config.json").write_text(json.dumps({"rank": config.rank}))
    shutil.copyfile(base.file("tokenizer.model"), stage.partial / "tokenizer.model")
    shutil.copyfile(data.file(TEMPLATE), stage.partial / TEMPLATE)
    return {}


def evaluate(config: EvaluateConfig, stage: Stage, at: At) -> dict:
    weights = load_file(stage.input("base").file("model.safetensors"))["weights"]
    rows = stage.input("evaluation").file("rows.jsonl").read_text().splitlines()
    (stage.partial / "results.json").write_text(
        json.dumps({"score": float(weights.sum()), "rows": len(rows)})
    )
    return {}


def merge_lora(config: MergeConfig, stage: Stage, at: At) -> dict:
    base, adapter = stage.input("base"), stage.input("adapter")
    weights = load_file(base.file("model.safetensors"))["weights"]
    part = load_file(adapter.file("adapter_model.safetensors"))["adapter"]
    weights[: len(part)] += part
    save_file({"weights": weights}, stage.partial / "model.safetensors")
    for name in ("tokenizer.model", TEMPLATE):
        shutil.copyfile(adapter.file(name), stage.partial / name)
    return {}


def convert_gguf(config: GGUFConfig, stage: Stage, at: At) -> dict:
    model = stage.input("model")
    weights = load_file(model.file("model.safetensors"))["weights"]
    keys = lineage.gguf_metadata(model.path, model.manifest.tokenizer, stage.workspace)
    path = stage.partial / "model-q8_0.gguf"
    write_gguf(path, weights, model.file("tokenizer.model"), keys)
    verdict, proof = lineage.prove_gguf(path)
    if not verdict.good:
        raise StageError(f"the file does not prove itself: {verdict}")
    return {"tensors": proof.tensors_sha256}


MAINS: dict[str, Callable[..., dict]] = {
    "20_prepare_corpus": prepare_corpus,
    "30_train_tokenizer": train_tokenizer,
    "40_pack_dataset": pack_dataset,
    "50_pretrain": pretrain,
    "60_prepare_sft": prepare_sft,
    "70_train_sft": train_sft,
    "100_evaluate": evaluate,
    "110_merge_lora": merge_lora,
    "120_convert_gguf": convert_gguf,
}


# checkpoints, as utils/training/checkpoint.py does it, without tensors of torch


def newest_checkpoint(stage: Stage) -> Path | None:
    """The newest sealed checkpoint, proven; None at the start of a run."""
    folders = sorted((stage.partial / "checkpoints").glob("step_*"))
    if not folders or stage.resume == "never":
        return None
    manifest, verdict = Verifier(stage.workspace).artifact(folders[-1])
    never = build_command(stage.name, stage.build.loaded.path) + " --resume never"
    if manifest is None or not verdict.good:
        what = f"{folders[-1].name}/{verdict.component} is {verdict}"
        raise UpstreamError(f"cannot continue: {what}", fix=f"restore it, or: {never}", verdict=str(verdict))
    if manifest.key != stage.build.key:
        changes = changes_since(stored_currency(manifest), stage.build.proof.currency)
        raise UpstreamError(f"cannot continue: {Verdict.changed('stale', changes)}", fix=never)
    return folders[-1]


def load_checkpoint(stage: Stage, folder: Path) -> tuple[np.ndarray, int]:
    """Weights and step; no failed load leads to step 0."""
    weights, step, failure = np.zeros(32), 0, None
    try:
        weights = load_file(folder / "model.safetensors")["weights"]
        step = json.loads((folder / "state.json").read_text())["step"]
    except (SafetensorError, ValueError, KeyError) as error:
        failure = error
    if GUARDS["G22"](failure):
        never = build_command(stage.name, stage.build.loaded.path) + " --resume never"
        raise StageError(
            f"{folder.name} verifies but cannot be loaded: {failure}; will not start over", fix=never
        )
    return weights, step


def write_checkpoint(stage: Stage, weights: np.ndarray, step: int, parent: str) -> str:
    """Seal a checkpoint under a temporary name, rename it, remove all but the two newest."""
    folder = stage.partial / "checkpoints" / f"step_{step:08d}"
    writing = folder.with_name(".writing-" + folder.name)
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    save_file({"weights": weights}, writing / "model.safetensors")
    (writing / "state.json").write_text(json.dumps({"step": step}))
    block = {"step": step, "parent": parent, "tokens_seen": step * 10, "cursor": {"step": step}, "best": {}}
    found = stage.seal_checkpoint(writing, block)
    os.rename(writing, folder)
    for old in sorted(folder.parent.glob("step_*"))[:-2]:
        shutil.rmtree(old)
    return found


def write_gguf(path: Path, weights: np.ndarray, tokenizer: Path, keys: dict[str, str]) -> None:
    """A small GGUF with the token list, one tensor and the keys of its lineage."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    pieces = tokenizer_identity.pieces_of(processor)
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    for add, column in (
        (writer.add_token_list, 0),
        (writer.add_token_scores, 1),
        (writer.add_token_types, 2),
    ):
        add([row[column] for row in pieces])
    for name, text in keys.items():
        writer.add_string(name, text)
    writer.add_tensor("weights", weights.astype(np.float32), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = GGUFReader(path, "r+")
    reader.fields[lineage.TENSORS_SHA256].parts[-1][:] = np.frombuffer(
        lineage.tensors_digest(reader).encode(), np.uint8
    )
    reader.data.flush()
