"""Rows about files and manifests that are not what a stage wrote (1-16, 43, 44, 46)."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.pipeline.rows import (
    answers,
    found_by,
    mended_by_status,
    refuses,
    refuses_at_first,
    row,
    up_to_date,
)
from tests.pipeline.toy import Toy, all_files, reseal_outputs, watching
from tests.pipeline.toy_stages import prepared_tokenizer, write_gguf
from utils.pipeline import lineage

SHARD = "train/00000.jsonl.zst"
GGUF = "checkpoints/demo/gguf/model-q8_0.gguf"


@row("1", "G6")
def shard_edited(toy: Toy) -> None:
    toy.flip("20_prepare_corpus", SHARD)
    refuses(toy, "40_pack_dataset", "tampered", f"{SHARD}: expected")
    up_to_date(toy)


@row("2", "G5")
def file_cut(toy: Toy) -> None:
    path = toy.folder("40_pack_dataset") / "train.bin"
    size = path.stat().st_size
    os.truncate(path, size - 2)
    part = f"tampered (train.bin: expected {size:,} bytes, actual {size - 2:,} bytes)"
    refuses(toy, "50_pretrain", "tampered", part)


@row("3", "G4")
def file_deleted(toy: Toy) -> None:
    before = toy.digest("40_pack_dataset")
    (toy.folder("40_pack_dataset") / "val.idx").unlink()
    refuses_at_first(toy, "50_pretrain", "incomplete", "1 of 4 files missing: val.idx")
    answers(toy.run("40_pack_dataset"), 0, "incomplete (1 of 4 files missing: val.idx)")
    assert toy.digest("40_pack_dataset") == before
    up_to_date(toy, "50_pretrain")


@row("3", "G4")
def file_deleted_and_fix_followed(toy: Toy) -> None:
    (toy.folder("40_pack_dataset") / "val.idx").unlink()
    refuses(toy, "50_pretrain", "incomplete", "val.idx")


@row("4", "G6")
def own_file_edited(toy: Toy) -> None:
    edited = toy.flip("40_pack_dataset", "train.bin").read_bytes()
    refused = refuses(toy, "40_pack_dataset", "tampered", "--force")
    assert "will not build over altered files" in refused.text
    kept = toy.folder("40_pack_dataset").with_name("packed.tampered")
    assert (kept / "train.bin").read_bytes() == edited


@row("5", "G4")
def folder_deleted(toy: Toy) -> None:
    shutil.rmtree(toy.folder("40_pack_dataset"))
    refuses(toy, "50_pretrain", "missing", "--to 40_pack_dataset")


@row("6", "G7")
def stray_shard(toy: Toy) -> None:
    (toy.folder("20_prepare_corpus") / "train/00009.jsonl.zst").write_bytes(b"stray")
    refuses(toy, "30_train_tokenizer", "tampered", "extra file: train/00009.jsonl.zst")


def _linked(toy: Toy, target: Path) -> None:
    shard = toy.folder("20_prepare_corpus") / SHARD
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(target)
    with watching(target) as opened:
        refuses_at_first(toy, "40_pack_dataset", "tampered", f"not a regular file: {SHARD}")
    assert not opened, "the target was opened"
    refuses(toy, "40_pack_dataset", "tampered", "not a regular file")


@row("7", "G9")
def link_to_a_copy(toy: Toy) -> None:
    _linked(toy, toy.folder("20_prepare_corpus") / "log" / "copy")


@row("7", "G9")
def link_out_of_the_folder(toy: Toy) -> None:
    _linked(toy, toy.root / "elsewhere" / "copy")


@row("7", "G9")
def folder_linked_elsewhere(toy: Toy) -> None:
    folder = toy.folder("20_prepare_corpus") / "train"
    folder.rename(toy.root / "elsewhere")
    folder.symlink_to(toy.root / "elsewhere")
    refuses(toy, "40_pack_dataset", "tampered", "not a regular file: train")


def _unsafe(path: str) -> Callable[[Toy], None]:
    def play(toy: Toy) -> None:
        outside = toy.folder("20_prepare_corpus").parent / "x"
        outside.write_text("outside")

        def edit(raw: dict) -> None:
            raw["outputs"][-1]["path"] = path
            reseal_outputs(raw)

        toy.edit_manifest("20_prepare_corpus", edit, reseal=True)
        part = f'manifest.json: unsafe path "{path}"'
        with watching(outside, *all_files(toy.folder("20_prepare_corpus") / "train")) as opened:
            refuses_at_first(toy, "40_pack_dataset", "tampered", part)
        assert not opened, "a file of an unsafe manifest was opened"
        refuses(toy, "40_pack_dataset", "tampered", part)

    play.__name__ = "unsafe_path_" + "".join(f"{ord(char):x}" for char in path[:8])
    return play


UNSAFE = [
    "../x",
    "/x",
    "a\\x",
    "C:x",
    "TRAIN/00001.jsonl.zst",
    "a/./x",
    "a//x",
    "",
    "e\u0301",
    "a" * 241,
    "a\0",
]
for _path in UNSAFE:
    row("8", "G8")(_unsafe(_path))


@row("9", "G1")
def metric_edited(toy: Toy) -> None:
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw["metrics"].update(lines=7), reseal=False)
    refuses(toy, "40_pack_dataset", "tampered", "manifest.json: expected")


@row("10", "G18")
def metric_edited_and_sealed(toy: Toy) -> None:
    toy.edit_manifest("30_train_tokenizer", lambda raw: raw["metrics"].update(pieces=7), reseal=True)
    found_by(toy, ("status", "demo"), "edited after 40_pack_dataset used it")
    refuses(toy, "40_pack_dataset", "tampered", "manifest.json: edited after 40_pack_dataset used it")
    up_to_date(toy)


@row("10", "G18")
def grandparent_edited_and_sealed(toy: Toy) -> None:
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw["metrics"].update(lines=7), reseal=True)
    refuses(toy, "50_pretrain", "tampered", "edited after")


@row("11", "G2")
def output_left_out_and_sealed(toy: Toy) -> None:
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw["outputs"].pop(), reseal=True)
    refuses(toy, "40_pack_dataset", "tampered", "output_digest: expected")


@row("12", "G3")
def stored_config_edited_and_sealed(toy: Toy) -> None:
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw["config"]["semantic"].update(seed=9), reseal=True)
    refuses(toy, "40_pack_dataset", "tampered", "key: expected")


@row("12", "G3")
def key_edited_and_sealed(toy: Toy) -> None:
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw.update(key="0" * 64), reseal=True)
    refuses(toy, "40_pack_dataset", "tampered", "key: expected 000000000000")


def _broken(name: str, change: Callable[[str], str]) -> Callable[[Toy], None]:
    def play(toy: Toy) -> None:
        path = toy.folder("20_prepare_corpus") / "manifest.json"
        path.write_text(change(path.read_text()))
        refuses(toy, "40_pack_dataset", "tampered", "manifest.json: not valid JSON")

    play.__name__ = f"manifest_{name}"
    return play


for _name, _change in {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "prose": lambda text: "see the wiki",
    "doubled_key": lambda text: text.replace("{", '{"key": "", ', 1),
    "a_list": lambda text: "[]",
    "nan": lambda text: text.replace("{", '{"x": NaN, ', 1),
}.items():
    row("13", "G1")(_broken(_name, _change))


@row("14", "G17")
def manifest_deleted(toy: Toy) -> None:
    (toy.folder("20_prepare_corpus") / "manifest.json").unlink()
    refuses(toy, "40_pack_dataset", "incomplete", "no manifest.json")


@row("15", "G19")
def manifest_of_a_newer_program(toy: Toy) -> None:
    newer = {"schema_version": 2, "something": "new"}
    toy.edit_manifest("20_prepare_corpus", lambda raw: raw.update(newer), reseal=True)
    waived = toy.run("40_pack_dataset", "--allow-mismatch", "never mind")
    answers(waived, 3, "mismatched inputs cannot be allowed", "mismatched")
    refuses(toy, "40_pack_dataset", "mismatched", "schema_version: 2 -> this program reads 1")


@row("16", "G6")
def tokenizer_model_swapped(toy: Toy) -> None:
    for producer, stages in {
        "30_train_tokenizer": ("40_pack_dataset", "50_pretrain"),
        "50_pretrain": ("100_evaluate", "70_train_sft"),
    }.items():
        path = toy.folder(producer) / "tokenizer.model"
        path.write_bytes(prepared_tokenizer(1).ljust(path.stat().st_size, b"\0")[: path.stat().st_size])
        for stage in stages:
            refuses_at_first(toy, stage, "tampered", "tokenizer.model: expected")
        refuses(toy, stages[0], "tampered", "tokenizer.model: expected")


# the GGUF


@row("43", "G6")
def gguf_replaced(toy: Toy) -> None:
    path = toy.root / GGUF
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert path.stat().st_size == size
    found_by(toy, ("verify", "checkpoints/demo/gguf"), "model-q8_0.gguf: expected")
    found_by(toy, ("verify", GGUF), "tampered")
    mended_by_status(toy)


@row("43", "G6")
def gguf_replaced_by_another_that_proves_itself(toy: Toy) -> None:
    model = toy.folder("110_merge_lora")
    keys = lineage.gguf_metadata(model, toy.manifest("110_merge_lora")["tokenizer"], toy.workspace)
    write_gguf(toy.root / GGUF, np.zeros(32), model / "tokenizer.model", keys)
    found_by(toy, ("verify", GGUF), "model-q8_0.gguf: expected")
    mended_by_status(toy)


def _lone(toy: Toy) -> Path:
    path = toy.root / "download" / "model-q8_0.gguf"
    path.parent.mkdir()
    shutil.copyfile(toy.root / GGUF, path)
    answers(toy.tool("verify", "download/model-q8_0.gguf"), 0, "lineage of 7 artifacts")
    return path


def _patched(toy: Toy, old: bytes, new: bytes, part: str) -> None:
    path = _lone(toy)
    data = path.read_bytes()
    assert len(old) == len(new) and old in data
    path.write_bytes(data.replace(old, new, 1))
    found_by(toy, ("verify", "download/model-q8_0.gguf"), part)
    shutil.copyfile(toy.root / GGUF, path)
    answers(toy.tool("verify", "download/model-q8_0.gguf"), 0, "ok")


@row("44", "G21")
def lone_tensor_patched(toy: Toy) -> None:
    data = (toy.root / GGUF).read_bytes()
    _patched(toy, data[-128:], data[-128:-1] + bytes([data[-1] ^ 1]), "tensors: expected")


@row("44", "G21")
def lone_lineage_edited(toy: Toy) -> None:
    found = toy.digest("20_prepare_corpus").encode()
    _patched(toy, b'"output_digest":"' + found, b'"output_digest":"' + b"0" * 64, "lineage: expected")


@row("44", "G21")
def lone_model_digest_edited(toy: Toy) -> None:
    key, found = lineage.OUTPUT_DIGEST.encode(), toy.digest("110_merge_lora").encode()
    head = key + (8).to_bytes(4, "little") + (64).to_bytes(8, "little")
    _patched(toy, head + found, head + b"0" * 64, "lineage: expected")


@row("44", "G21")
def lone_tokens_edited(toy: Toy) -> None:
    piece = "\u2581the".encode()
    head = len(piece).to_bytes(8, "little")
    _patched(toy, head + piece, head + "\u2581thy".encode(), "pieces: expected")


@row("46", "G6")
def results_edited(toy: Toy) -> None:
    path = toy.folder("100_evaluate") / "results.json"
    before = json.loads(path.read_text())["rows"]
    path.write_text(path.read_text().replace(f'"rows": {before}', f'"rows": {before + 1}'))
    found_by(toy, ("verify", "data/demo/evaluation"), "results.json: expected")
    mended_by_status(toy)
