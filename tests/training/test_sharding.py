"""FSDP2 on two gloo processes against one process that has all weights, from the first step to the seal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.training import toy_stage
from tests.training.ranks import SHARDED, run_ranks
from tests.training.toy_stage import run, write_config
from utils.pipeline.errors import StageError
from utils.training.machine import Machine
from utils.training.memory import building_watched
from utils.training.precision import FP32, Precision
from utils.training.sharding import layer_policy

OPTIMIZERS = {
    "adamw": {"max_gradient_norm": 0.2},
    "velvet": {"kind": "velvet", "max_gradient_norm": 0.2},
}
STEPS, HALF = 10, 5
SETTINGS = {"steps": STEPS, "save_every_steps": HALF, "keep_last": 9, "micro_batch_rows": 1}
OURS = "checkpoints/toy"
FSDP = Path(toy_stage.__file__).resolve().parents[2] / "config/accelerate/fsdp.yaml"


def history(root: Path) -> list[dict]:
    return [json.loads(line) for line in (root / OURS / "history.jsonl").read_text().splitlines()]


def assert_same_run(root: Path, other: Path, tolerance: float) -> None:
    """Losses, validation losses and norms before clipping, step by step, and the weights at the end."""
    ours, theirs = history(root), history(other)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, two in zip(ours, theirs, strict=True):
        for name in {"loss", "val_loss", "grad_norm", "eta", "b"} & one.keys():
            assert one[name] == pytest.approx(two[name], rel=tolerance), (one, two)
    weights = [torch.load(each / OURS / "weights.pt") for each in (root, other)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_shards_take_the_steps_of_one_process_and_checkpoints_fit_both(tmp_path: Path, kind: str) -> None:
    one, two, back = (tmp_path / name for name in ("one", "two", "back"))
    for root in (one, two, back):
        root.mkdir()
        write_config(root, **SETTINGS, optimizer=OPTIMIZERS[kind])
    assert run(one) == 0
    said = run_ranks(two, **SHARDED)
    assert "2 sharded processes" in said
    assert_same_run(two, one, 1e-6)
    assert min(row["grad_norm"] for row in history(two) if "grad_norm" in row) > 0.2  # all were clipped

    halfway = f"checkpoints/step_{HALF:08d}"
    for kind_of_file in ("model", "optimizer"):
        ours, theirs = (
            load_file(root / OURS / halfway / f"{kind_of_file}.safetensors") for root in (one, two)
        )
        assert {name: each.shape for name, each in ours.items()} == {
            name: each.shape for name, each in theirs.items()
        }

    saved_by_two, saved_by_one = two / "halfway", one / "halfway"
    shutil.copytree(two / OURS / halfway, saved_by_two)
    shutil.copytree(one / OURS / halfway, saved_by_one)
    shutil.rmtree(two / OURS)
    assert run(two, "--resume", str(saved_by_two)) == 0  # saved by two, loaded by one
    assert_same_run(two, one, 1e-5)
    run_ranks(back, "--resume", str(saved_by_one), **SHARDED)  # and the other way round
    assert_same_run(back, one, 1e-5)


def launch(root: Path, config: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), *more]
    script = [toy_stage.__file__, str(root), "--config", str(root / "toy.json")]
    return subprocess.run([*command, *script], capture_output=True, text=True, timeout=300)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_launcher_shards_over_gpus(tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one", "two"))
    for root in (one, two):
        root.mkdir()
        write_config(root, **SETTINGS, optimizer=OPTIMIZERS["velvet"])
    assert run(one) == 0
    done = launch(two, FSDP)
    assert done.returncode == 0 and "cuda, 2 sharded processes" in done.stdout, done.stdout + done.stderr
    assert_same_run(two, one, 1e-4)


@pytest.mark.slow
def test_the_launcher_says_which_kind_of_sharding(tmp_path: Path) -> None:
    """The shipped file without its GPUs, and the older kind, which is refused."""
    text = FSDP.read_text().replace("use_cpu: false", "use_cpu: true")
    (tmp_path / "fsdp.yaml").write_text(text)
    (tmp_path / "older.yaml").write_text(text.replace("fsdp_version: 2", "fsdp_version: 1"))
    write_config(tmp_path, **SETTINGS | {"steps": 2})
    refused = launch(tmp_path, tmp_path / "older.yaml")
    assert refused.returncode != 0
    assert refused.stderr.count("only FSDP2 is supported") == 1, refused.stderr
    done = launch(tmp_path, tmp_path / "fsdp.yaml")
    assert done.returncode == 0 and "2 sharded processes" in done.stdout, done.stdout + done.stderr


def test_layers_are_gathered_in_the_precision_and_summed_in_fp32() -> None:
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        policy = layer_policy(Precision(name, "cuda"))
        assert policy.param_dtype is dtype
        assert policy.reduce_dtype is torch.float32 and policy.output_dtype is torch.float32


def test_only_a_model_that_stays_whole_is_put_on_the_device(monkeypatch) -> None:
    two = SimpleNamespace(process_index=0, num_processes=2, device=torch.device("meta"))
    machine = Machine(two, FP32, 1, ())
    for sharded in (True, False):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", str(sharded).lower())
        model = nn.Linear(2, 2)
        machine.place(model)
        assert model.weight.is_meta is not sharded
        assert machine.num_shares == (2 if sharded else 1)


def test_a_model_that_does_not_fit_in_parts_is_told_by_the_part() -> None:
    told = (
        "its 1,000,000 parameters take 1.0 MB, and 4.0 MB with gradients and moments in each of 4 processes"
    )
    with (
        pytest.raises(StageError, match=told),
        building_watched("toy", 1_000_000, torch.device("cpu"), num_shares=4),
    ):
        raise MemoryError
