"""Velvet on parameters that two processes share, against one process that has them all."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.optim import sharded
from tests.optim.sharded import HALF, STEPS, optimizer_of, small_model, train


@pytest.mark.slow
def test_sharded_equals_whole_and_what_two_saved_one_loads(tmp_path):
    command = [sys.executable, sharded.__file__]
    children = [
        subprocess.Popen([*command, str(rank), str(tmp_path)], stdout=-1, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    model = small_model()
    optimizer = optimizer_of(model)
    norms = train(model, optimizer, 0, STEPS)
    found = load_file(tmp_path / "norms.safetensors")["norms"].tolist()
    assert found == pytest.approx(norms, rel=1e-6) and min(norms) > 0.05  # every step was clipped
    ended = load_file(tmp_path / "end.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ended[f"p/{name}"], parameter.detach(), rtol=1e-6, atol=1e-6)

    halfway = load_file(tmp_path / "half.safetensors")
    alone = small_model()
    alone.load_state_dict({name[2:]: each for name, each in halfway.items() if name.startswith("p/")})
    resumed = optimizer_of(alone)
    resumed.load_state_dict({name: each for name, each in halfway.items() if not name.startswith("p/")})
    train(alone, resumed, HALF, STEPS)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(ended[f"p/{name}"], parameter.detach(), rtol=1e-6, atol=1e-6)
