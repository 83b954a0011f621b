"""
Hub datasets: cursors that survive JSON, networks that break, a whole stage against a Hub on loopback.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from utils.corpus import hub as hub_module
from utils.corpus import sources
from utils.corpus.hub import HubDataset, hub_blocks
from utils.corpus.sources import Cursor, RawBlock
from utils.pipeline import revisions
from utils.pipeline.errors import ConfigError, DataError, StageError, Stopped
from utils.pipeline.external import ExternalSource

START = Cursor()
DATASET = HubDataset("web", "me/web", "", "train", "c" * 40)
ROWS = [{"text": f"row {i}", "n": i, "nested": {"a": [i]}} for i in range(250)]
CUTS = (1, 7, 49, 50, 51, 99, 100, 101, 249)  # edges of row groups (50) and of files (100) among them


def as_gzip(rows: list[dict]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)


def files_of(folder: Path, form: str) -> list[str]:
    """The rows in three files, parquet with row groups of 50 or gzipped jsonl."""
    paths = [str(folder / f"{i}.{form}") for i in range(3)]
    for path, start in zip(paths, (0, 100, 200), strict=True):
        rows = ROWS[start : start + 100]
        if form == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=50)
        else:
            Path(path).write_bytes(as_gzip(rows))
    return paths


def streaming(monkeypatch: pytest.MonkeyPatch, folder: Path, form: str = "jsonl.gz") -> None:
    """Streams of local files in place of the Hub's; all else is the same code of `datasets`."""
    import datasets

    files, kind = files_of(folder, form), "parquet" if form == "parquet" else "json"
    options = {"data_files": files, "split": "train", "streaming": True}
    monkeypatch.setattr(hub_module, "open_stream", lambda _: datasets.load_dataset(kind, **options))


def read(
    start: Cursor = START, pause: Callable = lambda seconds: None, log: Callable = print
) -> list[RawBlock]:
    return list(hub_blocks(DATASET, ["text", "n", "nested"], start, pause, log))


def rows_of(blocks: list[RawBlock]) -> list[dict]:
    return [json.loads(row) for block in blocks for row in block.rows]


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz"])
def test_a_cursor_through_json_resumes_to_exactly_the_remaining_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    streaming(monkeypatch, tmp_path, form)
    for cut in CUTS:
        monkeypatch.setattr(sources, "BLOCK_ROWS", cut)
        first = next(hub_blocks(DATASET, ["text"], Cursor(), lambda seconds: None, print))
        cursor = Cursor.from_json(json.loads(json.dumps(first.next.to_json())))
        assert (cursor.row, cursor.total, len(first.rows)) == (cut, cut, cut)
        monkeypatch.setattr(sources, "BLOCK_ROWS", 2_000)
        rest = read(cursor)
        assert rows_of([first])[-1]["text"] == f"row {cut - 1}"
        assert rows_of(rest) == ROWS[cut:]
        assert str(rest[0]) == f"web rows {cut}-249"
        assert read(rest[-1].next) == []


def test_only_mapped_fields_travel_once_the_first_rows_were_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    streaming(monkeypatch, tmp_path)
    monkeypatch.setattr(hub_module, "CHECKED_ROWS", 10)
    rows = rows_of(list(hub_blocks(DATASET, ["text"], Cursor(), print, print)))
    assert rows == ROWS[:10] + [{"text": row["text"]} for row in ROWS[10:]]


class Breaking:
    """Streams that break with an error after so many rows, once per count; then they hold."""

    def __init__(self, counts: list[int], error: Exception) -> None:
        self.opened, self.counts, self.error = hub_module.open_stream, counts, error

    def __call__(self, dataset: HubDataset) -> "Breaking":
        self.stream = self.opened(dataset)
        return self

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state)

    def state_dict(self) -> dict:
        return self.stream.state_dict()

    def __iter__(self) -> Iterator[dict]:
        left = self.counts.pop(0) if self.counts else -1
        for row in self.stream:
            if left == 0:
                raise self.error
            left -= 1
            yield row


def test_a_broken_network_loses_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    streaming(monkeypatch, tmp_path, "parquet")
    monkeypatch.setattr(sources, "BLOCK_ROWS", 20)
    whole = read()
    breaks = [0, 5, 0, 45, 19, 20, 21, 0, 0, 0, 60]
    monkeypatch.setattr(hub_module, "open_stream", Breaking(breaks, ConnectionError("reset by peer")))
    pauses, said = [], []
    broken = read(pause=pauses.append, log=lambda event, message: said.append(message))
    assert rows_of(broken) == ROWS
    assert [block.rows for block in broken] == [block.rows for block in whole]
    assert pauses == [4, 8, 16, 4, 8, 4, 4, 8, 16, 32, 4], "a block that arrives starts the count again"
    assert said[0] == 'source "web" (me/web): reset by peer; try 2 of 6 in 4 s'


def test_six_tries_in_a_row_end_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    streaming(monkeypatch, tmp_path)
    monkeypatch.setattr(sources, "BLOCK_ROWS", 20)
    monkeypatch.setattr(hub_module, "open_stream", Breaking([30] + [0] * 9, TimeoutError()))
    pauses: list[float] = []
    blocks = hub_blocks(DATASET, ["text"], Cursor(), pauses.append, print)
    assert len(next(blocks).rows) == 20
    with pytest.raises(
        StageError, match="the Hub could not be read, 6 tries in a row: TimeoutError"
    ) as error:
        next(blocks)
    assert pauses == [4, 8, 16, 32, 60]
    assert "rerun to continue" in error.value.fix


@pytest.mark.parametrize(
    "error",
    ["aiohttp.ClientPayloadError", "huggingface_hub.errors.HfHubHTTPError", "EOFError", "TimeoutError"],
)
def test_what_counts_as_the_network(error: str):
    module, _, name = error.rpartition(".")
    kind = getattr(__import__(module or "builtins", fromlist=[name]), name)
    assert issubclass(kind, hub_module.network_errors())


def test_damaged_files_are_no_network_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    streaming(monkeypatch, tmp_path)
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(b"[1, 2"))
    with pytest.raises(DataError, match='source "web" .me/web. cannot be read: '):
        read()
    (tmp_path / "1.jsonl.gz").write_bytes(as_gzip(ROWS[100:200]))
    monkeypatch.setattr(hub_module, "open_stream", Breaking([120], FileNotFoundError("data/2.jsonl.gz")))
    with pytest.raises(DataError, match='source "web" .me/web. lacks a file: '):
        read()


def test_offline_is_honoured(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StageError, match="is read from the Hub, and HF_HUB_OFFLINE is set") as error:
        read(pause=lambda seconds: pytest.fail("it waited"))
    assert error.value.fix == "unset HF_HUB_OFFLINE, then rerun to continue"
    with pytest.raises(
        StageError, match='revision "main" must be asked from the Hub, and HF_HUB_OFFLINE is set'
    ):
        revisions.pin(ExternalSource.of_dataset("web", "me/web", "", "train", "main"), [])


def test_a_commit_stands_for_itself_and_a_branch_is_kept():
    pinned = revisions.pin(ExternalSource.of_dataset("web", "me/web", "en", "train", "a" * 40), [])
    assert pinned.resolved_revision == "a" * 40
    floating = ExternalSource.of_dataset("web", "me/web", "en", "train", "main")
    record = {"name": "web", "kind": "hub", "id": "me/web, en, train", "requested_revision": "main"}
    known = [record | {"requested_revision": "dev", "resolved_revision": "d" * 40}]
    known += [record | {"resolved_revision": "a" * 40}, record | {"resolved_revision": "b" * 40}]
    assert revisions.pin(floating, known) == pinned_as_main(pinned)


def pinned_as_main(pinned: ExternalSource) -> ExternalSource:
    return replace(pinned, requested_revision="main")


def test_a_missing_subset_is_a_config_error(monkeypatch: pytest.MonkeyPatch):
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("BuilderConfig 'x' not found.\nAvailable: ['default']")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigError, match="BuilderConfig 'x' not found. Available: .'default'.") as error:
        read()
    assert error.value.fix == "check subset and split of the source"


def test_waiting_for_the_hub_ends_when_somebody_asks(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def stop_point() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Stopped(75)

    monkeypatch.setattr(hub_module, "PAUSE_STEP_SECONDS", 0.01)
    with pytest.raises(Stopped):
        hub_module._pause(SimpleNamespace(stop_point=stop_point), 60)
    assert len(asked) == 3
