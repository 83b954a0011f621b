"""Two processes on one machine, started the way a user would start them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import toy_stage
from tests.training.toy_stage import run, write_config

REPOSITORY = Path(toy_stage.__file__).resolve().parents[2]


def launch(root: Path, processes: int) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    cpu = ["--config_file", str(REPOSITORY / "config/accelerate/cpu.yaml")]
    script = [toy_stage.__file__, str(root), "--config", str(root / "toy.json")]
    return subprocess.run([*launcher, *cpu, *script], capture_output=True, text=True, timeout=180)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_resume_into_one(tmp_path):
    """Four rows a step with unequal numbers of targets, so a mean of the ranks' means would differ."""
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        root.mkdir()
        write_config(root, steps=8, save_every_steps=4, keep_last=9)
    assert run(one) == 0
    result = launch(two, 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done") == 1  # rank 0 alone prints
    histories = [
        [json.loads(line) for line in (root / "checkpoints/toy/history.jsonl").read_text().splitlines()]
        for root in (one, two)
    ]
    for ours, theirs in zip(*histories, strict=True):
        assert ours["step"] == theirs["step"] and ours.get("tokens") == theirs.get("tokens")
        for name in {"loss", "val_loss", "grad_norm"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
    weights = [torch.load(root / "checkpoints/toy/weights.pt") for root in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-5, atol=1e-6)
    checkpoint = two / "checkpoints/toy/checkpoints/step_00000004"
    assert sorted(path.name for path in (checkpoint / "rng").iterdir()) == [
        "rank_00000.safetensors",
        "rank_00001.safetensors",
    ]
    (two / "checkpoints/toy").rename(two / "checkpoints/toy.done")
    moved = two / "checkpoints/toy.done/checkpoints/step_00000004"
    assert run(two, "--resume", str(moved)) == 0
    resumed = torch.load(two / "checkpoints/toy/weights.pt")
    for name, tensor in weights[0].items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, capsys, monkeypatch):
    from utils.training.machine import Machine

    write_config(tmp_path)
    monkeypatch.setattr(Machine, "num_ranks", property(lambda self: 3))
    monkeypatch.setattr(Machine, "wrap", lambda self, module: module)
    assert run(tmp_path) == 2
    assert "a global batch of 4 rows cannot be shared by 3 processes" in capsys.readouterr().err
