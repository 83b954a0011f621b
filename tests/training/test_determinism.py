import os

import pytest
import torch

from tests.training.toy_stage import ToyConfig
from utils.training.determinism import CUBLAS_WORKSPACE, make_deterministic


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
