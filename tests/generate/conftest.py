"""Fixtures of the generation tests."""

from pathlib import Path

import pytest

from tests.generate.helpers import Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "generated")
