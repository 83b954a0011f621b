"""Fixtures of the toy chain: built once, copied for every test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.toy import Toy


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses no page cache, so the tests need no disk to wait for (5 ms a file)."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def bare(tmp_path: Path, no_fsync: None) -> Toy:
    """A toy workspace where nothing was built yet."""
    return Toy(tmp_path / "root").write()


@pytest.fixture(scope="session")
def built_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a workspace with every stage built; never touched again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        return Toy(tmp_path_factory.mktemp("built") / "root").write().build().root


@pytest.fixture
def fresh_toy(built_root: Path, tmp_path: Path, no_fsync: None) -> Callable[[], Toy]:
    """Copies of the built workspace, one per call."""
    made: list[Toy] = []

    def copy() -> Toy:
        root = tmp_path / f"copy{len(made)}" / "root"
        shutil.copytree(built_root, root)
        made.append(Toy(root))
        return made[-1]

    return copy


@pytest.fixture
def toy(fresh_toy: Callable[[], Toy]) -> Toy:
    """A workspace with every stage built."""
    return fresh_toy()
