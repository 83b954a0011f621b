"""Triton where it can run: the GPU, or its interpreter on the CPU."""

from tests.kernels.conftest import device

__all__ = ["device"]
