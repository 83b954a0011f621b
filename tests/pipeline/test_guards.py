"""
Do the guards guard? Each one, switched to "always good", must make a row that names it fail; switched to
"always bad", it must stop a chain that is in order.

Snakemake 9.0 shipped with all its triggers inert and every test green.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline import test_matrix
from tests.pipeline.rows import ROWS, Row
from tests.pipeline.toy import Toy
from utils.pipeline.guards import GUARDS
from utils.pipeline.verdict import Verdict

IN_ORDER = (
    "18",
    "22",
    "26",
    "21",
    "3",
    "34",
    "52",
)  # rows where nothing is wrong, or nothing is wrong any more
BAD = Verdict("tampered", "switched", "switched", "good", "bad")
CHANGE = [("switched", "good", "bad")]
ALWAYS_GOOD: dict[str, object] = dict.fromkeys(GUARDS) | {
    "G10": [], "G11": [], "G12": [], "G14": [], "G16": "", "G20": [], "G22": False, "G23": True, "G24": True,
    "G26": [],
}  # fmt: skip
ALWAYS_BAD: dict[str, object] = dict.fromkeys(GUARDS, BAD) | {
    "G10": CHANGE, "G11": CHANGE, "G12": CHANGE, "G14": CHANGE, "G16": "pid 1, since 00:00", "G20": CHANGE,
    "G22": True, "G23": False, "G24": False, "G26": [("switched",)],
}  # fmt: skip


@pytest.fixture
def built_in_order(built_root: Path) -> Path:
    """The chain must have been built before a guard is switched."""
    return built_root


def falls(row: Row, toy: Toy) -> bool:
    """Whether the row no longer holds."""
    try:
        row.play(toy)
    except Exception:  # an assertion, or the crash that a missing guard lets happen
        return True
    return False


def first_to_fall(rows: list[Row], built: Path, folder: Path) -> str:
    """The first of the rows that does not hold under the switched guards, or ""."""
    for index, row in enumerate(rows):
        root = folder / str(index) / "root"
        shutil.copytree(built, root)
        if falls(row, Toy(root)):
            return row.name
    return ""


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_never_fires_is_noticed(
    name: str, built_in_order: Path, tmp_path: Path, no_fsync: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GUARDS, name, lambda *arguments: ALWAYS_GOOD[name])
    rows = [row for row in ROWS if name in row.guards]
    assert first_to_fall(rows, built_in_order, tmp_path), f"{name} can be switched off unnoticed"


@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_that_always_fires_is_noticed(
    name: str, built_in_order: Path, tmp_path: Path, no_fsync: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(GUARDS, name, lambda *arguments: ALWAYS_BAD[name])
    rows = [row for number in IN_ORDER for row in ROWS if row.number == number]
    assert first_to_fall(rows, built_in_order, tmp_path), f"{name} is never asked when all is well"


def test_every_guard_is_named_by_a_row() -> None:
    assert {guard for row in ROWS for guard in row.guards} == set(GUARDS)


def test_every_refusing_row_names_a_guard() -> None:
    assert [row.name for row in ROWS if row.refuses and not row.guards] == []


def test_every_guard_is_asked_through_the_table() -> None:
    sources = Path(test_matrix.__file__).parents[2].glob("utils/pipeline/*.py")
    code = "".join(path.read_text() for path in sources if path.name != "guards.py")
    functions: dict[str, Callable] = GUARDS
    assert [found.__name__ for found in functions.values() if f"{found.__name__}(" in code] == []
