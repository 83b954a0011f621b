"""Rows straight from raw text: all of it once an epoch, one order for any ranks, back to any step."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from utils.packing.index import SpecialIds
from utils.packing.raw import raw_file
from utils.packing.shards import Encoder, RawText, is_validation
from utils.packing.stream import TextStream
from utils.pipeline.errors import ConfigError, DataError, StageError
from utils.training.rows import join_cursors

BOS, EOS, PAD = 1, 2, 3
T = 16
WIDE = "\u00e9\u20ac\U0001f600"


def encode(texts: list[str]) -> list[np.ndarray]:
    """One id per byte."""
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) + 4 for text in texts]


ENCODER = Encoder(encode, SpecialIds(BOS, EOS, PAD), 260)


def documents_of(count: int, salt: str = "") -> list[str]:
    return [f"{salt}{i} {WIDE * (i % 13)}" for i in range(count)]


def write(folder: Path, name: str, documents: list[str]) -> Path:
    path = folder / name
    path.write_text("\n\n".join(documents), "utf-8")
    return path


def raw_text(*paths: Path, name: str = "raw.0", chunk_bytes: int = 1 << 10) -> RawText:
    files = [raw_file(path, "text", "\n\n", chunk_bytes) for path in paths]
    return RawText(name, f"digest of {name}", files, ENCODER)


def stream_of(*texts: RawText, weights=None, seed=0, batch_rows=8) -> TextStream:
    return TextStream(texts, weights or [1.0] * len(texts), seed, batch_rows, T)


@pytest.fixture
def text(tmp_path) -> RawText:
    half = documents_of(700)
    return raw_text(write(tmp_path, "a.txt", half[:500]), write(tmp_path, "b.txt", half[500:]))


def rows_of(batch) -> list[bytes]:
    """Each row as bytes: ids, documents and positions."""
    columns = (np.ascontiguousarray(column) for column in batch)
    return [b"".join(row.tobytes() for row in rows) for rows in zip(*columns, strict=True)]


def scored(batch) -> Counter:
    """Transitions inside documents, as (id, id, position)."""
    inside = (batch.document[:, 1:] == batch.document[:, :-1]) & (batch.document[:, 1:] >= 0)
    return Counter(zip(batch.tokens[:, :-1][inside], batch.tokens[:, 1:][inside], strict=True))


def transitions(documents: list[str]) -> Counter:
    ids = [[BOS, *each, EOS] for each in encode([d for d in documents if not is_validation(d)])]
    return Counter(pair for each in ids for pair in zip(each[:-1], each[1:], strict=True))


def epoch_of(shard) -> list:
    batches, epoch = [], 0
    while epoch == 0:
        piece = shard.next_piece(7, T)
        batches.append(piece.block.rows(np.arange(piece.num_rows)))
        epoch = piece.after.epoch
    return batches


@pytest.mark.parametrize("num_shards", [1, 2, 8, 64])
def test_an_epoch_of_all_shards_is_every_training_document_once(text, num_shards):
    found = Counter()
    for shard in text.shards(num_shards):
        for batch in epoch_of(shard):
            assert batch.tokens.shape[1] == T + 1
            found += scored(batch)
    assert found == transitions(documents_of(700))


def test_rows_are_the_documents_end_to_end_and_positions_restart(tmp_path):
    documents = documents_of(40)
    (shard,) = raw_text(write(tmp_path, "a.txt", documents)).shards(1)
    piece = shard.next_piece(1000, T)
    batch = piece.block.rows(np.arange(piece.num_rows))
    train = [d for d in documents if not is_validation(d)]
    stream = np.concatenate([[BOS, *ids, EOS] for ids in encode(train)])
    starts = np.flatnonzero(stream == BOS)
    for i in range(piece.num_rows):
        row = stream[i * T : i * T + T + 1]
        assert batch.tokens[i].tolist() == row.tolist() + [PAD] * (T + 1 - len(row))
        for j in range(T + 1):
            place, first = i * T + j, starts[np.searchsorted(starts, i * T + j, "right") - 1]
            assert batch.position[i, j] == (place - max(first, i * T) if j < len(row) else 0)
            assert (batch.document[i, j] < 0) == (j >= len(row))
    assert piece.after == (1, 0, 0, 0)


def test_about_one_document_in_200_is_validation_and_in_no_row(text):
    kept = [d for d in documents_of(20_000) if is_validation(d)]
    assert 60 < len(kept) < 140
    block, density = text.sample("val", 1 << 20, T)
    assert (
        sum(len(ids) + 2 for ids in encode([d for d in documents_of(700) if is_validation(d)]))
        == block.num_ids
    )
    assert 0.9 < density < 1.1
    assert text.sample("train", 500, T)[0].num_ids < 10_000


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_read_the_same_rows_between_them(text, num_ranks):
    alone = stream_of(text)
    together = [stream_of(text) for _ in range(num_ranks)]
    for _ in range(40):
        expected = sorted(rows_of(alone.next_step(0, 1)))
        shares = [rows_of(stream.next_step(rank, num_ranks)) for rank, stream in enumerate(together)]
        assert sorted(row for share in shares for row in share) == expected
        assert {len(share) for share in shares} == {8 // num_ranks}
        assert join_cursors([stream.cursor() for stream in together]) == alone.cursor()


def test_chunks_do_not_change_the_rows(text, tmp_path):
    paths = [file.path for file in text.files]
    streams = [stream_of(raw_text(*paths, chunk_bytes=size)) for size in (1 << 10, 1 << 14, 1 << 20)]
    for _ in range(30):
        first, *others = (rows_of(stream.next_step(0, 1)) for stream in streams)
        assert others == [first, first]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_cursor_leads_back_from_twenty_places(text, num_ranks):
    """Also from before the first step, and into later epochs; the cursor stays small."""
    stream, cursors, steps = stream_of(text), [], []
    for step in range(400):
        if step % 20 == 0:
            cursors.append(json.dumps(stream.cursor()))
        steps.append(rows_of(stream.next_step(0, 1)))
    assert len(cursors) == 20 and max(map(len, cursors)) < 600
    assert json.loads(cursors[-1])["parts"]["0.0"][0] > 0
    for number, cursor in enumerate(cursors):
        again = [stream_of(text) for _ in range(num_ranks)]
        for each in again:
            each.restore(json.loads(cursor))
        for step in range(number * 20, number * 20 + 20):
            rows = [
                row for rank, each in enumerate(again) for row in rows_of(each.next_step(rank, num_ranks))
            ]
            assert sorted(rows) == sorted(steps[step])


def test_every_epoch_has_its_own_order_and_so_has_every_seed(text):
    (shard,) = text.shards(1)
    num_rows = sum(len(batch.tokens) for batch in epoch_of(shard))
    firsts = [rows_of(stream_of(text, seed=seed).next_step(0, 1)) for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]
    stream = stream_of(text, batch_rows=1)
    first, second = ([rows_of(stream.next_step(0, 1))[0] for _ in range(num_rows)] for _ in range(2))
    assert sorted(first) == sorted(second) and first != second


def test_two_texts_are_mixed_by_weight_and_each_uses_all_its_parts(text, tmp_path):
    other = raw_text(write(tmp_path, "c.txt", documents_of(900, salt="other ")), name="raw.1")
    stream = stream_of(text, other, weights=[3.0, 1.0])
    for _ in range(16):
        stream.next_step(0, 1)
        counts = stream.cursor()["counts"]
        assert abs(counts[0] - 0.75 * sum(counts)) < 1
    used = [state[-2:] != [0, 0] for state in stream.cursor()["parts"].values()]
    assert len(used) == 16 and all(used)


def test_what_cannot_be_shared_or_read_in_parts_is_refused(text, tmp_path):
    with pytest.raises(ConfigError, match=r"gcd\(24 rows, 64\) = 8 places, which 3 processes cannot share"):
        stream_of(text, batch_rows=24).next_step(0, 3)
    tiny = raw_text(write(tmp_path, "tiny.txt", documents_of(3)))
    with pytest.raises(DataError, match=r"raw\.0: part \d of the text holds no training document"):
        stream_of(tiny).next_step(0, 1)
    with pytest.raises(DataError, match="no document belongs to validation"):
        tiny.sample("val", 100, T)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(ConfigError, match=r"files of kind \.jsonl and \.txt"):
        raw_text(tmp_path / "tiny.txt", tmp_path / "a.jsonl")


def test_a_cursor_of_other_text_is_refused(text):
    cursor = stream_of(text).cursor()
    for name, value in (("seed", 1), ("batch_rows", 16), ("datasets", ["x"]), ("row_tokens", 8)):
        with pytest.raises(StageError, match=f"was made with {name}"):
            stream_of(text).restore(cursor | {name: value})
