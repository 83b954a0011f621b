"""
Which parameters decay, and the optimizer over them.

Matrices decay; norms, biases and other one-dimensional tensors do not, and embeddings (with a tied head) only
on request.

    optimizer = build_optimizer(model, config.optimizer, learning_rate=1.1e-3)
    describe_groups(optimizer)             # decay: 28 tensors, 3,407,872 parameters; no decay: 10, 1,050,880
"""

import torch
from torch import nn

from utils.config.training import OptimizerConfig

FUSED_DEVICES = ("cpu", "cuda")


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool) -> list[dict]:
    """Two groups over the trainable parameters, in name order; an empty one is left out."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    named = sorted(
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    )
    decayed = [
        parameter.ndim >= 2 and (decay_embeddings or id(parameter) not in embeddings)
        for _, parameter in named
    ]
    groups = []
    for label, wanted, decay in (("decay", True, weight_decay), ("no decay", False, 0.0)):
        members = [
            parameter for (_, parameter), chosen in zip(named, decayed, strict=True) if chosen is wanted
        ]
        if members:
            groups.append({"params": members, "weight_decay": decay, "label": label})
    return groups


def build_optimizer(model: nn.Module, config: OptimizerConfig, learning_rate: float) -> torch.optim.AdamW:
    """torch's AdamW over the groups of `config`, fused where torch has that kernel."""
    groups = parameter_groups(model, config.weight_decay, config.decay_embeddings)
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(
        groups, lr=learning_rate, betas=config.betas, eps=config.epsilon, fused=devices <= set(FUSED_DEVICES)
    )


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """Tensors and parameters of each group, for the log."""
    parts = []
    for group in optimizer.param_groups:
        count = sum(parameter.numel() for parameter in group["params"])
        parts.append(f"{group['label']}: {len(group['params'])} tensors, {count:,} parameters")
    return "; ".join(parts)
