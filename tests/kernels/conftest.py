"""Without a GPU the Triton kernels run in Triton's interpreter, which is chosen when they are imported."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where "triton" runs: the GPU, or its interpreter on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
