"""manifest.json: the example of the specification, what is refused on reading, the archive (P5, P8-P12)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.toy import Toy
from utils.pipeline import manifest as module
from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import digest, sha256_hex
from utils.pipeline.manifest import (
    Manifest,
    compute_key,
    compute_output_digest,
    compute_seal,
    files_in,
    read_manifest,
)
from utils.pipeline.tokenizer_identity import seal_block

EXAMPLE = Path(__file__).parent / "example_manifest.json"


@pytest.fixture
def example() -> dict:
    return json.loads(EXAMPLE.read_bytes())


@pytest.fixture
def folder(tmp_path: Path, example: dict) -> Callable[[object], Path]:
    """A folder whose manifest is the given value, as JSON or as raw text."""

    def write(document: object) -> Path:
        text = document if isinstance(document, str) else json.dumps(document)
        (tmp_path / "manifest.json").write_text(text)
        return tmp_path

    return write


def test_the_example_of_the_specification_holds(example: dict, folder: Callable) -> None:
    manifest, verdict = read_manifest(folder(example))
    assert str(verdict) == "ok"
    assert compute_output_digest(example["outputs"]) == example["output_digest"]
    assert compute_seal(example) == example["manifest_sha256"]
    assert seal_block(example["tokenizer"]) == example["tokenizer"]
    facts = manifest.stage, manifest.stage_version, manifest.semantic
    assert compute_key(*facts, manifest.input_digests, manifest.source_digests) == example["key"]


def test_the_seal_ignores_form_and_run_and_nothing_else(example: dict) -> None:
    seal = compute_seal(example)
    assert compute_seal(dict(reversed(example.items()))) == seal
    assert compute_seal(example | {"run": {}}) == seal
    for name in example.keys() - {"run", "manifest_sha256"}:
        assert compute_seal(example | {name: "edited"}) != seal, name


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        ({"surprise": 1}, "manifest.json: surprise: extra inputs are not permitted"),
        ({"key": "A" * 64}, "manifest.json: key: "),
        ({"key": "a" * 63}, "manifest.json: key: "),
        ({"stage": "40-pack"}, "manifest.json: stage: "),
        ({"stage_version": 0}, "manifest.json: stage_version: "),
        ({"stage_version": "1"}, "manifest.json: stage_version: "),
        ({"determinism": "hopeful"}, "manifest.json: determinism: "),
        ({"schema_version": 2}, "mismatched (schema_version: 2 -> this program reads 1)"),
        ({"schema_version": "1"}, "mismatched (schema_version: 1 -> this program reads 1)"),
        ({"metrics": {"a": 1}}, "tampered (manifest.json: expected 28f74792cc3b, actual "),
        ({"outputs": [{"path": "x", "bytes": -1, "sha256": "0" * 64}]}, "outputs.0.bytes"),
        ({"checkpoint": {"step": 1}}, "checkpoint.parent: field required"),
    ],
)
def test_what_is_refused_on_reading(example: dict, folder: Callable, edit: dict, part: str) -> None:
    _, verdict = read_manifest(folder(example | edit))
    assert part in str(verdict)
    assert verdict.kind == ("mismatched" if "schema_version" in edit else "tampered") and not verdict.waivable


@pytest.mark.parametrize("name", ["stage", "key", "outputs", "run", "manifest_sha256", "mismatches_allowed"])
def test_every_field_is_required(example: dict, folder: Callable, name: str) -> None:
    _, verdict = read_manifest(folder({key: value for key, value in example.items() if key != name}))
    assert str(verdict) == f"tampered (manifest.json: {name}: field required)"


def test_doubled_keys_depth_and_size(
    example: dict, folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(example)
    doubled = text.replace('"metrics": {', '"metrics": {"documents": 1, ', 1)
    assert "a key occurs twice" in str(read_manifest(folder(doubled))[1])
    for levels, problem in ((62, False), (63, True), (900, True), (100_000, True)):
        deep = text.replace('"metrics": {', '"metrics": {"deep": ' + "[" * levels + "]" * levels + ", ", 1)
        verdict = str(read_manifest(folder(deep))[1])
        assert ("levels deep" in verdict or "recursion" in verdict) == problem, (levels, verdict)
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 1 << 20)
    assert "larger than 1 MiB" in str(read_manifest(folder(" " * (1 << 20) + text))[1])


@pytest.mark.parametrize(
    ("paths", "unsafe"),
    [
        (["a", "b/c.txt", "\u00e9", "a" * 240], ""),
        (["a", "A"], "A"),
        (["stra\u00dfe", "STRASSE"], "STRASSE"),
        (["a" * 241], "a" * 241),
        (["\u00e9" * 121], "\u00e9" * 121),
        (["\udc80"], ""),
    ],
)
def test_paths_that_are_safe_and_not(paths: list[str], unsafe: str) -> None:
    verdict = GUARDS["G8"](paths)
    assert (str(verdict) == f'tampered (manifest.json: unsafe path "{unsafe}")') == bool(unsafe)


def test_what_counts_as_output(tmp_path: Path) -> None:
    for name in (
        "a",
        "log/x",
        "checkpoints/y",
        "sub/log/z",
        "sub/manifest.json",
        ".DS_Store",
        "sub/Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "manifest.json").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    assert sorted(files_in(tmp_path)) == ["a", "link", "sub/log/z", "sub/manifest.json"]


def test_every_sealed_manifest_is_archived(toy: Toy) -> None:
    for stage in ("20_prepare_corpus", "50_pretrain"):
        text = (toy.folder(stage) / "manifest.json").read_text()
        seal = json.loads(text)["manifest_sha256"]
        assert (toy.root / f"data/.lockstep/manifests/{seal}.json").read_text() == text
        assert text.isascii() and text.endswith("}\n")
        assert Manifest.from_raw(json.loads(text)).manifest_sha256 == seal


def test_manifest_holds_what_the_specification_lists(toy: Toy, example: dict) -> None:
    raw = toy.manifest("40_pack_dataset")
    assert raw.keys() == example.keys() and raw["run"].keys() == example["run"].keys()
    assert raw["config"].keys() == example["config"].keys() and raw["code"].keys() == example["code"].keys()
    assert raw["tokenizer"].keys() == example["tokenizer"].keys()
    assert [row.keys() for row in raw["inputs"]] == [row.keys() for row in example["inputs"]]
    config = (toy.root / "config/demo/40_pack_dataset.json").read_bytes()
    assert raw["config"]["sha256"] == sha256_hex(config)
    source = toy.manifest("20_prepare_corpus")["sources"][0]
    assert source["name"] == "books" and source["rows_read"] == source["rows_kept"] == 90
    rows = [[file["path"], file["bytes"], file["sha256"]] for file in source["files"]]
    assert source["digest"] == digest("source", rows)
    assert [row[0] for row in rows] == ["raw/books/0.txt", "raw/books/1.txt", "raw/books/2.txt"]


def test_deleting_the_records_changes_no_verdict(toy: Toy) -> None:
    before = toy.tool("status", "demo").text
    shutil.rmtree(toy.root / "data/.lockstep")
    assert toy.tool("status", "demo").text == before
    (toy.root / "data/.lockstep").mkdir()
    (toy.root / "data/.lockstep/digests.sqlite").write_bytes(b"damaged" * 1000)
    assert toy.tool("status", "demo", "--verify", "cached").text.endswith(before)
    shutil.rmtree(toy.root / "data/.lockstep")
    assert "9 up to date" in toy.tool("run", "demo").text
