"""Reading under a budget: shares met, no more read than needed, the same rows whatever interrupts it."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from tests.corpus.tiny import INLINE, Tiny, chapters
from utils.corpus import sources
from utils.corpus.executor import InlineWorkers
from utils.pipeline.journal import Journal

STAGE = "20_prepare_corpus"
NAMES = ("books", "web", "teacher")
BLOCK_ROWS = 20


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """Three sources of 60 books with six chapters each; what `web` has first, `teacher` has too."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", BLOCK_ROWS)
    folder = tmp_path / "data" / "raw"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        rows = [row for book in range(60) for row in chapters(1_000 * number + book, 6)]
        if name == "teacher":
            rows = [row for book in range(10) for row in chapters(1_000 + book, 6)] + rows
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Tiny(tmp_path)


def config(tokens: int, weights: tuple[float, ...] = (3, 2, 1), **changes: object) -> dict:
    rows = [
        {
            "name": name, "kind": "local", "paths": [f"data/raw/{name}.jsonl"], "preset": "short",
            "weight": weight, "fields": {"text": "text", "group": "title"}, "rules": {"top_4gram": "off"},
        }
        for name, weight in zip(NAMES, weights, strict=True)
    ]  # fmt: skip
    budget = {"tokens": tokens} | changes.pop("budget", {})
    split = {"val_fraction": 0.2, "min_val_documents": 1}
    return {
        "output": "data/corpus",
        "sources": rows,
        "budget": budget,
        "split": split,
        "executor": INLINE,
    } | changes


def stats(tiny: Tiny, output: str = "data/corpus") -> dict:
    return json.loads((tiny.root / output / "stats.json").read_text())


def sizes(tiny: Tiny, output: str = "data/corpus") -> dict[str, list[int]]:
    """Bytes of every written document, by source."""
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for path in (tiny.root / output).glob("*/0*.jsonl.zst"):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                found[row["source"]].append(len(row["text"].encode()))
    return found


def test_weights_are_met_to_within_one_document(tiny: Tiny, capsys: pytest.CaptureFixture):
    tiny.run(STAGE, config(30_000))
    for (name, written), share in zip(sizes(tiny).items(), (60_000, 40_000, 20_000), strict=True):
        assert share <= sum(written) < share + max(written), name
    found = stats(tiny)
    mix = found["mix"]
    assert [mix["sources"][name]["target_tokens"] for name in NAMES] == [15_000, 10_000, 5_000]
    assert [mix["sources"][name]["percent"] for name in NAMES] == pytest.approx([50, 33.3, 16.7], abs=0.5)
    assert mix["over_budget"] == sum(source["over_budget"] for source in found["sources"].values()) > 0
    for source in found["sources"].values():
        assert source["read"] == source["kept"] + sum(source["removed"].values())
        assert source["kept"] == source["written"]["documents"] + source["over_budget"]
    said = capsys.readouterr().out
    assert f"as weighted 3 : 2 : 1; over budget {mix['over_budget']:,} documents" in said


def test_no_more_is_read_than_the_share_needs(tiny: Tiny):
    tiny.run(STAGE, config(30_000))
    found = stats(tiny)["sources"]
    # a chapter has about 590 bytes: 104 are the share of books with its margin, 35 that of teacher, whose
    # first 60 are web's, which makes its blocks look poor
    assert {name: source["read"] for name, source in found.items()} == {
        "books": 120,
        "web": 80,
        "teacher": 160,
    }
    assert found["teacher"]["removed"] == {"exact_duplicate": 60}


def test_the_rows_that_are_read_depend_neither_on_workers_nor_on_kills(tiny: Tiny):
    expected = tiny.run(STAGE, config(30_000, output="data/inline")).output_digest
    assert (
        tiny.run(STAGE, config(30_000, output="data/two", executor={"workers": 2})).output_digest == expected
    )
    for commits in (1, 2, 5, 9):
        tiny.kill_after(STAGE, config(30_000), commits, BLOCK_ROWS)
        assert journal(tiny)[0] == {"wave": [1, 1, 1]}
    assert tiny.run(STAGE, config(30_000)).output_digest == expected


def journal(tiny: Tiny) -> list[dict]:
    path = tiny.root / "data" / "corpus.partial" / ".journal" / "blocks.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_waves_are_planned_from_committed_counters(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    waves, commit = [], Journal.commit

    def noting(self: Journal, record: dict) -> None:
        waves.extend([record["wave"]] if "wave" in record else [])
        commit(self, record)

    monkeypatch.setattr(Journal, "commit", noting)
    tiny.run(STAGE, config(30_000))
    assert waves[0] == [1, 1, 1]
    assert waves[1] == [6, 4, 2]  # by what one block of each was worth
    assert waves[2] == [6, 4, 4]  # teacher's first blocks turned out to be duplicates: as many again
    assert waves[3:] == [[6, 4, 8]]  # by what its four blocks were worth after deduplication


def test_short_supply_is_refused_with_the_numbers(tiny: Tiny, capsys: pytest.CaptureFixture):
    tiny.write_config(STAGE, config(330_000))
    assert tiny.execute(STAGE) == 4
    said = capsys.readouterr().err
    assert 'source "books" (weight 3 of 6) has 52,' in said
    assert "tokens (estimated) before deduplication, the budget asks for 165,000" in said
    largest = int(said.split("set budget.tokens to ")[1].split(" or less")[0].replace(",", ""))
    tiny.run(STAGE, config(largest, output="data/enough"))


def test_supply_that_deduplication_makes_short_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture):
    tiny.write_config(STAGE, config(69_600, (1, 1, 10)))
    assert tiny.execute(STAGE) == 4
    said = capsys.readouterr().err
    assert 'source "teacher" (weight 10 of 12) has 5' in said
    assert "tokens (estimated) after deduplication, the budget asks for 58,000" in said


def test_what_is_short_can_be_made_up_for(tiny: Tiny, capsys: pytest.CaptureFixture):
    tiny.run(STAGE, config(120_000, (1, 1, 10), budget={"on_shortfall": "redistribute"}))
    written = {name: sum(each) for name, each in sizes(tiny).items()}
    assert sum(written.values()) == pytest.approx(480_000, abs=1_500)
    assert written["books"] == pytest.approx(written["web"], abs=1_000)
    found = stats(tiny)
    assert found["mix"]["redistributed"] == ["teacher"]
    assert found["sources"]["teacher"]["over_budget"] == 0
    assert "but for teacher (short, redistributed)" in capsys.readouterr().out
    tiny.write_config(STAGE, config(330_000, (1, 1, 10), budget={"on_shortfall": "redistribute"}))
    assert tiny.execute(STAGE) == 4
    assert "all sources together have 1" in capsys.readouterr().err


def test_a_source_that_loses_too_much_is_refused_though_its_share_is_met(
    tiny: Tiny, capsys: pytest.CaptureFixture
):
    asked = config(3_000)
    asked["sources"][0] |= {"rules": {"too_few_words": 130, "top_4gram": "off"}, "max_removed_fraction": 0.2}
    tiny.write_config(STAGE, asked)
    assert tiny.execute(STAGE) == 4
    assert "(max_removed_fraction 0.2): too_few_words" in capsys.readouterr().err


def test_a_budget_of_counted_tokens_is_met_exactly(tiny: Tiny):
    from utils.tokenizer.frozen import FrozenTokenizer

    tiny.run(STAGE, config(100_000, output="data/first"))
    tiny.run("30_train_tokenizer", tiny.tokenizer_config(inputs={"corpus": "data/first"}))
    counted = config(30_000, budget={"count": "tokenizer"}, inputs={"tokenizer": "data/tokenizer"})
    tiny.run(STAGE, counted)
    tokenizer = FrozenTokenizer(tiny.root / "data" / "tokenizer")
    found = stats(tiny)
    assert found["tokens"] == {"count": "tokenizer", "bytes_per_token": None}
    totals = dict.fromkeys(NAMES, 0)
    longest = dict.fromkeys(NAMES, 0)
    for path in (tiny.root / "data/corpus").glob("*/0*.jsonl.zst"):
        with zstandard.open(path, "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        for row, ids in zip(rows, tokenizer.encode_text([row["text"] for row in rows]), strict=True):
            totals[row["source"]] += len(ids) + 2  # BOS and EOS, as stage 40 will add them
            longest[row["source"]] = max(longest[row["source"]], len(ids) + 2)
    for name, share in zip(NAMES, (15_000, 10_000, 5_000), strict=True):
        assert share <= totals[name] < share + longest[name]
        assert found["sources"][name]["written"]["tokens"] == totals[name]


def test_a_damaged_file_costs_none_of_the_blocks_before_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(InlineWorkers, "look_ahead", 8)  # finished blocks that wait when reading fails
    whole = gzip.compress((tiny.root / "data/raw/web.jsonl").read_bytes())
    (tiny.root / "data/raw/web.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    settings = config(0, (1, 1, 1))
    settings["sources"][1]["paths"] = ["data/raw/web.jsonl.gz"]
    tiny.write_config(STAGE, settings)
    assert tiny.execute(STAGE) == 4
    assert "data/raw/web.jsonl.gz is damaged" in "".join(capsys.readouterr())
    journal = tiny.root / "data/corpus.partial/.journal/blocks.jsonl"
    assert len(journal.read_text().splitlines()) == 360 // BLOCK_ROWS  # all of the source before
