"""Packing a split: gates, limits, and going on after a kill to the same bytes."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.packing.conftest import MemoryJournal, make_blocks, make_layout, pack
from utils.packing.dataset import PackedDataset
from utils.packing.index import SpecialIds
from utils.packing.pack import SplitPacker, encode_rows
from utils.packing.report import check_disjoint, check_padding, estimate_of, packing_metrics
from utils.pipeline.errors import DataError

LENGTHS = [5, 20, 9, 4, 11, 6, 3, 17, 8]


def test_report_counts(tmp_path: Path):
    report = pack(tmp_path, "train", make_blocks([5, 20, 9, 4]), make_layout())
    # 38 ids and 2 repeated ones (overlaps of the 20-id document) in 5 rows of 9
    assert (report.documents, report.tokens, report.rows, report.cut_documents, report.unused_tokens) == (
        4,
        38,
        5,
        0,
        0,
    )
    assert report.padding_fraction == round(1 - 40 / 45, 4)
    assert report.tokens_by_source == {"books": 38, "stories": 0}


def test_concat_report_counts_cut_documents_and_the_unused_end(tmp_path: Path):
    report = pack(tmp_path, "train", make_blocks([5, 4, 4, 10]), make_layout(8, "concat"))
    # 23 ids: rows are ids 0-8 and 8-16; the second document (ids 5-8) is whole in row 0, the third in row 1
    assert (report.rows, report.unused_tokens, report.padding_fraction, report.cut_documents) == (
        2,
        6,
        0.0,
        0,
    )
    report = pack(tmp_path, "train", make_blocks([6, 6, 8]), make_layout(8, "concat"))
    assert report.cut_documents == 2


@pytest.mark.parametrize("mode", ["best_fit", "concat"])
@pytest.mark.parametrize("kill_after", [1, 2, 3])
def test_going_on_after_a_kill_gives_the_same_bytes(tmp_path: Path, mode: str, kill_after: int):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pack(whole, "train", make_blocks(LENGTHS), make_layout(mode=mode))
    cut.mkdir()
    journal = MemoryJournal(fail_after=kill_after)
    packer = SplitPacker(cut, "train", make_layout(mode=mode), journal, 0)
    with pytest.raises(InterruptedError):
        for block in make_blocks(LENGTHS):
            packer.append(block)
    resumed = SplitPacker(cut, "train", make_layout(mode=mode), MemoryJournal(journal.committed), 0)
    assert resumed.rows_done == 3 * kill_after
    for block in make_blocks(LENGTHS)[kill_after:]:
        resumed.append(block)
    resumed.finish()
    for name in ("train.bin", "train.idx"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_max_tokens_stops_at_a_document(tmp_path: Path):
    report = pack(tmp_path, "train", make_blocks(LENGTHS), make_layout(), max_tokens=40)
    assert (report.documents, report.tokens) == (4, 38)
    journal = MemoryJournal()
    packer = SplitPacker(tmp_path, "val", make_layout(), journal, 38)
    assert packer.append(make_blocks(LENGTHS)[0])
    assert not packer.append(make_blocks(LENGTHS)[1])
    assert SplitPacker(tmp_path, "val", make_layout(), MemoryJournal(journal.committed), 38).full


def test_too_little_text_for_a_row(tmp_path: Path):
    with pytest.raises(DataError, match="val has 6 tokens, not enough for one row of 8"):
        pack(tmp_path, "val", make_blocks([6]), make_layout(mode="concat"))


def test_padding_gate(tmp_path: Path):
    report = pack(tmp_path, "train", make_blocks([5, 5]), make_layout())
    check_padding(report, 8, 0.5)
    with pytest.raises(
        DataError, match=r"44.4% of the training rows would be padding \(max_padding_fraction 0.25\)"
    ) as error:
        check_padding(report, 8, 0.25)
    assert error.value.fix == (
        "choose another sequence_length_tokens (16 would pad 41.2%, 32 would pad 69.7%), "
        "or mode concat, which cuts 50.0% of the documents"
    )


def test_a_document_in_both_splits_is_refused(packed: Path):
    train = PackedDataset(packed, "train")
    check_disjoint(train, PackedDataset(packed, "val"))
    pack(packed, "val", make_blocks([6, 7], salt=3), make_layout())
    with pytest.raises(DataError, match=f"1 documents are in train and in val, the first is {3:032x}"):
        check_disjoint(train, PackedDataset(packed, "val"))


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="train.bin: values run from 1 to 11, allowed are 0 to 9"):
        pack(tmp_path, "train", make_blocks([10]), make_layout(vocab_size=10))


def spell(texts: list[str]) -> list[np.ndarray]:
    return [np.array([ord(c) for c in text], np.int32) for text in texts]


def test_encode_rows_puts_marks_around_documents():
    line = b'{"group": "g", "id": "%s", "meta": {}, "source": "books", "text": "%s"}\n'
    block = SimpleNamespace(lines=[line % (b"00" * 16, "a\u00e9".encode()), line % (b"11" * 16, b"")])
    encoded = partial(encode_rows, spell, SpecialIds(1, 2, 3))(block)
    assert encoded.ids.tolist() == [1, 97, 233, 2, 1, 2]
    assert (encoded.lengths, encoded.characters, encoded.text_bytes) == ([4, 2], [2, 0], [3, 0])
    assert encode_rows(spell, SpecialIds(-1, 2, -1), block).ids.tolist() == [97, 233, 2, 2]


def test_metrics_sum_up(tmp_path: Path):
    train = pack(tmp_path, "train", make_blocks(LENGTHS), make_layout())
    val = pack(tmp_path, "val", make_blocks([6, 7], salt=1000), make_layout())
    estimate = estimate_of([train, val], 4.0)
    assert estimate.line() == "96 tokens, estimated were 48 (-50.0%)"
    metrics = packing_metrics(train, val, estimate)
    assert (metrics["estimated_tokens"], metrics["estimate_error"]) == (48, -0.5)
    assert metrics["documents"] == len(LENGTHS) + 2
    assert metrics["train_tokens"] == sum(LENGTHS)
    assert metrics["sources"]["books"] == {"index": 0, "train_tokens": sum(LENGTHS), "val_tokens": 13}
