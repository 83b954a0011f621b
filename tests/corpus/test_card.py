"""The data card and the lines on the terminal: every number is one of stats.json, nothing else is in them."""

import json
import re
from pathlib import Path

import pytest

from tests.corpus.tiny import Tiny, chapters
from utils.corpus.card import data_card
from utils.corpus.lines import mix_line, source_line, split_line

STAGE = "20_prepare_corpus"
NUMBER = re.compile(r"(?<![\w.,-])\d(?:[\d,]*\d)?(?:\.\d+)?(?![\w])")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two weighted sources in which everything happens that a card tells of."""
    tiny = Tiny(tmp_path_factory.mktemp("card"))
    tiny.write_books()
    books = chapters(0, 2)
    near = books[0] | {"text": books[0]["text"] + " The end.", "title": "Copies"}
    address = " Write to cat@lamp-garden.com about it."
    german = "Der Hund und die Katze liegen im Garten und schlafen den ganzen Tag unter dem alten Baum. " * 3
    extra = [near, *books, *(row | {"text": row["text"] + address} for row in chapters(900, 3))]
    extra += [
        {"text": german},
        {"text": chapters(7, 1)[0]["text"] + " " + sentence_of_the_exam()},
        {"text": "no"},
    ]
    raw = tiny.root / "data" / "raw"
    (raw / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in extra))
    (raw / "exam.txt").write_text(sentence_of_the_exam())
    web = {"name": "web", "kind": "local", "paths": ["data/raw/web.jsonl"], "preset": "short", "weight": 0.02}
    web |= {
        "fields": {"text": "text", "group": "title", "optional": ["group"]},
        "rules": {"top_4gram": "off"},
    }
    config = tiny.corpus_config(
        budget={"tokens": 20_000, "bytes_per_token": 4.3},
        clean={"pii": "mask"},
        language={"keep": ["en"]},
        decontaminate={"against": [{"name": "exam", "paths": ["data/raw/exam.txt"]}]},
    )
    config["sources"].append(web | {"licence": "CC0-1.0"})
    tiny.run(STAGE, config)
    return tiny.root / "data" / "corpus"


def sentence_of_the_exam() -> str:
    return "Which of the four rivers that flow into the northern sea carries the most water in a dry winter?"


@pytest.fixture
def stats(corpus: Path) -> dict:
    return json.loads((corpus / "stats.json").read_text())


def values(part: object) -> set[str]:
    """Everything in stats as a card may print it."""
    if isinstance(part, dict):
        return {text for key, value in part.items() for text in values(value) | {key}}
    if isinstance(part, list):
        return {text for value in part for text in values(value)}
    if isinstance(part, int):
        return {f"{part:,}", str(part)}
    return {f"{part:g}", str(part)} if isinstance(part, float) else {str(part)}


def test_everything_happened(stats: dict):
    web = stats["sources"]["web"]
    assert web["removed"] == {
        "contaminated:exam": 1, "exact_duplicate": 2, "language:de": 1, "near_duplicate": 1,
        "too_few_words": 1,
    }  # fmt: skip
    assert web["changed"] == {"mask:email": 3}
    assert (web["licence"], web["read"]) == ("CC0-1.0", 9)
    assert stats["mix"]["over_budget"] > 0
    assert stats["decontamination"]["sets"]["exam"]["documents"] == 1


def test_every_number_of_the_card_is_one_of_the_stats(corpus: Path, stats: dict):
    card = re.sub(r"`[^`]*`", "", (corpus / "DATA_CARD.md").read_text(encoding="utf-8"))
    numbers = NUMBER.findall(card)
    assert len(numbers) > 60
    known = values(stats)
    assert [number for number in numbers if number not in known] == []


def test_the_card_shows_every_part_of_the_stats(corpus: Path, stats: dict):
    card = (corpus / "DATA_CARD.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert headings == [
        "Sources", "Size", "Mix", "Splits", "Removed", "Languages", "Duplicates", "Decontamination",
        "Changed in kept documents", "How to rebuild",
    ]  # fmt: skip
    for name, source in stats["sources"].items():
        part = source["train"]
        assert f"| {name} | train | {part['documents']:,} | {part['bytes']:,} | {part['tokens']:,} |" in card
        for reason, count in source["removed"].items():
            assert f"| {name} | {reason} | {count} |" in card
            assert f"### {name}: {reason}" in card
    assert "| web | local |  |  | " in card and "| CC0-1.0 | short |" in card
    assert "| web | mask:email | 3 |" in card
    assert "| exam | 1 | 0 | 1 | 0 |" in card


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
