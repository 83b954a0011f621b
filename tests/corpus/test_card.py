"""The data card and the lines on the terminal: every row of them is made of stats.json, nothing else is."""

import json
import re
from pathlib import Path

import pytest

from tests.corpus.everything import MASKED, REMOVED, write_everything
from tests.corpus.tiny import Tiny
from tests.numbered import numbered
from utils.corpus.card import data_card
from utils.corpus.lines import mix_line, source_line, split_line

STAGE = "20_prepare_corpus"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two weighted sources in which everything happens that a card tells of."""
    tiny = Tiny(tmp_path_factory.mktemp("card"))
    tiny.run(STAGE, write_everything(tiny))
    return tiny.root / "data" / "corpus"


@pytest.fixture
def stats(corpus: Path) -> dict:
    return json.loads((corpus / "stats.json").read_text())


def test_everything_happened(stats: dict):
    web = stats["sources"]["web"]
    assert (web["removed"], web["changed"]) == (REMOVED, MASKED)
    assert (web["licence"], web["read"]) == ("CC0-1.0", 9)
    assert stats["mix"]["over_budget"] > 0
    assert stats["decontamination"]["sets"]["exam"]["documents"] == 1


def table(header: str, rows: list[tuple]) -> list[str]:
    """A table as its lines; the header in words that are separated by two blanks or more."""
    cells = [re.split(" {2,}", header), ["---"] * len(rows[0])]
    cells += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def per_source(stats: dict, key: str) -> list[tuple]:
    return [(name, what, n) for name, s in stats["sources"].items() for what, n in s[key].items()]


def expected_sections(stats: dict) -> dict[str, list[str]]:
    """What stands under each heading, without blank lines and without samples of what was removed."""
    sources, splits = stats["sources"].items(), stats["splits"].items()
    mix, duplicates = stats["mix"]["sources"].items(), stats["duplicates"]
    decontamination = stats["decontamination"]
    return {
        "Sources": table(
            "source  kind  id  revision  digest  licence  preset",
            [
                (n, s["kind"], s["id"], s["revision"], s["digest"], s["licence"] or "not given", s["preset"])
                for n, s in sources
            ],
        ),
        "Size": [
            f"Tokens are estimated: bytes of UTF-8 over {stats['tokens']['bytes_per_token']}.",
            *table(
                "source  split  documents  bytes  tokens (estimated)",
                [
                    (name, split, s[split]["documents"], s[split]["bytes"], s[split]["tokens"])
                    for name, s in sources
                    for split in ("train", "val")
                ],
            ),
            *table(
                "source  read  kept  over budget  written",
                [(n, s["read"], s["kept"], s["over_budget"], s["written"]["documents"]) for n, s in sources],
            ),
        ],
        "Mix": table(
            "source  weight  target tokens  target  obtained tokens (estimated)  obtained",
            [
                (name, f"{row['weight']:g}", row["target_tokens"], f"{row['target_percent']} %")
                + (row["tokens"], f"{row['percent']} %")
                for name, row in mix
            ],
        ),
        "Splits": [
            "A group (a document, or all chapters of a book) is on one side only, by the hash of its name.",
            *table(
                "split  documents  groups  bytes  tokens (estimated)",
                [(name, s["documents"], s["groups"], s["bytes"], s["tokens"]) for name, s in splits],
            ),
        ],
        "Removed": [
            "Every removed document is in `removed/`, with its reason.",
            *table("source  reason  documents", per_source(stats, "removed")),
        ],
        "Languages": table("source  language  documents", per_source(stats, "languages")),
        "Duplicates": [
            f"{duplicates['exact']:,} exact and {duplicates['near']:,} near duplicates were removed.",
            *table(
                "documents in a cluster, with the one that stays  clusters",
                list(duplicates["cluster_sizes"].items()),
            ),
        ],
        "Decontamination": [
            f"Passages of {decontamination['ngram_words']} words; what is hit loses the document.",
            *table(
                "evaluation set  items  too short, ignored  documents removed  paragraphs cut",
                [
                    (name, one["items"], one["ignored"], one["documents"], one["passages"])
                    for name, one in decontamination["sets"].items()
                ],
            ),
        ],
        "Changed in kept documents": table("source  what  times", per_source(stats, "changed")),
    }


def expected_samples(stats: dict) -> list[str]:
    """The lines about removed documents: a heading per source and reason, and what was found in each."""
    lines: list[str] = []
    for row in stats["removed_samples"]:
        heading = f"### {row['source']}: {row['reason']}"
        lines += [] if heading in lines else [heading]
        keys = [key for key in ("measured", "threshold", "jaccard", "passage") if key in row]
        text = " ".join(row["text"].split())
        lines.append(
            f"- {row['id']} {', '.join(f'{key} {row[key]}' for key in keys)}".rstrip() + f": `{text}`"
        )
    return lines


def sections(card: str) -> dict[str, list[str]]:
    """Heading -> lines that are not blank."""
    parts = re.split(r"^## (.*)$", card, flags=re.MULTILINE)
    return {
        title: [line for line in text.splitlines() if line]
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("told_apart", [False, True])
def test_every_row_of_the_card_is_made_of_the_stats(stats: dict, told_apart: bool):
    if told_apart:
        stats = numbered(stats)
        stats["duplicates"]["large_buckets"] = 0
    found = sections(data_card(stats))
    rebuild = found.pop("How to rebuild")
    assert len(rebuild) == 1 and not re.search(r"\d", rebuild[0])
    removed = found["Removed"]
    at = next(i for i, line in enumerate(removed) if line.startswith("### "))
    found["Removed"], samples = removed[:at], removed[at:]
    assert found == expected_sections(stats)
    assert samples == expected_samples(stats)


def test_large_buckets_are_told_where_there_are_some(stats: dict):
    told = stats | {"duplicates": stats["duplicates"] | {"large_buckets": 1_234}}
    line = "Buckets compared with their earliest documents only: 1,234."
    assert line in data_card(told) and line[:7] not in data_card(stats)


def test_samples_are_at_most_three_of_200_characters(stats: dict):
    samples = stats["removed_samples"]
    kinds = [(row["source"], row["reason"]) for row in samples]
    assert all(kinds.count(kind) <= 3 for kind in kinds)
    assert max(len(row["text"]) for row in samples) == 200
    removed = {(name, reason) for name, source in stats["sources"].items() for reason in source["removed"]}
    assert set(kinds) == removed


def test_nothing_tells_when_where_or_how_fast(corpus: Path):
    for name in ("DATA_CARD.md", "stats.json"):
        text = (corpus / name).read_text(encoding="utf-8")
        assert str(corpus.parents[1]) not in text and "data/raw" not in text
        assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d|tokens/s|seconds", text)


def test_card_is_made_of_stats_alone(corpus: Path, stats: dict):
    assert data_card(stats) == (corpus / "DATA_CARD.md").read_text(encoding="utf-8")
    waiver = {
        "stage": STAGE,
        "role": "generated",
        "verdict": "stale",
        "component": "config",
        "reason": "a test",
    }
    assert "| 20_prepare_corpus | generated | stale config | a test |" in data_card(
        stats | {"waivers": [waiver]}
    )


def test_lines_as_documented():
    source = {
        "read": 4_277, "kept": 4_101, "kept_tokens": 13_900_000,
        "removed": {"too_few_words": 31, "language:de": 20, "language:fr": 4, "near_duplicate": 121},
    }  # fmt: skip
    assert source_line(source, "estimated") == (
        "  4,277 read    4,101 kept   13.9 M tokens (estimated)   "
        "near_duplicate 121, too_few_words 31, language 24"
    )
    rows = {
        "books": {"tokens": 12_000_000, "percent": 75.0, "weight": 3.0},
        "teacher": {"tokens": 4_000_000, "percent": 25.0, "weight": 1.0},
    }
    mix = {
        "tokens": 16_000_000,
        "budget_tokens": 16_000_000,
        "redistributed": [],
        "over_budget": 3_108,
        "sources": rows,
    }
    assert mix_line({"mix": mix}) == (
        "16.0 M tokens: books 12.0 M (75.0 %), teacher 4.0 M (25.0 %), as weighted 3 : 1; "
        "over budget 3,108 documents"
    )
    splits = {"train": {"documents": 21_200}, "val": {"documents": 433, "groups": 401}}
    assert split_line({"splits": splits}) == "train 21,200 documents, val 433 documents in 401 groups"
