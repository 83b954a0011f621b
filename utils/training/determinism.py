"""
Equal bits from equal runs, on CUDA too.

    chosen = make_deterministic(config)         # before anything touches the GPU

A CPU gives them anyway. On CUDA torch takes deterministic algorithms (an operation without one raises and
names itself), cuBLAS a fixed workspace, and attention is SDPA. The same GPU, driver and versions are part of
the promise.
"""

import os

import torch

from utils.config.training import TrainingConfig
from utils.training.choice import Choice

CUBLAS_WORKSPACE = ":4096:8"


def make_deterministic(config: TrainingConfig) -> Choice:
    """Do what `deterministic` asks for; call it before the first CUDA operation of the process."""
    if not torch.cuda.is_available():
        return Choice(config.deterministic, True, "a CPU is")
    if config.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACE
        torch.use_deterministic_algorithms(True)
    return Choice(config.deterministic, config.deterministic)
