"""Reading rows into kept and rejected: counting, limits, duplicates, splits that stay empty."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from utils.chat.build import DatasetBuild
from utils.chat.conversation import Rejection, conversation, split_share
from utils.chat.formats import FORMATS, chat_format
from utils.chat.masks import ChatEncoder
from utils.chat.prepare import Item, RawRow, Reading, Tally, adapt_rows, first_of_each
from utils.pipeline.errors import ConfigError, DataError

READING = Reading("mine", "mine (f.jsonl)", "auto", {}, ())


def raw_rows(count: int, **extra: str) -> Iterator[RawRow]:
    for i in range(count):
        yield RawRow(i + 1, {"id": f"r{i}", "question": f"question {i}", "answer": f"answer {i}"} | extra)


def test_rows_keep_their_source_line_and_id() -> None:
    name, items = adapt_rows(raw_rows(3), READING, FORMATS, chat_format)
    items = list(items)
    assert name == "qa"
    assert [item.line for item in items] == [1, 2, 3]
    assert dict(items[2].result.meta) == {"source": "mine", "original_id": "r2"}


def test_reader_problems_and_late_surprises_become_rejections() -> None:
    rows = [
        *raw_rows(1000),
        RawRow(1001, None, "bad_json", "Expecting value"),
        RawRow(1002, {"question": "q"}),
    ]
    rows += [RawRow(1003, {"question": "q", "answer": "a", "context": "lost"}), RawRow(1004, [1])]
    items = list(adapt_rows(rows, READING, FORMATS, chat_format)[1])[1000:]
    assert [item.result.reason for item in items] == ["bad_json", "missing_field", "schema", "schema"]
    assert items[0].rejected_row(items[0].result) == {
        "source": "mine", "line": 1001, "reason": "bad_json", "detail": "Expecting value",
        "excerpt": "Expecting value",
    }  # fmt: skip


def test_lost_text_among_the_first_rows_is_a_config_error() -> None:
    with pytest.raises(
        ConfigError, match=r'mine \(f.jsonl\): text would be lost, the format does not use "context"'
    ):
        adapt_rows(raw_rows(3, context="x"), READING, FORMATS, chat_format)


def test_duplicates_are_found_across_sources() -> None:
    row = conversation([("user", "q"), ("assistant", "a")])
    seen: set[str] = set()
    first = list(first_of_each([Item("one", 1, row, {})], seen, "duplicate"))
    second = list(first_of_each([Item("two", 1, row.with_meta(source="two"), {})], seen, "duplicate"))
    assert first[0].result is row
    assert second[0].result.reason == "duplicate"


def test_too_many_defects_fail_naming_the_commonest() -> None:
    tally = Tally(0.1)
    tally.read["s"], tally.kept["s"] = 100, 80
    tally.rejected.update(
        {
            ("s", "echo"): 12,
            ("s", "schema"): 3,
            ("s", "bad_json"): 2,
            ("s", "too_long"): 1,
            ("s", "duplicate"): 2,
        }
    )
    with pytest.raises(
        DataError,
        match=r"18\.0% of 100 rows were rejected, at most 10\.0% may be: echo 12, schema 3, bad_json 2",
    ):
        tally.check()
    Tally(0.2, tally.read, tally.kept, tally.rejected).check()


def test_rows_that_went_nowhere_are_a_bug() -> None:
    tally = Tally(1.0)
    tally.read["s"] = 1
    with pytest.raises(AssertionError):
        tally.check()


def test_no_rows_at_all() -> None:
    with pytest.raises(DataError, match="no rows were read"):
        Tally(0.1).check()


class Sink:
    def __init__(self) -> None:
        self.documents: list = []

    def append(self, id: str, ids: object, trained: object, source: int) -> None:
        self.documents.append(id)

    def close(self) -> None:
        self.documents.append("closed")


def build_of(
    folder: Path, encoder: ChatEncoder, count: int, val: float, test: float
) -> tuple[DatasetBuild, dict[str, Sink]]:
    sinks: dict[str, Sink] = {}
    build = DatasetBuild(
        folder, {"val": val, "test": test}, 0, Tally(1.0), lambda split: sinks.setdefault(split, Sink())
    )
    for i in range(count):
        row = conversation([("user", f"question {i}"), ("assistant", "a")], {"source": "s"})
        build.tally.read["s"] += 1
        build.keep(row, encoder.encode([row.messages]), turns=2, source=0)
    return build, sinks


def test_rows_and_ids_stay_together_in_every_split(tmp_path: Path, chatml: ChatEncoder) -> None:
    build, sinks = build_of(tmp_path, chatml, 60, 0.2, 0.2)
    build.tally.read["s"] += 1
    build.reject(Item("s", 61, Rejection("echo", "d"), {"q": "\u00fc"}), Rejection("echo", "d"))
    build.finish()
    for split, sink in sinks.items():
        lines = zstandard.decompress(
            (tmp_path / f"{split}.rows.jsonl.zst").read_bytes(), 1 << 20
        ).splitlines()
        assert [json.loads(line)["id"] for line in lines] + ["closed"] == sink.documents
    rejected = zstandard.decompress((tmp_path / "rejected.jsonl.zst").read_bytes(), 1 << 20)
    assert json.loads(rejected)["excerpt"] == '{"q": "\u00fc"}'


def test_a_split_without_fraction_has_no_files(tmp_path: Path, chatml: ChatEncoder) -> None:
    build_of(tmp_path, chatml, 20, 0.0, 0.0)[0].finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rejected.jsonl.zst", "train.rows.jsonl.zst"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_says_which_fraction_would_do(tmp_path: Path, chatml: ChatEncoder, split: str) -> None:
    fractions = {"val": 0.0, "test": 0.0} | {split: 1e-9}
    build, _ = build_of(tmp_path, chatml, 12, fractions["val"], fractions["test"])
    with pytest.raises(
        DataError, match=f'the split "{split}" is empty: {split}_fraction 1e-09 of 12 rows'
    ) as refused:
        build.finish()
    enough = float(refused.value.fix.split("at least ")[1].split(",")[0])
    lowest = min(split_share(f"question {i}", 0) for i in range(12))
    assert lowest < enough <= lowest + 0.001


def test_nothing_left_for_training(tmp_path: Path, chatml: ChatEncoder) -> None:
    build, _ = build_of(tmp_path, chatml, 1, 0.999999, 0.0)
    with pytest.raises(DataError, match="no row is left for training"):
        build.finish()
