import os
from types import SimpleNamespace

import pytest
import torch

from tests.training.toy_stage import CountingRows, ToyConfig, toy_model
from utils.training.cost import cost_of_determinism, tell_cost_of_determinism
from utils.training.determinism import CUBLAS_WORKSPACE, make_deterministic
from utils.training.loss import LossModel, NextTokenLoss
from utils.training.machine import Machine
from utils.training.rehearsal import Rehearsal


def config(deterministic):
    return ToyConfig.model_validate({"output": "o", "deterministic": deterministic})


def test_a_cpu_is_deterministic_and_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    expected = {"asked": True, "resolved": True, "reason": "a CPU is"}
    assert make_deterministic(config(True)).record() == expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert make_deterministic(config(False)).resolved


def test_a_gpu_is_told_before_it_starts(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", told.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not make_deterministic(config(False)).resolved and not told
    assert make_deterministic(config(True)).resolved and told == [True]
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == CUBLAS_WORKSPACE


@pytest.fixture
def stage():
    """A stage that keeps what it was told."""
    said, kept = [], {}
    return SimpleNamespace(
        log=lambda event, text: said.append(text), run_info=kept.update, said=said, kept=kept
    )


def trainer_of(stage, device, deterministic=True, sharded=False):
    """As much of a trainer as the measurement reads; computed on the CPU, whatever the device is called."""
    machine = SimpleNamespace(
        device=SimpleNamespace(type=device), sharded=sharded, rank=0, num_ranks=1, sum=lambda values: values,
        precision=Machine.of(config(False)).precision,
    )  # fmt: skip
    return SimpleNamespace(
        config=config(deterministic), machine=machine, stage=stage, model=toy_model(), loss=NextTokenLoss(),
        rows=CountingRows(), execution=SimpleNamespace(micro_rows=2),
    )  # fmt: skip


def test_the_cost_is_measured_and_told_and_leaves_no_trace(stage, monkeypatch):
    monkeypatch.setattr(Rehearsal, "_finish", lambda rehearsal: None)  # there is no device to wait for
    monkeypatch.setattr(torch, "use_deterministic_algorithms", (switched := []).append)
    trainer = trainer_of(stage, "cuda")
    weights = {name: each.clone() for name, each in trainer.model.state_dict().items()}
    before, cursor = torch.get_rng_state(), trainer.rows.cursor()
    tell_cost_of_determinism(trainer)
    assert switched == [True, False, True]
    (said,) = stage.said
    factor = stage.kept["deterministic_cost"]
    assert factor > 0 and said == f"a micro-batch takes {factor:.2f} times as long as without"
    assert torch.equal(torch.get_rng_state(), before) and trainer.rows.cursor() == cursor
    assert all(torch.equal(weights[name], each) for name, each in trainer.model.state_dict().items())
    assert all(each.grad is None for each in trainer.model.parameters())


@pytest.mark.parametrize(("device", "deterministic"), [("cpu", True), ("cuda", False)])
def test_where_it_costs_nothing_nothing_is_measured(stage, device, deterministic):
    tell_cost_of_determinism(trainer_of(stage, device, deterministic))
    assert not stage.said and not stage.kept


def test_sharded_weights_are_not_measured_and_it_is_said(stage):
    tell_cost_of_determinism(trainer_of(stage, "cuda", sharded=True))
    assert stage.said == ["its cost is not measured with sharded weights"] and not stage.kept


@pytest.mark.parametrize(("slow", "fast", "factor"), [(3.0, 2.0, 1.5), (None, 2.0, None), (3.0, None, None)])
def test_the_cost_is_time_with_the_switch_over_time_without(slow, fast, factor):
    rehearsal = Rehearsal(
        LossModel(toy_model(), NextTokenLoss(), None, "isolated"), CountingRows(), Machine.of(config(False))
    )
    rehearsal.seconds = lambda rows: slow if torch.are_deterministic_algorithms_enabled() else fast
    try:
        assert cost_of_determinism(rehearsal, 2) == factor
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
def test_two_runs_on_a_gpu_end_in_the_same_bits():
    """In this process torch's switch alone is tried; the workspace has to be set before CUDA starts."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    found = []
    torch.use_deterministic_algorithms(True, warn_only=True)
    for _ in range(2):
        torch.manual_seed(0)
        q, k, v = (torch.randn(2, 4, 128, 64, device="cuda", requires_grad=True) for _ in range(3))
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum().backward()
        found.append(q.grad.cpu())
    torch.use_deterministic_algorithms(False)
    assert torch.equal(*found)
