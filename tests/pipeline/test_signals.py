"""SIGTERM and Ctrl-C, once and again, sent to a real process (P31)."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.rows import answers
from tests.pipeline.toy import Toy

PACK = "40_pack_dataset"

SCRIPT = """
import sys, time
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.pipeline.toy import Toy
toy = Toy(Path({root!r}))
def slowly(stage):
    print("working", flush=True)
    while not stage.stopping or {stubborn}:
        time.sleep(0.01)
toy.hooks = {{"40.before_commit": slowly}}
from utils.pipeline.stage import execute
from tests.pipeline.toy_configs import PackConfig
name = "40_pack_dataset"
argv = ["--config", f"config/demo/{{name}}.json"]
sys.exit(execute(name, PackConfig, toy.main_of(name), argv, toy.workspace))
"""


@pytest.mark.parametrize(
    ("numbers", "stubborn", "code"),
    [
        ((signal.SIGTERM,), False, 75),
        ((signal.SIGINT,), False, 130),
        ((signal.SIGINT, signal.SIGINT), True, 130),
        ((signal.SIGTERM, signal.SIGTERM, 1.2, signal.SIGTERM), True, 75),
    ],
)
def test_signals_of_a_real_process(toy: Toy, numbers: tuple, stubborn: bool, code: int) -> None:
    shutil.rmtree(toy.folder(PACK))
    repo = str(Path(__file__).parents[2])
    script = SCRIPT.format(repo=repo, root=str(toy.root), stubborn=stubborn)
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=toy.root, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line == "working\n":
            break
    for number in numbers:
        if isinstance(number, float):
            time.sleep(number)
            assert process.poll() is None  # twice at the same moment is one request
            continue
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(timeout=20) == code
    assert not toy.folder(PACK).exists()
    answers(toy.run(PACK), 0, "resuming")


RUN = """
import signal, subprocess, sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from utils.pipeline.run import start_process
child = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(75)); "
child += "print('working', flush=True); time.sleep(30)"
sys.exit(start_process([sys.executable, "-c", child], Path({root!r})))
"""


def test_a_run_hands_the_signal_to_its_stage_and_takes_its_code(tmp_path: Path) -> None:
    script = RUN.format(repo=str(Path(__file__).parents[2]), root=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75


def test_a_tool_that_is_interrupted_says_so_without_traceback(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 75)):
        monkeypatch.setattr(toy.tools, "read_profile", lambda *_, number=number: signal.raise_signal(number))
        answers(toy.tool("status", "demo"), code, f"stopped (exit {code}); rerun to continue")
