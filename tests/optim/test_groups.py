import pytest
import torch
from torch import nn

from utils.config.training import OptimizerConfig
from utils.optim.groups import build_optimizer, describe_groups, parameter_groups, register_mask
from utils.optim.velvet import Velvet
from utils.pipeline.errors import ConfigError


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.norm = nn.LayerNorm(4)
        self.dense = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def names(model, group):
    chosen = {id(each) for each in group["params"]}
    return [name for name, each in model.named_parameters() if id(each) in chosen]


def test_matrices_decay_and_nothing_else():
    model = Tied()
    decay, rest = parameter_groups(model, 0.1, decay_embeddings=False)
    assert names(model, decay) == ["dense.weight"] and decay["weight_decay"] == 0.1
    assert (
        names(model, rest) == ["embed.weight", "norm.weight", "norm.bias", "dense.bias"]
        and rest["weight_decay"] == 0
    )


def test_embeddings_decay_on_request():
    decay, _ = parameter_groups(Tied(), 0.1, decay_embeddings=True)
    assert len(decay["params"]) == 2


def test_fused_adamw_equals_the_written_equations():
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    config = OptimizerConfig(betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = build_optimizer(model, config, 1e-2)
    weight, m, v = model.weight.detach().double().clone(), 0.0, 0.0
    for step in range(1, 6):
        model.weight.grad = torch.randn(3, 5)
        model.bias.grad = torch.zeros(3)
        g = model.weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        weight = weight * (1 - 1e-2 * 0.1) - 1e-2 * (m / (1 - 0.9**step)) / (
            (v / (1 - 0.95**step)).sqrt() + 1e-8
        )
        optimizer.step()
    torch.testing.assert_close(model.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)
    assert optimizer.defaults["fused"]


def test_groups_are_described():
    optimizer = build_optimizer(Tied(), OptimizerConfig(), 1e-3)
    assert describe_groups(optimizer) == "decay: 1 tensors, 16 parameters; no decay: 4 tensors, 52 parameters"


class Headed(Tied):
    def get_output_embeddings(self):
        return self.head


def test_kind_decides_the_optimizer_over_the_same_groups():
    plain, ours = (
        build_optimizer(Headed(), OptimizerConfig(kind=kind), 1e-3) for kind in ("adamw", "velvet")
    )
    assert isinstance(plain, torch.optim.AdamW) and isinstance(ours, Velvet)
    assert describe_groups(plain) == describe_groups(ours)
    assert [group["names"] for group in plain.param_groups] == [
        ["dense.weight"],
        ["dense.bias", "embed.weight", "norm.bias", "norm.weight"],
    ]


def test_adamw_refuses_what_it_would_ignore():
    masked = Headed()
    register_mask(masked.dense, "weight", torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="adamw knows nothing of the mask of dense.weight"):
        build_optimizer(masked, OptimizerConfig(), 1e-3)
    with pytest.raises(ConfigError, match="adamw knows nothing of fp32 masters"):
        build_optimizer(Headed().to(torch.bfloat16), OptimizerConfig(), 1e-3)
    assert isinstance(build_optimizer(masked, OptimizerConfig(kind="velvet"), 1e-3), Velvet)
