"""Where kernels are tested; without a GPU `tests/conftest.py` has chosen Triton's interpreter."""

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where "triton" runs: the GPU, or its interpreter on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
