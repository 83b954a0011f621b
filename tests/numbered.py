"""
Numbers of a report that can be told apart: a copy in which no two are equal, so that no column of a card can
stand for another unnoticed.

    >>> numbered({"read": 3, "kept": 3, "share": 0.5})
    {'read': 1001, 'kept': 1002, 'share': 125.375}
"""

import itertools
from collections.abc import Iterator
from typing import Any


def numbered(report: Any, numbers: Iterator[int] | None = None) -> Any:
    """Return the report with every number replaced by another one, in the order in which they stand in it."""
    numbers = numbers or itertools.count(1_001)
    if isinstance(report, dict):
        return {key: numbered(value, numbers) for key, value in report.items()}
    if isinstance(report, list):
        return [numbered(value, numbers) for value in report]
    if isinstance(report, bool):
        return report
    if isinstance(report, int):
        return next(numbers)
    return next(numbers) / 8 if isinstance(report, float) else report
