"""Writing beside the training: errors, deadlines, and a second Ctrl-C."""

import errno
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors import SafetensorError

from tests.training import toy_stage
from tests.training.test_checkpoint import SETTINGS, artifact_files, stopping_main
from tests.training.toy_stage import run, write_config
from utils.training import checkpoint
from utils.training.background import Background


def test_the_next_work_waits_for_the_one_before():
    background, order = Background(), []

    def first():
        time.sleep(0.05)
        order.append(1)

    background.start(first)
    background.start(lambda: order.append(2))
    assert background.wait() and order == [1, 2]


def test_an_error_is_raised_where_somebody_waits_and_once():
    background = Background()
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.wait()
    assert background.wait()


def test_waiting_ends_with_the_time_that_is_left():
    background, gate = Background(), threading.Event()
    background.start(gate.wait)
    assert not background.wait(0.01)
    gate.set()
    assert background.wait(5)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    gate, reached = threading.Event(), []
    seal = checkpoint.CheckpointStore._seal

    def slow(store, snapshot):
        if snapshot.step == 3:
            assert gate.wait(60)
        seal(store, snapshot)

    def entry(config, stage):
        trainer = toy_stage.toy_trainer(config, stage)
        trainer.resume()
        for step, _ in trainer:
            trainer.save_if_due()
            if step == 5:
                reached.append(sorted(path.name for path in (stage.partial / "checkpoints").glob("step*")))
                gate.set()
        return trainer.finish()

    monkeypatch.setattr(checkpoint.CheckpointStore, "_seal", slow)
    write_config(tmp_path, **SETTINGS)
    assert run(tmp_path, entry=entry) == 0
    assert reached == [[]]  # two steps further, step 3 was not there yet


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "cannot be written: I/O error"),
    ],
)
def test_a_full_disk_ends_the_run_at_the_next_save_with_4(tmp_path, capsys, monkeypatch, error, said):
    calls = []

    def full(tensors, path):
        calls.append(path.name)
        if "00000006" in path.parent.name:
            raise error
        save(tensors, path)

    save = checkpoint.save_file
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        write_config(tmp_path, **SETTINGS)
        assert run(tmp_path, entry=stopping_main(99)) == 4
    message = capsys.readouterr().err
    assert said in message and "make room or mend that, then rerun to continue" in message
    assert "Traceback" not in message
    assert run(tmp_path) == 0 and "from step_00000004" in capsys.readouterr().out


def test_a_checkpoint_that_misses_the_deadline_leaves_the_one_before(tmp_path, capsys, monkeypatch):
    gate = threading.Event()
    seal = checkpoint.CheckpointStore._seal

    def stuck(store, snapshot):
        if snapshot.step == 5:
            gate.wait(60)
            return
        seal(store, snapshot)

    whole = tmp_path / "whole"
    whole.mkdir()
    write_config(whole, **SETTINGS)
    assert run(whole) == 0
    write_config(tmp_path, **SETTINGS | {"preempt_deadline_seconds": 0.2})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.CheckpointStore, "_seal", stuck)
        started = time.monotonic()
        assert run(tmp_path, entry=stopping_main(5)) == 75
        gate.set()
    assert time.monotonic() - started < 20
    said = capsys.readouterr().out
    assert "checkpoint of step 5 was not sealed within 0.2 s; step_00000004 stands" in said
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(whole)


SECOND_INTERRUPT = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.training import toy_stage
from utils.pipeline.stage import execute
from utils.training.checkpoint import CheckpointStore

def endless(store, snapshot):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(120)

def entry(config, stage):
    os.kill(os.getpid(), signal.SIGINT)
    return toy_stage.main(config, stage)

CheckpointStore._seal = endless
root = Path(sys.argv[1])
arguments = ["--config", str(root / "toy.json")]
sys.exit(execute(toy_stage.STAGE, toy_stage.ToyConfig, entry, arguments, toy_stage.workspace_of(root)))
"""


def test_a_second_interrupt_leaves_at_once_though_the_writer_is_busy(tmp_path):
    write_config(tmp_path, **SETTINGS)
    done = subprocess.run(
        [sys.executable, "-c", SECOND_INTERRUPT, str(tmp_path)],
        cwd=toy_stage.__file__.rsplit("/tests/", 1)[0],
        capture_output=True,
        text=True,
        timeout=100,  # less than the writer would sleep
    )
    assert done.returncode == 130, done.stderr
    assert not list((tmp_path / "checkpoints").rglob("step_*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
