"""
What a model with experts adds to the gradient, and what is worth seeing of its router.

Per layer, over the tokens of a micro-batch that are no padding, with router logits z, p = softmax(z), f_i the
share of the T k assignments that expert i got and P_i its mean probability:

    balance   E sum_i f_i P_i                1 when the load is even (Switch Transformer, Fedus 2021, eq. 4)
    z-loss    mean(logsumexp(z)^2)           keeps logits small (ST-MoE, Zoph 2022, eq. 5)

Both are means over the layers. They enter the gradient with the coefficients of the model's config and no
reported loss, perplexity or signal. Nothing here waits for the device.

    with recorded_routing(decoder) as passes:
        sums = objective(model, batch)
    sums = add_routing(sums, passes, model.config, real_tokens_N)

N tokens, E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from kernels.linear_cross_entropy import LossSums


class Routing(NamedTuple):
    """Means over the layers: the two terms, and the busiest expert over the mean, idle experts, entropy."""

    balance: Tensor
    router_z: Tensor
    load_max_over_mean: Tensor
    dead_experts: Tensor
    router_entropy: Tensor


def has_routers(config: PretrainedConfig) -> bool:
    """Whether a model of this config has experts."""
    return getattr(config, "num_local_experts", 0) > 0


@contextmanager
def recorded_routing(decoder: nn.Module) -> Iterator[list[tuple[Tensor, ...]]]:
    """Router logits [N, E] of every layer, one entry per forward pass of `decoder` that keeps gradients."""
    passes: list[tuple[Tensor, ...]] = []

    def ask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, kwargs | {"output_router_logits": True}

    def keep(module: nn.Module, args: tuple, output: dict) -> None:
        if torch.is_grad_enabled():
            passes.append(output["router_logits"])

    hooks = [decoder.register_forward_pre_hook(ask, with_kwargs=True), decoder.register_forward_hook(keep)]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def add_routing(
    sums: LossSums, passes: list[tuple[Tensor, ...]], config: PretrainedConfig, real_N: Tensor
) -> LossSums:
    """
    `sums` with the auxiliary terms weighted by their targets, and with the figures of the router among the
    extras. `real_N` is True on tokens that are no padding.
    """
    layers = [
        describe_routing(logits, config.num_experts_per_tok, real_N) for each in passes for logits in each
    ]
    found = Routing(*(torch.stack(column).mean() for column in zip(*layers, strict=True)))
    count = sums.count.to(found.balance.device, torch.float32)
    coefficients = config.router_aux_loss_coef, getattr(config, "router_z_loss_coef", 0.0)
    auxiliary = (coefficients[0] * found.balance + coefficients[1] * found.router_z) * count
    extras = {name: value.detach() * count for name, value in found._asdict().items()}
    return replace(sums, auxiliary=auxiliary, extras=sums.extras | extras)


def describe_routing(logits_NE: Tensor, experts_per_token: int, real_N: Tensor) -> Routing:
    """Terms and figures of one layer."""
    logits_NE, weight_N = logits_NE.float(), real_N.float()
    num_experts, tokens = logits_NE.shape[1], weight_N.sum().clamp(min=1.0)
    log_p_NE = logits_NE.log_softmax(-1)
    p_NE = log_p_NE.exp()
    chosen_NK = p_NE.detach().topk(experts_per_token, dim=-1).indices
    load_E = torch.zeros(num_experts, device=logits_NE.device).index_add(
        0, chosen_NK.flatten(), weight_N.repeat_interleave(experts_per_token)
    ) / (tokens * experts_per_token)
    probability_E = (p_NE * weight_N[:, None]).sum(0) / tokens
    return Routing(
        balance=num_experts * (load_E * probability_E).sum(),
        router_z=(logits_NE.logsumexp(-1).square() * weight_N).sum() / tokens,
        load_max_over_mean=num_experts * load_E.max(),
        dead_experts=(load_E == 0).sum().float(),
        router_entropy=(-(p_NE * log_p_NE).sum(-1) * weight_N).sum().detach() / tokens,
    )
