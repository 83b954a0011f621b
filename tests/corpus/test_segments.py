"""Segments: what is committed comes back, what is not is gone, counts and samples add up."""

import json
from pathlib import Path

import numpy as np

from tests.corpus.stored import Records, packed
from utils.corpus.documents import Documents
from utils.corpus.segments import FOLDER, Segments
from utils.corpus.sources import Cursor
from utils.pipeline.journal import Journal

TEXTS = ["one two three four five six", "alpha beta gamma", "the last text of the block"]


def test_a_block_comes_back_as_it_was(tmp_path: Path):
    segments = Segments(tmp_path, Records(), 1)
    segments.commit(0, packed("a", TEXTS))
    segments.commit(0, packed("a", ["one more"], first=3))
    documents = Documents.of(segments)
    assert [json.loads(documents.line(i))["text"] for i in range(4)] == [*TEXTS, "one more"]
    assert documents.column("text_bytes").tolist() == [len(text) for text in [*TEXTS, "one more"]]
    assert documents.column("sketch_size").tolist() == [2, 0, 2, 0]
    assert [json.loads(documents.line(i))["id"] for i in range(4)] == [documents.id(i) for i in range(4)]
    wanted = np.array([False, True, False, True])
    found = [
        (n, line)
        for numbers, lines in documents.lines(wanted)
        for n, line in zip(numbers, lines, strict=True)
    ]
    assert found == [(1, documents.line(1)), (3, documents.line(3))]
    assert documents.groups(documents.spans[0]) == [documents.id(i) for i in range(3)]
    assert segments.cursor(0) == Cursor(row=4, total=4)


def test_what_was_not_committed_is_dropped_on_opening(tmp_path: Path):
    journal = Journal(tmp_path, "blocks")
    segments = Segments(tmp_path, journal, 1)
    segments.commit(0, packed("a", [*TEXTS, ""]))
    segments.close()
    journal.close()
    folder = tmp_path / FOLDER
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in before:
        path.write_bytes(path.read_bytes() + b"torn")
    (folder / "removed" / "bad_json.jsonl").write_text("torn as well")
    again = Segments(tmp_path, Journal(tmp_path, "blocks"), 1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert again.sources == segments.sources
    assert list(again.removed_files()) == ["empty"]
    again.commit(0, packed("a", ["one more"], first=4))
    assert len(Documents.of(again)) == 4


def test_counts_and_samples_add_up_and_survive(tmp_path: Path):
    records = Records()
    segments = Segments(tmp_path, records, 2)
    segments.commit(0, packed("a", ["", "kept here", ""]))
    segments.commit(0, packed("a", ["", "", "and here"], first=3))
    segments.commit(1, packed("b", [""]))
    for state in (segments.sources[0], Segments(tmp_path, records, 2).sources[0]):
        assert (state.blocks, state.read, state.kept, state.removed) == (2, 6, 2, {"empty": 4})
        assert state.kept_bytes == len("kept here") + len("and here")
        assert [len(rows) for rows in state.samples.values()] == [3]
    assert segments.sources[1].removed == {"empty": 1}
    assert len((tmp_path / FOLDER / "removed" / "empty.jsonl").read_text().splitlines()) == 5


def test_waves_tell_which_sources_have_ended(tmp_path: Path):
    records = Records()
    segments = Segments(tmp_path, records, 2)
    segments.commit_wave([2, 1])
    for first in (0, 1):
        segments.commit(0, packed("a", ["some text"], first))
    assert [Segments(tmp_path, records, 2).ended(source) for source in (0, 1)] == [False, True]
    assert segments.waves == [[2, 1]]
