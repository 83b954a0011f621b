"""The tamper-and-stale matrix of the specification, row by row, over the toy chain."""

import pytest

from tests.pipeline import rows_artifacts, rows_currency, rows_runs, rows_sources
from tests.pipeline.rows import ROWS, Row
from tests.pipeline.toy import Toy

MODULES = (rows_artifacts, rows_currency, rows_runs, rows_sources)  # importing them fills ROWS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, toy: Toy) -> None:
    row.play(toy)


def test_every_row_of_the_specification_is_here() -> None:
    assert {str(number) for number in range(1, 52)} <= {row.number for row in ROWS}
