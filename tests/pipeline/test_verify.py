"""Verification: cheap steps first, ancestors by the cache, what is gone, waivers (P19-P21, P33, P39)."""

import json
import shutil
import time

import pytest

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy, all_files
from utils.pipeline import hashing, verify
from utils.pipeline.verdict import Verdict, differences, worst
from utils.pipeline.verify import Verifier, verify_artifact

BASE, CORPUS = "50_pretrain", "20_prepare_corpus"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read to be hashed."""
    names: list[str] = []
    hash_file = hashing._hash_file
    monkeypatch.setattr(hashing, "_hash_file", lambda path: names.append(path.name) or hash_file(path))
    return names


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is ahead of every file, so that the cache may keep all of them."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10)


def test_a_truncation_costs_no_hashing(toy: Toy, hashed: list[str]) -> None:
    path = toy.folder(BASE) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify_artifact(toy.folder(BASE), toy.workspace).kind == "tampered"
    assert hashed == []


def test_each_file_is_hashed_once_per_phase(toy: Toy, hashed: list[str]) -> None:
    verifier = Verifier(toy.workspace)
    for stage in ("70_train_sft", BASE, "60_prepare_sft"):
        verifier.chain(toy.folder(stage))
    assert hashed.count("00000.jsonl.zst") == 1 and hashed.count("adapter_model.safetensors") == 1


def test_a_direct_input_is_hashed_in_full_whatever_an_ancestor_was(
    toy: Toy, quiet: None, hashed: list[str]
) -> None:
    Verifier(toy.workspace, "cached").chain(toy.folder("40_pack_dataset"))  # fills the cache
    hashed.clear()
    verifier = Verifier(toy.workspace, "full")
    verifier.chain(toy.folder("40_pack_dataset"))
    assert "tokenizer.model" not in hashed  # an ancestor here
    verifier.chain(toy.folder("30_train_tokenizer"))
    assert "tokenizer.model" in hashed  # a direct input there


def test_cached_mode_reads_nothing_again_and_sees_what_changed(
    toy: Toy, quiet: None, hashed: list[str]
) -> None:
    answers(toy.run(BASE, "--verify", "cached"), 0, "up to date")
    hashed.clear()
    answers(toy.run(BASE, "--verify", "cached"), 0, "up to date")
    assert set(hashed) <= {"0.txt", "1.txt", "2.txt"}
    toy.flip(CORPUS, "train/00000.jsonl.zst")
    answers(toy.run(BASE, "--verify", "cached"), 3, "train/00000.jsonl.zst")


def test_an_ancestor_that_is_not_on_disk_is_no_refusal(toy: Toy) -> None:
    shutil.rmtree(toy.folder(CORPUS))
    shutil.rmtree(toy.root / "raw")
    answers(toy.run(BASE), 0, "up to date")
    seal = toy.manifest("40_pack_dataset")["inputs"][0]["manifest_sha256"][:12]
    verified = toy.tool("verify", "checkpoints/demo/base")
    answers(verified, 0, f"20_prepare_corpus    not on disk, not checked (archived manifest {seal})")
    answers(toy.run("40_pack_dataset"), 3, "is missing", "missing")  # a direct input must be there


def test_an_ancestor_on_disk_that_disagrees_is_one(toy: Toy) -> None:
    toy.flip(CORPUS, "train/00000.jsonl.zst")
    refused = toy.run(BASE)
    answers(refused, 3, "which stands on data/demo/corpus: it is tampered", "tampered")
    toy.follow(refused.fix)
    answers(toy.run(BASE), 0, "up to date")


def test_an_edit_after_use_is_seen_from_every_branch(toy: Toy) -> None:
    toy.edit_manifest(CORPUS, lambda raw: raw["metrics"].update(lines=7), reseal=True)
    seal = toy.manifest(CORPUS)["manifest_sha256"]
    toy.edit_manifest(
        "40_pack_dataset", lambda raw: raw["inputs"][0].update(manifest_sha256=seal), reseal=True
    )
    links = Verifier(toy.workspace).chain(toy.folder("40_pack_dataset"))
    told = [(link.stage, str(link.verdict)) for link in links]
    edited = "tampered (manifest.json: edited after 30_train_tokenizer used it)"
    assert told == [
        ("40_pack_dataset", "ok"),
        (CORPUS, "ok"),
        ("30_train_tokenizer", "ok"),
        (CORPUS, edited),
    ]


def test_an_unfinished_build_is_no_artifact(toy: Toy) -> None:
    toy.folder("40_pack_dataset").rename(toy.folder("40_pack_dataset").with_name("packed.partial"))
    answers(toy.run(BASE), 3, "incomplete (unfinished build in data/demo/packed.partial)", "incomplete")


def test_a_config_that_no_longer_loads_is_stale(toy: Toy) -> None:
    toy.set("40_pack_dataset", sequence_length_tokens="many")
    answers(
        toy.run(BASE),
        3,
        'stale (config: config/demo/40_pack_dataset.json: "sequence_length_tokens": ',
        "stale",
    )


def test_a_config_that_is_gone_says_nothing(toy: Toy) -> None:
    (toy.root / "config/demo/40_pack_dataset.json").unlink()
    answers(toy.run(BASE), 0, "up to date")


def test_a_field_on_one_side_is_absent_on_the_other(toy: Toy) -> None:
    def drop(raw: dict) -> None:
        del raw["config"]["semantic"]["mode"]
        facts = raw["stage"], raw["stage_version"], raw["config"]["semantic"]
        inputs = {row["role"]: row["output_digest"] for row in raw["inputs"]}
        raw["key"] = verify.compute_key(*facts, inputs, {})

    toy.edit_manifest("40_pack_dataset", drop, reseal=True)
    verdict = Verifier(toy.workspace).chain(toy.folder("40_pack_dataset"))[0].verdict
    assert str(verdict) == "stale (config.mode: absent -> best_fit)"


def test_three_files_are_named_then_counted(toy: Toy) -> None:
    for path in all_files(toy.folder("40_pack_dataset")):
        if path.parent.name == "packed" and path.name != "manifest.json":
            path.unlink()
    verdict = verify_artifact(toy.folder("40_pack_dataset"), toy.workspace)
    assert str(verdict) == "incomplete (4 of 4 files missing: train.bin, train.idx, val.bin, and 1 more)"


# verdicts


def test_shapes_of_verdicts() -> None:
    shapes = [
        str(Verdict.tampered("train.bin", "a7a459cdcaa2" + "0" * 52, "11d0e0c4a9f7" + "0" * 52)),
        str(Verdict.changed("stale", [("stage_version", 1, 2)])),
        str(Verdict.changed("stale", [("config.b", 1, 2), ("config.a", True, False), ("config.c", "", "x")])),
        str(Verdict.changed("stale", [("input.data", "a", "b")]).allowed("same text")),
        str(Verdict("ok")),
    ]
    assert shapes == [
        "tampered (train.bin: expected a7a459cdcaa2, actual 11d0e0c4a9f7)",
        "stale (stage_version: 1 -> 2)",
        "stale (config.a: True -> False, and 2 more)",
        'allowed (stale input.data: a -> b; "same text")',
        "ok",
    ]


def test_the_worst_comes_first() -> None:
    kinds = ["ok", "allowed", "stale", "mismatched", "incomplete", "missing", "tampered"]
    for index in range(1, len(kinds) + 1):
        assert worst(Verdict(kind) for kind in kinds[:index]).kind == kinds[index - 1]
    assert worst([]).kind == "ok"


def test_differences_are_found_by_path_and_type() -> None:
    before = {"a": 1, "b": [1, {"c": 2}], "d": {}, "e": 1}
    after = {"a": 1.0, "b": [1, {"c": 3}, 4], "d": {"f": None}, "e": 1}
    found = [(path, repr(old), repr(new)) for path, old, new in differences(before, after, "config")]
    assert found == [
        ("config.a", "1", "1.0"),
        ("config.b[1].c", "2", "3"),
        ("config.b[2]", "absent", "4"),
        ("config.d.f", "absent", "None"),
    ]


# waivers


def test_a_waiver_of_several_changes_covers_exactly_those(toy: Toy) -> None:
    toy.set("40_pack_dataset", sequence_length_tokens=8, mode="other")
    answers(toy.run(BASE, "--force", "--allow-mismatch", "both"), 0, "done")
    answers(toy.run(BASE), 0, "up to date")
    toy.set("40_pack_dataset", sequence_length_tokens=8, mode="best_fit")
    answers(toy.run(BASE), 3, "config.sequence_length_tokens: 256 -> 8", "stale")


def test_a_tokenizer_waiver_is_kept_and_inherited(toy: Toy) -> None:
    toy.set("30_train_tokenizer", sample=1)
    toy.build("50_pretrain")
    answers(toy.run("70_train_sft"), 3, "different tokenizers", "mismatched")
    answers(toy.run("70_train_sft", "--allow-mismatch", "a trial"), 0, "done")
    entries = toy.manifest("70_train_sft")["mismatches_allowed"]
    assert {"tokenizer"} <= {entry["component"] for entry in entries}
    assert {entry["reason"] for entry in entries} == {"a trial"}
    answers(toy.run("70_train_sft"), 0, "up to date")
    answers(toy.tool("why", "checkpoints/demo/sft"), 0, "a trial")


def test_unequal_vocabulary_sizes_cannot_be_allowed(toy: Toy) -> None:
    def smaller(raw: dict) -> None:
        raw["tokenizer"]["vocab_size"] = 100

    toy.edit_manifest("60_prepare_sft", smaller, reseal=True)
    for arguments in ((), ("--allow-mismatch", "please")):
        refused = toy.run("70_train_sft", "--force", *arguments)
        assert refused.code == 3 and json.dumps(refused.verdict).count("tampered")
    shutil.rmtree(toy.folder("70_train_sft"))  # nobody remembers the seal any more
    for arguments in ((), ("--allow-mismatch", "please")):
        answers(toy.run("70_train_sft", *arguments), 3, "vocabulary 100", "mismatched")
