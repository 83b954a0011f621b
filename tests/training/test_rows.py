import json
from typing import NamedTuple

import numpy as np
import pytest

from tests.packing.test_stream import documents_of, raw_text, rows_of, stream_of, write
from utils.packing.mixture import Mixture, MixtureSource
from utils.pipeline.errors import ConfigError
from utils.training.rows import MixtureRows, join_cursors, micro_batch_rows


class Draws(NamedTuple):
    dataset: np.ndarray
    row: np.ndarray


class Counting:
    """A mixture over one dataset whose draw k is row k."""

    batch_rows = 8

    def __init__(self):
        self.drawn = 0

    def next_step(self, rank, num_ranks):
        share = self.batch_rows // num_ranks
        first = self.drawn + rank * share
        self.drawn += self.batch_rows
        return Draws(np.zeros(share, int), np.arange(first, first + share))

    def cursor(self):
        return {"rows_drawn": self.drawn}

    def restore(self, cursor):
        self.drawn = cursor["rows_drawn"]


def read(rows, rank=0, num_ranks=1, micro_rows=2):
    return [batch.tolist() for batch in rows.next_step(rank, num_ranks, micro_rows)]


def test_rows_of_a_step_are_the_same_for_any_ranks_and_micro_batches():
    for ranks, micro in ((1, 8), (1, 2), (2, 2), (4, 1)):
        parts = [MixtureRows(Counting(), lambda draws: draws.row) for _ in range(ranks)]
        for first in (0, 8):
            found = [
                row
                for rank, rows in enumerate(parts)
                for batch in read(rows, rank, ranks, micro)
                for row in batch
            ]
            assert found == list(range(first, first + 8))


def test_the_cursor_leads_back():
    rows = MixtureRows(Counting(), lambda draws: draws.row)
    read(rows)
    cursor = rows.cursor()
    expected = read(rows)
    rows.restore(cursor)
    assert read(rows) == expected == [[8, 9], [10, 11], [12, 13], [14, 15]]


def drawn_in(phases, rows, read):
    """Rows of each step as (ranks, steps) follow each other, every time in new processes."""
    cursor, steps = None, []
    for ranks, count in phases:
        parts = [rows() for _ in range(ranks)]
        for part in parts if cursor else []:
            part.restore(cursor)
        for _ in range(count):
            found = [part.next_step(rank, ranks, 2) for rank, part in enumerate(parts)]
            steps.append(sorted(row for batches in found for batch in batches for row in read(batch)))
        cursor = json.loads(json.dumps(join_cursors([part.cursor() for part in parts])))
    return steps


@pytest.mark.parametrize("source", ["mixture", "raw text"])
def test_two_processes_then_one_then_two_read_the_same_rows(tmp_path, source):
    text = raw_text(write(tmp_path, "a.txt", documents_of(700)))
    sources = [MixtureSource(10, "a" * 64), MixtureSource(7, "b" * 64)]

    def rows():
        stream = source == "raw text"
        order = stream_of(text) if stream else Mixture(sources, seed=3, batch_rows=8)
        return MixtureRows(order, lambda draws: draws)

    read = rows_of if source == "raw text" else lambda draws: zip(*draws, strict=True)
    changing, whole = (drawn_in(each, rows, read) for each in ([(2, 4), (1, 4), (2, 4)], [(1, 12)]))
    assert changing == whole and len(whole) == 12 and all(len(step) == 8 for step in whole)
    assert whole[4] != whole[0]


@pytest.mark.parametrize(
    ("asked", "rows", "ranks", "found"),
    [("auto", 32, 1, 16), ("auto", 24, 1, 12), ("auto", 34, 2, 1), (8, 32, 2, 8)],
)
def test_micro_batch_divides_the_rows_of_a_rank(asked, rows, ranks, found):
    assert micro_batch_rows(asked, rows, ranks) == found


def test_uneven_shares_are_refused():
    with pytest.raises(ConfigError, match="a global batch of 32 rows cannot be shared by 3 processes"):
        micro_batch_rows("auto", 32, 3)
    with pytest.raises(ConfigError, match='"micro_batch_rows": 5 does not divide the 32 rows of a process'):
        micro_batch_rows(5, 32, 1)


def test_the_rows_of_a_step_are_named_by_its_cursor_without_going_there():
    mixture = Mixture([MixtureSource(10, "a" * 64), MixtureSource(7, "b" * 64)], seed=3, batch_rows=4)
    rows, seen = MixtureRows(mixture, lambda draws: draws), []
    for _ in range(5):
        cursor = rows.cursor()
        drawn = [(int(d), int(r)) for part in rows.next_step(0, 1, 2) for d, r in zip(*part, strict=True)]
        seen.append((cursor, [list(pair) for pair in drawn]))
    after = rows.cursor()
    assert all(rows.row_ids(cursor) == drawn for cursor, drawn in seen) and rows.cursor() == after
    assert rows.epochs(5) == max(mixture.epochs(5)) > 1
    assert MixtureRows(Counting(), None).row_ids({"rows_drawn": 0}) == []  # raw text has no numbers
    assert MixtureRows(Counting(), None).epochs(5) is None
