"""
Which parameters decay, which entries may move, and the optimizer over them.

Matrices decay; norms, biases and other one-dimensional tensors do not, and embeddings (with a tied head) only
on request. A module whose parameter has zeros by construction registers a mask for it, False where an entry
is no parameter; nothing is inferred from values, since a tensor of zeros (a bias, LoRA's B) must learn.

    register_mask(layer, "weight", mask)
    optimizer = build_optimizer(model, config.optimizer, learning_rate=1.1e-3)
    describe_groups(optimizer)             # decay: 28 tensors, 3,407,872 parameters; no decay: 10, 1,050,880
"""

import torch
from torch import Tensor, nn

from kernels.resolution import Asked
from utils.config.training import OptimizerConfig
from utils.pipeline.errors import ConfigError

FUSED_DEVICES = ("cpu", "cuda", "meta")  # those on meta get their memory later, on one of the others
MASK = "_structural_mask"


def register_mask(module: nn.Module, name: str, mask: Tensor) -> None:
    """
    Declare that only the entries of `module`'s parameter `name` where `mask` is True are parameters.

    ConfigError when the mask is not boolean or has another shape.
    """
    shape = module.get_parameter(name).shape
    if mask.dtype != torch.bool or mask.shape != shape:
        raise ConfigError(f"the mask of {name} must be boolean of shape {tuple(shape)}")
    module.register_buffer(name + MASK, mask, persistent=False)


def parameter_groups(model: nn.Module, weight_decay: float, decay_embeddings: bool) -> list[dict]:
    """
    Two groups over the trainable parameters, in name order, with their names and masks; an empty one is left
    out.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    masks = {name.removesuffix(MASK): mask for name, mask in model.named_buffers() if name.endswith(MASK)}
    named = sorted(
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    )
    decayed = [
        parameter.ndim >= 2 and (decay_embeddings or id(parameter) not in embeddings)
        for _, parameter in named
    ]
    groups = []
    for label, wanted, decay in (("decay", True, weight_decay), ("no decay", False, 0.0)):
        members = [each for each, chosen in zip(named, decayed, strict=True) if chosen is wanted]
        if members:
            names, parameters = map(list, zip(*members, strict=True))
            groups.append({"params": parameters, "weight_decay": decay, "label": label, "names": names})
            groups[-1]["masks"] = [masks.get(name) for name in names]
    return groups


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    learning_rate: float,
    kernels: Asked = "auto",
) -> torch.optim.Optimizer:
    """
    torch's AdamW over the groups of `config`, fused where torch has that kernel, or Velvet.

    ConfigError when AdamW would meet masks or low-precision parameters, of which it knows nothing.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay_embeddings)
    if config.kind == "velvet":
        from utils.optim.velvet import Velvet  # imports torch.distributed, which a run of AdamW can spare

        vocab_size = model.get_output_embeddings().weight.shape[0]
        return Velvet(groups, config, learning_rate, vocab_size, kernels)
    _refuse_what_adamw_ignores(groups)
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


def _refuse_what_adamw_ignores(groups: list[dict]) -> None:
    low = any(each.dtype.itemsize < 4 for group in groups for each in group["params"])
    masked = [name for group in groups for name, mask in zip(group["names"], group["masks"], strict=True)
              if mask is not None]  # fmt: skip
    if low or masked:
        what = f"the mask of {masked[0]}" if masked else "fp32 masters behind low-precision parameters"
        raise ConfigError(
            f'"optimizer.kind": adamw knows nothing of {what}',
            fix='use "velvet"; with "entropy" and "perplexity" not enabled it is AdamW',
        )
