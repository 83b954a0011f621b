"""
Fixtures for tests that run the program as a user does: in a copy of the repository, through its command line.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("utils", "kernels", "scripts", "tools", "config")
FILES = ("Makefile", "README.md", "requirements.txt", "requirements-dev.txt", "pyproject.toml")


def pytest_configure() -> None:
    """
    Ctrl-C must reach the programs under test, also when the tests themselves were started in the
    background. No property holds only on a fast machine, so examples have no deadline. Workers share the
    cores, so threads that wait must sleep; the variable is read when torch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    settings.register_profile("any machine", deadline=None)
    settings.load_profile("any machine")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not _has_gpu():  # before anything imports triton, which looks once; kernels are interpreted then
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no worker is left with it alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True)
class Clone:
    """A copy of the repository, and how to run things in it."""

    root: Path

    def start(self, *command: str, **options: object) -> subprocess.Popen:
        program = [sys.executable, *command]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(program, cwd=self.root, env=environment(), **pipes | options)

    def run(self, *command: str, timeout: float = 600) -> subprocess.CompletedProcess:
        program = [sys.executable, *command]
        done = subprocess.run(
            program, cwd=self.root, env=environment(), capture_output=True, text=True, timeout=timeout
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout + done.stderr)

    def pipeline(self, *arguments: str, timeout: float = 900) -> subprocess.CompletedProcess:
        return self.run("tools/pipeline.py", *arguments, timeout=timeout)

    def stage(self, name: str, *arguments: str, profile: str = "smoke") -> subprocess.CompletedProcess:
        return self.run(f"scripts/{name}.py", "--config", f"config/{profile}/{name}.json", *arguments)

    def fork(self, target: Path) -> "Clone":
        """A copy of this copy, artifacts included, for a test that damages something."""
        shutil.copytree(self.root, target, symlinks=True)
        return Clone(target)


def environment() -> dict[str, str]:
    """The caller's environment without what would make a run depend on it."""
    drop = ("PYTHONPATH", "WORLD_SIZE", "RANK", "LOCAL_RANK", "TRITON_INTERPRET")
    return {name: value for name, value in os.environ.items() if name not in drop}


@pytest.fixture(scope="session")
def clone_repository() -> Callable[[Path], Clone]:
    """Copy the working tree, without artifacts, to a new folder."""

    def clone(target: Path) -> Clone:
        target.mkdir(parents=True, exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        for room in ROOMS:
            shutil.copytree(ROOT / room, target / room, ignore=ignore)
        for name in FILES:
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, target / name)
        return Clone(target)

    return clone
