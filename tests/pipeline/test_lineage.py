"""The end of the chain: a GGUF that proves itself, and checkpoints that form a chain (P40-P43)."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy
from utils.pipeline.hashing import canonical_json, digest, sha256_hex
from utils.pipeline.lineage import (
    LINEAGE,
    TENSORS_SHA256,
    archived_manifest,
    gguf_metadata,
    lineage_of,
    prove_gguf,
    tensors_digest,
)
from utils.pipeline.manifest import read_manifest
from utils.pipeline.seal import partial_of
from utils.pipeline.verify import verify_artifact

GGUF = "checkpoints/demo/gguf/model-q8_0.gguf"
MERGED = "110_merge_lora"


def test_the_lineage_names_every_ancestor_once(toy: Toy) -> None:
    entries = lineage_of(toy.folder(MERGED), toy.workspace)
    assert [entry["stage"] for entry in entries][0] == MERGED
    assert sorted(entry["stage"] for entry in entries) == sorted([
        MERGED, "50_pretrain", "70_train_sft", "30_train_tokenizer", "40_pack_dataset", "60_prepare_sft",
        "20_prepare_corpus",
    ])  # fmt: skip
    for entry in entries:
        manifest = toy.manifest(entry["stage"])
        assert all(entry[name] == manifest[name] for name in ("key", "output_digest"))
        assert entry["parents"] == {row["role"]: row["output_digest"] for row in manifest["inputs"]}
    corpus = next(entry for entry in entries if entry["stage"] == "20_prepare_corpus")
    assert corpus["sources"][0]["name"] == "books"


def test_the_lineage_outlives_the_folders(toy: Toy) -> None:
    before = lineage_of(toy.folder(MERGED), toy.workspace)
    seal = toy.manifest("20_prepare_corpus")["manifest_sha256"]
    shutil.rmtree(toy.folder("20_prepare_corpus"))
    assert lineage_of(toy.folder(MERGED), toy.workspace) == before
    assert archived_manifest(seal, toy.workspace).stage == "20_prepare_corpus"


def test_the_metadata_are_those_of_the_specification(toy: Toy) -> None:
    tokenizer = toy.manifest(MERGED)["tokenizer"]
    keys = gguf_metadata(toy.folder(MERGED), tokenizer, toy.workspace)
    entries = lineage_of(toy.folder(MERGED), toy.workspace)
    assert keys == {
        "lockstep.output_digest": toy.digest(MERGED),
        "lockstep.tokenizer_fingerprint": tokenizer["fingerprint"],
        "lockstep.tokenizer": canonical_json(tokenizer).decode(),
        "lockstep.lineage": canonical_json(entries).decode(),
        "lockstep.lineage_sha256": digest("lineage", entries),
        "lockstep.tensors_sha256": "0" * 64,
    }


def test_the_tensor_digest_covers_name_shape_type_and_data(toy: Toy) -> None:
    reader = GGUFReader(toy.root / GGUF)
    tensor = reader.tensors[0]
    rows = [["weights", [32], "F32", sha256_hex(np.asarray(tensor.data).tobytes())]]
    assert tensors_digest(reader) == digest("tensors", rows)
    assert reader.fields[TENSORS_SHA256].contents() == digest("tensors", rows)


def test_a_lone_file_proves_itself(toy: Toy, tmp_path: Path) -> None:
    lone = tmp_path / "anywhere.gguf"
    shutil.copyfile(toy.root / GGUF, lone)
    verdict, proof = prove_gguf(lone)
    assert str(verdict) == "ok" and proof.output_digest == toy.digest(MERGED)
    assert proof.tokenizer == toy.manifest(MERGED)["tokenizer"] and len(proof.lineage) == 7


def test_a_file_of_another_program_carries_no_lineage(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("weights", np.zeros(4, np.float32))
    for step in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        step()
    verdict, proof = prove_gguf(tmp_path / "x.gguf")
    assert (
        str(verdict) == "mismatched (x.gguf: carries no lineage, another program made it)" and proof is None
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_byte_of_lineage_or_tensors_can_change_unseen(toy: Toy, tmp_path: Path, seed: int) -> None:
    data = (toy.root / GGUF).read_bytes()
    start = data.index(LINEAGE.encode())
    end = data.index(b"lockstep.lineage_sha256")
    places = [*random.Random(seed).sample(range(start + 40, end - 8), 12), len(data) - 1 - seed]
    for place in places:
        path = tmp_path / f"{place}.gguf"
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << seed)]) + data[place + 1 :])
        assert not prove_gguf(path)[0].good, f"byte {place}"


def test_a_damaged_header_is_a_verdict_and_no_crash(toy: Toy, tmp_path: Path) -> None:
    data = (toy.root / GGUF).read_bytes()
    path = tmp_path / "damaged.gguf"
    for size in (0, 3, 4, 23, 100, 1000, len(data) // 2):
        path.write_bytes(data[:size])
        assert prove_gguf(path)[0].kind == "tampered", size
    path.write_bytes(b"not a GGUF at all" * 100)
    assert str(prove_gguf(path)[0]).startswith("tampered (damaged.gguf: not a readable GGUF")


# checkpoints


@pytest.fixture
def stopped(toy: Toy) -> Path:
    """The checkpoints of a base model that was killed after step 300."""
    shutil.rmtree(toy.folder("50_pretrain"))
    toy.killed("50_pretrain", "50.sealed", 3)
    return partial_of(toy.folder("50_pretrain")) / "checkpoints"


def test_each_checkpoint_is_an_artifact_with_a_parent(toy: Toy, stopped: Path) -> None:
    folders = sorted(stopped.glob("step_*"))
    assert [folder.name for folder in folders] == ["step_00000200", "step_00000300"]  # the oldest was pruned
    manifests = [read_manifest(folder)[0] for folder in folders]
    assert [str(verify_artifact(folder, toy.workspace)) for folder in folders] == ["ok", "ok"]
    assert manifests[1].checkpoint.parent == manifests[0].output_digest
    assert manifests[1].checkpoint.step == 300 and manifests[1].checkpoint.cursor == {"step": 300}
    state = json.loads((stopped.parent / "state.json").read_text())
    assert {manifest.key for manifest in manifests} == {state["key"]}
    first = [manifest for manifest in _archived(toy) if manifest.get("checkpoint", {}).get("step") == 100]
    assert manifests[0].checkpoint.parent in {manifest["output_digest"] for manifest in first}


def _archived(toy: Toy) -> list[dict]:
    return [json.loads(path.read_text()) for path in (toy.root / "data/.lockstep/manifests").glob("*.json")]


def test_the_finished_artifact_lists_no_checkpoint(toy: Toy, stopped: Path) -> None:
    answers(toy.run("50_pretrain"), 0, "resuming")
    paths = {row["path"] for row in toy.manifest("50_pretrain")["outputs"]}
    assert paths == {"model.safetensors", "tokenizer.model"}
    assert (toy.folder("50_pretrain") / "checkpoints/step_00000400/manifest.json").is_file()
    assert str(verify_artifact(toy.folder("50_pretrain"), toy.workspace)) == "ok"


def test_a_checkpoint_of_another_key_is_named(toy: Toy, stopped: Path) -> None:
    toy.set("50_pretrain", seed=9)
    answers(toy.run("50_pretrain"), 3, "stale (config.seed: 0 -> 9)", "stale")
