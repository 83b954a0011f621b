"""Signs of overfitting: found in a history, told once, kept, and only on demand a reason to stop."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.training import toy_stage
from tests.training.toy_stage import CountingRows, ToyConfig, write_config
from utils.pipeline.errors import StageError
from utils.training.loop import Trainer
from utils.training.overfitting import OverfittingWatch, rising_evaluations


def history_of(val: list[float], train: list[float]) -> list[dict]:
    """An evaluation at steps 0, 2, 4, ...; the two steps before each have its training loss."""
    rows = [{"step": 0, "val_loss": val[0]}]
    for k, (held_out, loss) in enumerate(zip(val[1:], train, strict=True), 1):
        rows += [{"step": 2 * k - 1, "loss": loss}, {"step": 2 * k, "loss": loss}]
        rows.append({"step": 2 * k, "val_loss": held_out})
    return rows


@pytest.mark.parametrize(
    ("val", "train", "step"),
    [
        ([3, 2, 2.1, 2.2, 2.3], [3, 2.5, 2, 1.5], 8),
        ([3, 2, 2.1, 2.2, 2.3], [3, 1.5, 2, 2.5], None),
        ([3, 2, 2.1, 2.2, 2.15, 2.3], [3, 2.5, 2, 1.5, 1], None),
        ([3, 3.1, 3.2, 3.3, 1], [3, 2.5, 2, 1.5], 6),
        ([3, 3.1, 3.2], [3, 2.5], None),
    ],
)
def test_three_rises_in_a_row_count_while_the_training_loss_falls(val, train, step):
    found = rising_evaluations(history_of(val, train))
    assert (found and found["step"]) == step


def test_datasets_that_are_read_more_than_four_times_are_named():
    lines = []
    stage = SimpleNamespace(log=lambda event, text, **fields: lines.append((event, text)))
    watch = OverfittingWatch(stage, ToyConfig(output="checkpoints/toy"))
    watch.count({"books": 4.04, "web": 6.25})
    assert lines == [("overfitting", watch.figures()["overfitting"][0])]
    assert lines[0][1].startswith("web is read 6.2 times; beyond 4 repeated text adds little")
    watch.count({"books": 4.0})
    assert watch.figures() == {}


class LearntByHeart(CountingRows):
    """200 rows over and over, of 8 ids that count upwards; those of another seed count in threes."""

    def _row(self, number):
        tokens, document, position = super()._row(number % 200)
        stride = 1 + 2 * self.seed
        counted = [4 + (number + stride * place) % 8 for place in position]
        return counted, document, position


def test_a_planted_set_is_noticed_and_the_best_step_published(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy_stage, "CountingRows", LearntByHeart)
    plan = {"steps": 90, "eval_every_steps": 10, "save_every_steps": 10}
    plan |= {"batch_rows": 10, "micro_batch_rows": 10}
    write_config(tmp_path, **plan, publish="best")
    assert toy_stage.run(tmp_path) == 0
    folder = tmp_path / "checkpoints/toy"
    metrics = json.loads((folder / "manifest.json").read_text())["metrics"]
    (notice,) = metrics["overfitting"]
    best = metrics["best_step"]
    assert "has risen 3 times in a row" in notice and f"at step {best}" in notice
    assert 0 < best < 60 and notice in capsys.readouterr().out
    published, kept = torch.load(folder / "weights.pt"), folder / f"checkpoints/step_{best:08d}"
    for name, tensor in load_file(kept / "model.safetensors").items():
        assert torch.equal(tensor, published[name])


LOSSES = [3.0, 2.0, 1.0, 1.5, 0.9, 1.6, 1.7, 1.8, 0.1]


@pytest.mark.parametrize("is_killed", [False, True])
def test_patience_ends_a_run_early_also_across_a_kill(tmp_path, monkeypatch, is_killed):
    """Best after step 4 of 8, then two evaluations without a better one."""
    monkeypatch.setattr(Trainer, "validate", lambda trainer, batches: LOSSES[trainer.step])
    plan = {"steps": 8, "eval_every_steps": 1, "save_every_steps": 1, "micro_batch_rows": 4}
    write_config(tmp_path, **plan, early_stopping_patience_evals=2)
    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "finish", killed)
            assert toy_stage.run(tmp_path) == 4
    assert toy_stage.run(tmp_path) == 0
    metrics = json.loads((tmp_path / "checkpoints/toy/manifest.json").read_text())["metrics"]
    assert metrics["steps"] == 6 and metrics["best_step"] == 4


def killed(trainer):
    raise StageError("killed")
