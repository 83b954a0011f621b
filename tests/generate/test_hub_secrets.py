"""What counts as a secret, where it is found, and what may look like one."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from utils.generate import hub_secrets
from utils.generate.hub_secrets import Finding, find_secrets


def kinds_in(tmp_path: Path, text: str, keys: list[str] | None = None) -> list[str]:
    path = tmp_path / "text.md"
    path.write_text(text, encoding="utf-8")
    return [finding.kind for finding in find_secrets(path, keys or [])]


PLANTED = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an OpenAI-style key": "sk-proj-" + "a1B2" * 8,
    "an AWS access key": "AKIA" + "ABCD1234" * 2,
    "a Google key": "AIza" + "a1B2c" * 7,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    'a value of "api_key"': '"api_key": "4f9a8b7c6d"',
    "a bearer token": "Authorization: Bearer a1b2c3d4e5f6a7b8c9d0e1",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_each_shape_is_found_with_its_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{{"text": "so: {PLANTED[kind]} ."}}\n')
    assert find_secrets(path) == [Finding(kind, 2)]


@pytest.mark.parametrize(
    "harmless",
    [
        "a risk-averse-1234567890123456789012 person",
        "the class sk-estimator-doc-link-dotted of a page",
        '{"api_key_env": "LAB_KEY_OF_MINE"}',
        '{"api_key": "your-key-goes-here"}',
        '{"api_key": "<put it here>"}',
        "hf_hub_download and hf_transfer",
        "AKIA is a word",
        "-----BEGIN PUBLIC KEY-----",
        "Bearer of good news about everything",
    ],
)
def test_what_only_looks_like_one_is_left_alone(harmless: str, tmp_path: Path) -> None:
    assert kinds_in(tmp_path, harmless) == []


def test_json_inside_json_is_seen_through(tmp_path: Path) -> None:
    text = json.dumps({"text": '{"api_key": "4f9a8b7c6d"}'})
    assert kinds_in(tmp_path, text) == ['a value of "api_key"']


def test_a_key_that_is_in_use_is_found_however_json_writes_it(tmp_path: Path) -> None:
    key = 'very"secret\u00e9'
    for text in (f"the {key} word", json.dumps({"a": key}), json.dumps({"a": key}, ensure_ascii=False)):
        assert kinds_in(tmp_path, text, [key]) == ["a key that is in use"], text
    assert kinds_in(tmp_path, "the word", [key]) == []


def test_a_value_too_short_to_be_a_key_is_not_looked_for(tmp_path: Path) -> None:
    assert kinds_in(tmp_path, "a test of it", ["test"]) == []


def test_compressed_rows_are_read_as_what_they_hold(tmp_path: Path) -> None:
    row = json.dumps({"text": PLANTED["a GitHub token"]})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(row.encode()))
    table = pyarrow.Table.from_pylist([{"text": "fine"}, json.loads(row)])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    for path in sorted(tmp_path.iterdir()):
        assert [finding.kind for finding in find_secrets(path)] == ["a GitHub token"], path.name


@pytest.mark.parametrize("before", range(90, 140, 7))
def test_a_secret_across_two_chunks_is_found_once_with_its_line(before: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hub_secrets, "CHUNK_BYTES", 128)
    monkeypatch.setattr(hub_secrets, "OVERLAP_BYTES", 64)
    path = tmp_path / "rows.txt"
    path.write_text("\n" * before + PLANTED["a GitHub token"] + "\n" * 300)
    assert find_secrets(path) == [Finding("a GitHub token", before + 1)]
