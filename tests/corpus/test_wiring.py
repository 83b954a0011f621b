"""
Config keys of stage 20 reach what they name: each with two values, and the outcome that each value must have.

What is expected is worked out here: hashes and candidate pairs by a few plain lines, the rest by what was
planted. So a key that is ignored, or replaced by a constant, fails with one value or the other.
"""

import hashlib
import json
import random
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zstandard

from tests.corpus.tiny import Tiny, chapters, sentence
from utils.config.corpus_sources import RULE_NAMES
from utils.corpus.dedup import jaccard, ngram_hashes, permutations, sign
from utils.pipeline.config_file import merge

STAGE = "20_prepare_corpus"
EXAM = "which of the four rivers that flow into the northern sea carries most water in winter"  # 16 words
GERMAN = "Der Hund und die Katze liegen im Garten und schlafen den ganzen Tag unter dem Baum."
UNSURE = "The der cat Hund is und in the garden Garten."
FEW_LETTERS = "We go up to 10 of 99."
DEDUP = {"near": True, "ngram_words": 5, "similarity": 0.3, "bands": 20, "rows": 6, "seed": 1}


class Made(NamedTuple):
    """A corpus, its numbers, and the rows of its shards by split, in shard order."""

    stats: dict
    shards: dict[str, list[list[dict]]]

    def ids(self, split: str) -> list[str]:
        return [row["id"] for shard in self.shards[split] for row in shard]


def make(folder: Path, rows: list[dict], changes: dict) -> Made:
    """Run stage 20 on rows without quality rules and, unless asked for, without near duplicates."""
    tiny = Tiny(folder)
    raw = folder / "data/raw"
    raw.mkdir(parents=True)
    (raw / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (raw / "exam.txt").write_text(EXAM)
    source = {"name": "rows", "kind": "local", "paths": ["data/raw/*.jsonl"]}
    source |= {"fields": {"text": "text", "group": "title", "optional": ["group"]}}
    source |= {"rules": dict.fromkeys(RULE_NAMES, "off")}
    base = tiny.corpus_config(sources=[source], split={"val_fraction": 0.4, "min_val_documents": 1})
    tiny.run(STAGE, merge(base | {"deduplicate": {"near": False}}, changes))
    output = folder / base["output"]
    shards = {
        split: [lines(path) for path in sorted((output / split).iterdir())] for split in ("train", "val")
    }
    return Made(json.loads((output / "stats.json").read_text()), shards)


def lines(path: Path) -> list[dict]:
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def nested(key: str, value: object) -> dict:
    """{"a": {"b": value}} for the key "a.b"."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


PLANTED = [{"text": text} for text in (GERMAN, UNSURE, FEW_LETTERS, "So " + " ".join(EXAM.split()[3:12]))]
PLANTED += chapters(0, 12)
"""One text for each key that removes texts, among twelve that stay."""
REMOVALS = [
    # reason, key, what else is set, value -> how many texts go for that reason
    ("language:de", "language.keep", {}, [(["en"], 1), (["de", "en"], 0)]),
    ("language:en", "language.keep", {}, [(["en"], 0), (["de"], 14)]),
    ("language:en", "language.min_confidence", {"language": {"keep": ["en"]}}, [(0.1, 0), (0.9, 1)]),
    ("language:unknown", "language.on_unknown", {"language": {"keep": ["en"]}}, [("keep", 0), ("remove", 1)]),
    ("contaminated:exam", "decontaminate.ngram_words", {}, [(9, 1), (10, 0), (13, 0)]),
]


@pytest.mark.parametrize(("reason", "key", "more", "outcomes"), REMOVALS)
def test_what_is_removed(tmp_path: Path, reason: str, key: str, more: dict, outcomes: list):
    against = {"decontaminate": {"against": [{"name": "exam", "paths": ["data/raw/exam.txt"]}]}}
    more = merge(against if reason.startswith("contaminated") else {}, more)
    found = []
    for number, (value, _) in enumerate(outcomes):
        made = make(tmp_path / str(number), PLANTED, merge(more, nested(key, value)))
        found.append((value, made.stats["sources"]["rows"]["removed"].get(reason, 0)))
    assert found == outcomes


def half_alike(count: int) -> list[str]:
    """Pairs of texts that share about half of their n-grams."""
    generator, texts = random.Random(3), []
    for _ in range(count):
        shared = [sentence(generator) for _ in range(6)]
        texts += [" ".join([*shared, sentence(generator), sentence(generator)]) for _ in range(2)]
    return texts


ALIKE = half_alike(30)


def expected_candidates(dedup: dict) -> int:
    """Pairs that are equal in a band, by comparing each with each."""
    values = permutations(dedup["bands"] * dedup["rows"], dedup["seed"])
    signatures = [sign(ngram_hashes(text, dedup["ngram_words"]), values) for text in ALIKE]
    shape = (dedup["bands"], dedup["rows"])
    return sum(
        bool(np.any(np.all(a.reshape(shape) == b.reshape(shape), axis=1)))
        for a, b in combinations(signatures, 2)
    )


def expected_near(dedup: dict) -> int:
    """Texts that resemble the one before them."""
    hashes = [ngram_hashes(text, dedup["ngram_words"]) for text in ALIKE]
    pairs = zip(hashes[::2], hashes[1::2], strict=True)
    return sum(jaccard(a, b) >= dedup["similarity"] for a, b in pairs)


@pytest.mark.parametrize(
    ("key", "values"),
    [("ngram_words", (2, 5)), ("bands", (5, 20)), ("rows", (2, 6)), ("seed", (1, 2))],
)
def test_what_becomes_a_candidate(tmp_path: Path, key: str, values: tuple[int, int]):
    settings = [DEDUP | {key: value} for value in values]
    expected = [expected_candidates(dedup) for dedup in settings]
    rows = [{"text": text} for text in ALIKE]
    made = [
        make(tmp_path / str(i), rows, {"deduplicate": dedup}).stats["duplicates"]["candidate_pairs"]
        for i, dedup in enumerate(settings)
    ]
    assert made == expected and expected[0] != expected[1]


def test_what_is_alike_enough(tmp_path: Path):
    settings = [DEDUP | {"rows": 2, "similarity": value} for value in (0.5, 0.64)]
    expected = [expected_near(dedup) for dedup in settings]
    rows = [{"text": text} for text in ALIKE]
    made = [
        make(tmp_path / str(i), rows, {"deduplicate": dedup}).stats["duplicates"]["near"]
        for i, dedup in enumerate(settings)
    ]
    assert made == expected and expected[0] != expected[1]


def unit(tag: str, seed: int, text: str) -> int:
    """The hash by which documents are split and ordered, written out."""
    return int.from_bytes(hashlib.sha256(f"lockstep:{tag}\n{seed}\n{text}".encode()).digest()[:8], "big")


BOOKS = [row for book in range(12) for row in chapters(book, 2)]


def expected_ids(seed: int, by: str, split: str) -> list[str]:
    """The documents of a split in their order."""
    ids = {hashlib.sha256(row["text"].encode()).hexdigest()[:32]: row["title"] for row in BOOKS}
    groups = ids if by == "group" else {id: id for id in ids}
    chosen = [id for id in ids if (unit("split", seed, groups[id]) < 0.4 * 2**64) == (split == "val")]
    return sorted(chosen, key=lambda id: unit("order", seed, id))


@pytest.mark.parametrize("given", [(0, "group"), (7, "group"), (0, "document")])
def test_where_documents_go_and_in_which_order(tmp_path: Path, given: tuple[int, str]):
    seed, by = given
    made = make(tmp_path, BOOKS, {"seed": seed, "split": {"by": by}})
    for split in ("train", "val"):
        assert made.ids(split) == expected_ids(seed, by, split)
    others = {(0, "group"), (7, "group"), (0, "document")} - {given}
    assert all(expected_ids(*given, "val") != expected_ids(*other, "val") for other in others)


def expected_shards(rows: list[dict], mebibytes: int) -> list[int]:
    """How many documents each shard holds: it closes behind the row with which it reaches its size."""
    counts, size = [0], 0
    for row in rows:
        if size >= mebibytes << 20:
            counts, size = [*counts, 0], 0
        counts[-1] += 1
        size += len(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()) + 1
    return counts


def test_where_shards_are_cut(tmp_path: Path):
    rows = [{"text": f"{i} " + "boat " * 26_000} for i in range(24)]
    found = []
    for mebibytes in (1, 2):
        shards = make(tmp_path / str(mebibytes), rows, nested("shards.target_mebibytes", mebibytes)).shards
        found.append([len(shard) for shard in shards["train"]])
        assert found[-1] == expected_shards([row for shard in shards["train"] for row in shard], mebibytes)
    assert found[0] != found[1]


@pytest.mark.parametrize("bytes_per_token", [2.5, 5.0])
def test_what_a_token_is_taken_for(tmp_path: Path, bytes_per_token: float):
    stats = make(tmp_path, BOOKS, nested("budget.bytes_per_token", bytes_per_token)).stats
    for split in ("train", "val"):
        assert stats["splits"][split]["tokens"] == int(stats["splits"][split]["bytes"] / bytes_per_token)
