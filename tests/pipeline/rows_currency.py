"""Rows about artifacts that are whole and not what would be built now, and about waivers (17-30, 40-49)."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.pipeline.rows import answers, found_by, refuses, refuses_at_first, row, up_to_date
from tests.pipeline.toy import Toy, all_files
from tests.pipeline.toy_configs import PackConfig
from utils.pipeline import tokenizer_identity
from utils.pipeline.lineage import prove_gguf

REASON = "same text, longer rows"


@contextmanager
def patched(target: object, name: str, value: Any) -> Iterator[None]:
    """One attribute replaced meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        tokenizer_identity._identity.cache_clear()
        yield
    tokenizer_identity._identity.cache_clear()


def retrained(toy: Toy) -> None:
    """The tokenizer of the profile, trained on another sample."""
    toy.set("30_train_tokenizer", sample=1)
    answers(toy.run("30_train_tokenizer"), 0, "config.sample: 0 -> 1")


@row("17", "G13")
def tokenizer_folder_swapped(toy: Toy) -> None:
    toy.write_configs("trial")
    toy.set("30_train_tokenizer", profile="trial", sample=1)
    assert toy.tool("run", "trial", "--to", "30_train_tokenizer").code == 0
    shutil.rmtree(toy.folder("30_train_tokenizer"))
    shutil.copytree(toy.folder("30_train_tokenizer", "trial"), toy.folder("30_train_tokenizer"))
    found_by(toy, ("status", "demo"), "config.sample: 1 -> 0")
    refuses(toy, "50_pretrain", "mismatched", "model bytes; pieces")
    up_to_date(toy)


@row("18", refuses=False)
def tokenizer_retrained_identically(toy: Toy) -> None:
    before = toy.digest("30_train_tokenizer")
    answers(toy.run("30_train_tokenizer", "--force"), 0, "forced")
    assert toy.digest("30_train_tokenizer") == before
    up_to_date(toy, "40_pack_dataset")
    up_to_date(toy)


@row("19", "G11")
def tokenizer_retrained_then_packed(toy: Toy) -> None:
    retrained(toy)
    before = toy.digest("40_pack_dataset")
    answers(toy.run("40_pack_dataset"), 0, "stale (input.tokenizer:")
    assert toy.digest("40_pack_dataset") != before


@row("19", "G13")
def tokenizer_retrained_then_trained(toy: Toy) -> None:
    retrained(toy)
    refused = refuses(toy, "50_pretrain", "mismatched", "inputs use different tokenizers")
    lines = [line.split()[0] for line in refused.text.splitlines()[1:]]
    assert lines == ["tokenizer", "data", "differs", "fix", "or"], refused.text
    assert "vocabulary 320   data/demo/packed/manifest.json" in refused.text


@row("20", "G13")
def library_reads_the_files_differently(toy: Toy) -> None:
    encode = tokenizer_identity.encode_probes

    def other(processor: object) -> list[list[int]]:
        return [ids[::-1] if index == 4 else ids for index, ids in enumerate(encode(processor))]

    with patched(tokenizer_identity, "encode_probes", other):
        refuses(toy, "40_pack_dataset", "mismatched", "probe 4 'line one\\nline two\\n\\nline four'")


def touched(toy: Toy) -> None:
    """New times on every file; one half of the folders copied away and back."""
    for path in all_files(toy.root / "data"):
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
    shutil.copytree(toy.root / "checkpoints", toy.root / "away")
    shutil.rmtree(toy.root / "checkpoints")
    shutil.copytree(toy.root / "away", toy.root / "checkpoints")


@row("21", refuses=False)
def touched_copied_away_and_back(toy: Toy) -> None:
    touched(toy)
    up_to_date(toy)
    answers(toy.tool("verify", "checkpoints/demo/gguf/model-q8_0.gguf"), 0, "verified")


@row("21", refuses=False)
def touched_under_a_waiver(toy: Toy) -> None:
    waived(toy)
    answers(toy.run("70_train_sft", "--force"), 0, "done")
    touched(toy)
    up_to_date(toy, "50_pretrain")
    up_to_date(toy, "70_train_sft")


@row("22", refuses=False)
def code_edited_in_form_only(toy: Toy) -> None:
    toy.put(
        "utils/packing/pack.py",
        '"""Better told."""\n\ndef pack( ids ):  # all of them\n  """Now."""\n  return (ids)',
    )
    toy.put("README.md", "new")
    up_to_date(toy)


@row("23", refuses=False)
def code_edited_in_logic(toy: Toy) -> None:
    toy.put("utils/packing/pack.py", "def pack(ids):\n    return ids[::-1]\n")
    answers(toy.run("40_pack_dataset"), 0, "up to date")
    status = toy.tool("status", "demo")
    answers(status, 0, "code changed: utils.packing.pack")
    answers(toy.tool("why", "data/demo/packed"), 0, "; code: changed utils.packing.pack")


@row("24", "G12")
def stage_version_raised(toy: Toy) -> None:
    with patched(PackConfig, "stage_version", 2):
        refuses(toy, "50_pretrain", "stale", "stage_version: 1 -> 2")
        toy.tool("run", "demo")
        up_to_date(toy)
    answers(toy.run("40_pack_dataset"), 0, "stale (stage_version: 2 -> 1)")


@row("25", "G10")
def setting_changed_here(toy: Toy) -> None:
    toy.set("40_pack_dataset", sequence_length_tokens=512)
    answers(toy.run("40_pack_dataset"), 0, "stale (config.sequence_length_tokens: 256 -> 512)")


@row("25", "G10")
def setting_changed_above(toy: Toy) -> None:
    toy.set("40_pack_dataset", sequence_length_tokens=512)
    refuses(toy, "50_pretrain", "stale", "config.sequence_length_tokens: 256 -> 512")


@row("25", "G10")
def setting_changed_far_above(toy: Toy) -> None:
    toy.set("40_pack_dataset", sequence_length_tokens=512)
    refused = refuses(toy, "70_train_sft", "stale", "config.sequence_length_tokens: 256 -> 512")
    assert (
        'input "base" (checkpoints/demo/base), which stands on data/demo/packed: it is stale' in refused.text
    )


@row("26", refuses=False)
def nothing_that_counts_changed(toy: Toy) -> None:
    path = toy.root / "config/demo/40_pack_dataset.json"
    config = json.loads(path.read_text())
    toy.put("config/demo/parts/lengths.json", json.dumps({"sequence_length_tokens": 256, "mode": "worst"}))
    config |= {
        "extends": "parts/lengths.json",
        "mode": "best_fit",
        "executor": {"workers": 3},
        "_why": "a comment",
    }
    path.write_text(json.dumps(config, indent=7, sort_keys=True))
    toy.set("20_prepare_corpus", books=["raw/books/*"], log_every=3, cut=1.0, api_key="changed")
    up_to_date(toy)


@row("27", "G26")
def key_misspelt(toy: Toy) -> None:
    path = toy.root / "config/demo/40_pack_dataset.json"
    before = path.read_text()
    toy.set("40_pack_dataset", sequence_lenght_tokens=256)
    expected = 'unknown key "sequence_lenght_tokens" (did you mean "sequence_length_tokens"?)'
    answers(toy.run("40_pack_dataset"), 2, f"error: config/demo/40_pack_dataset.json: {expected}")
    answers(toy.tool("run", "demo"), 2, "did you mean")
    path.write_text(before)
    up_to_date(toy, "40_pack_dataset")


@row("28", "G20")
def raw_file_edited(toy: Toy) -> None:
    toy.put("raw/books/0.txt", "another tale")
    answers(toy.run("20_prepare_corpus"), 0, "stale (source.books:")


@row("28", "G20")
def raw_file_edited_above(toy: Toy) -> None:
    toy.put("raw/books/0.txt", "another tale")
    refuses(toy, "30_train_tokenizer", "stale", "source.books:")


@row("28", "G20")
def raw_file_added_or_removed(toy: Toy) -> None:
    toy.put("raw/books/9.txt", "another tale")
    refuses_at_first(toy, "30_train_tokenizer", "stale", "source.books:")
    (toy.root / "raw/books/9.txt").unlink()
    up_to_date(toy, "30_train_tokenizer")
    (toy.root / "raw/books/1.txt").unlink()
    refuses(toy, "30_train_tokenizer", "stale", "source.books:")


@row("30", "G10", refuses=False)
def template_edited(toy: Toy) -> None:
    toy.put("config/templates/plain.jinja", "{{ messages | length }}")
    answers(toy.run("60_prepare_sft"), 0, "stale (config.template:")
    up_to_date(toy, "50_pretrain")


# tokenizers and bases


@row("40", "G13")
def rows_made_with_another_tokenizer(toy: Toy) -> None:
    retrained(toy)
    toy.build("50_pretrain")
    refused = refuses(toy, "70_train_sft", "mismatched", "inputs use different tokenizers")
    assert "  base      fingerprint" in refused.text and "  data      fingerprint" in refused.text


@row("41", "G13")
def evaluation_set_of_another_tokenizer(toy: Toy) -> None:
    retrained(toy)
    toy.build("50_pretrain")
    refuses(toy, "100_evaluate", "mismatched", "different tokenizers")


@row("42", "G25")
def adapter_on_another_base(toy: Toy) -> None:
    toy.set("50_pretrain", optimizer={"learning_rate": 1e-3})
    before = toy.digest("50_pretrain")[:12]
    toy.build("50_pretrain")
    now = toy.digest("50_pretrain")[:12]
    refuses(toy, "110_merge_lora", "mismatched", f"base: adapter trained on {before}, found {now}")


@row("45", "G11")
def checkpoint_of_a_lone_file_rebuilt(toy: Toy) -> None:
    before = toy.digest("110_merge_lora")[:12]
    shutil.copytree(toy.folder("120_convert_gguf"), toy.root / "download")
    (toy.root / "download/manifest.json").unlink()
    toy.set("70_train_sft", rank=8)
    toy.build("110_merge_lora")
    now = toy.digest("110_merge_lora")[:12]
    found_by(toy, ("verify", "download/model-q8_0.gguf"), f"stale (input.model: {before} -> {now})")
    toy.build()
    answers(toy.tool("verify", "checkpoints/demo/gguf/model-q8_0.gguf"), 0, "verified")


# waivers


def waived(toy: Toy) -> None:
    """A base model built on packed rows that are stale, and everything made from it."""
    toy.set("40_pack_dataset", sequence_length_tokens=512)
    answers(toy.run("50_pretrain", "--force", "--allow-mismatch", REASON), 0, "done")


@row("48", "G24", refuses=False)
def stale_input_allowed(toy: Toy) -> None:
    waived(toy)
    detail = f'stale config.sequence_length_tokens: 256 -> 512; "{REASON}"'
    for stage in ("70_train_sft", "100_evaluate", "110_merge_lora", "120_convert_gguf"):
        answers(toy.run(stage, "--force"), 0, "done")
        entry = toy.manifest(stage)["mismatches_allowed"][0]
        assert (entry["reason"], entry["at"], entry["role"]) == (REASON, "50_pretrain", "data")
        assert (entry["stage"], entry["before"], entry["after"]) == ("40_pack_dataset", "256", "512")
    status = toy.tool("status", "demo")
    answers(status, 0, f"{detail}")
    assert [line.split()[1] for line in status.text.splitlines()].count("allowed") == 6, status.text
    answers(toy.tool("verify", "checkpoints/demo/base"), 0, f"allowed ({detail})")
    answers(toy.tool("why", "checkpoints/demo/sft"), 0, REASON)
    _, proof = prove_gguf(toy.root / "checkpoints/demo/gguf/model-q8_0.gguf")
    assert proof.lineage[0]["mismatches_allowed"][0]["reason"] == REASON
    toy.build()
    assert toy.manifest("50_pretrain")["mismatches_allowed"] == []  # clean inputs clear it


@row("49", "G24")
def tampered_input_not_allowed(toy: Toy) -> None:
    toy.flip("20_prepare_corpus", "train/00000.jsonl.zst")
    arguments = ("--allow-mismatch", "never mind")
    part = "tampered inputs cannot be allowed; rebuild or restore the file"
    refuses(toy, "40_pack_dataset", "tampered", part, arguments=arguments)


@row("49", "G24")
def allowed_input_changed_again(toy: Toy) -> None:
    waived(toy)
    toy.set("40_pack_dataset", sequence_length_tokens=1024)
    part = f'not covered by the waiver for 256 -> 512 ("{REASON}")'
    refuses(toy, "70_train_sft", "stale", part)
