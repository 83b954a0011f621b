"""Sinks for curves: what they are given, and that none of them can stop a run."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from tests.training.test_loop import steps
from tests.training.toy_stage import run, write_config
from utils.training import trackers

KEY = "0123456789abcdef0123456789abcdef01234567"


class FakeRun:
    """What wandb.init returns."""

    def __init__(self, fails_at=None, **given):
        self.given, self.rows, self.finished, self._fails_at = given, [], False, fails_at
        self.id = given["id"] or "run-1"

    def log(self, numbers, step):
        if step == self._fails_at:
            raise RuntimeError(f"network gone for {KEY}")
        self.rows.append((step, numbers))

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module of that name whose runs are kept in `runs`; `fails_at` makes them raise at a step."""
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="fake")
    module.runs, module.fails_at = [], None

    def init(**given):
        module.runs.append(FakeRun(module.fails_at, **given))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return module


def test_wandb_that_is_missing_is_refused_with_the_pip_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    write_config(tmp_path, trackers=["wandb"])
    assert run(tmp_path) == 2
    message = capsys.readouterr().err
    assert '"trackers": wandb is not installed' in message and "pip install wandb" in message


def test_a_folder_called_wandb_is_not_the_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: ModuleSpec(name, None))
    write_config(tmp_path, trackers=["wandb"])
    assert run(tmp_path) == 2 and "pip install wandb" in capsys.readouterr().err


def test_wandb_without_a_key_is_refused_rather_than_asking(tmp_path, capsys, monkeypatch, wandb):
    monkeypatch.delenv("WANDB_API_KEY")
    write_config(tmp_path, steps=2, trackers=["wandb"])
    assert run(tmp_path) == 2
    assert '"trackers": wandb needs WANDB_API_KEY in the environment' in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert run(tmp_path) == 0 and len(wandb.runs) == 1


def test_wandb_gets_every_step_and_evaluation(tmp_path, wandb, capsys):
    write_config(tmp_path, steps=4, eval_every_steps=2, trackers=["wandb"])
    assert run(tmp_path) == 0
    (found,) = wandb.runs
    assert found.given["project"] == "lockstep" and found.given["name"] == "checkpoints/toy"
    assert found.given["config"]["optimizer"]["betas"] == [0.9, 0.95] and found.finished
    losses = [(step, row["loss"]) for step, row in found.rows if "loss" in row]
    assert losses == [(row["step"], row["loss"]) for row in steps(tmp_path)]
    assert [step for step, row in found.rows if "eval/val_loss" in row] == [0, 2, 4]
    written = [path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()]
    said = capsys.readouterr()
    assert KEY not in said.out + said.err and not any(KEY.encode() in each for each in written)


def test_a_resumed_run_goes_on_with_its_wandb_run(tmp_path, wandb):
    first = trackers.Trackers(tmp_path, ["wandb"], 0, {"output": "o"}, print)
    first.close()
    trackers.Trackers(tmp_path, ["wandb"], 3, {"output": "o"}, print)
    assert [each.given["id"] for each in wandb.runs] == [None, "run-1"]
    assert wandb.runs[1].given["resume"] == "allow"


def test_a_sink_that_raises_warns_once_and_stops_nothing(tmp_path, wandb, capsys):
    wandb.fails_at = 2
    write_config(tmp_path, steps=5, trackers=["wandb"])
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert said.count("wandb is switched off: network gone for ***") == 1 and KEY not in said
    assert len(steps(tmp_path)) == 5 and wandb.runs[0].rows[-1][0] < 2


def test_a_sink_that_does_not_open_warns_and_stops_nothing(tmp_path, wandb, capsys):
    wandb.init = None
    write_config(tmp_path, steps=2, trackers=["wandb"])
    assert run(tmp_path) == 0
    assert capsys.readouterr().out.count("wandb is switched off") == 1


def test_metrics_have_the_clock_and_the_machine_that_history_has_not(tmp_path):
    write_config(tmp_path, steps=2, optimizer={"max_gradient_norm": 1e-3})
    assert run(tmp_path) == 0
    lines = (tmp_path / "checkpoints/toy/log/metrics.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["step"] == 2 and "loss" in row)
    assert {"step", "tokens", "loss", "perplexity", "lr", "grad_norm", "clipped", "skipped"} <= row.keys()
    assert row["clipped"] and row["epochs"] == 2 * 4 / 100 and row["step_ms"] > 0
    assert row["memory_bytes"] > 1e6 and row["tokens_per_second"] > 0
    assert not {"step_ms", "memory_bytes", "epochs"} & steps(tmp_path)[0].keys()
