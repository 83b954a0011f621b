"""The terms that balance experts: their values, their gradient, and where they must not show."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from utils.models.llama import initialise
from utils.models.load import build_model
from utils.models.presets import load_architecture
from utils.pipeline.workspace import REPOSITORY
from utils.training.gradients import GradientStep
from utils.training.loss import LossModel, mean_loss, next_token_loss
from utils.training.precision import FP32
from utils.training.routing import describe_routing

EVERY = torch.ones(24, dtype=torch.bool)


@dataclass
class Rows:
    """Two rows of 13 ids: one document each, the second padded."""

    tokens: torch.Tensor
    document: torch.Tensor
    position: torch.Tensor


def rows() -> Rows:
    tokens = torch.randint(4, 64, (2, 13), generator=torch.Generator().manual_seed(0))
    document = torch.tensor([[0] * 13, [1] * 7 + [-1] * 6])
    return Rows(tokens, document, torch.arange(13).repeat(2, 1))


def tiny(family: str, **moe: float):
    shape = load_architecture("tiny_moe", REPOSITORY)
    sizes = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "ffn_size": 32}
    experts = shape.moe.model_copy(update={"num_experts": 4, **moe})
    shape = shape.model_copy(update=sizes | {"family": family, "num_layers": 2, "moe": experts})
    model = build_model(shape, 64, {"bos": 1, "eos": 2, "pad": 3})
    initialise(model, shape, seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight.mul_(50)
    return model.train()


@pytest.mark.parametrize("masked", [False, True])
def test_the_balance_is_that_of_transformers_for_one_layer(masked):
    logits = 2 * torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    real = EVERY.clone()
    real[-5:] = not masked
    theirs = load_balancing_loss_func((logits,), 6, 2, real[None].long())
    assert describe_routing(logits, 2, real).balance == pytest.approx(float(theirs) / 2, rel=1e-5)


def test_an_even_router_has_balance_one_and_a_collapsed_one_more():
    even = describe_routing(torch.zeros(24, 4), 2, EVERY)
    assert float(even.balance) == pytest.approx(1.0)
    assert float(even.router_entropy) == pytest.approx(torch.tensor(4.0).log())
    assert float(even.router_z) == pytest.approx(torch.tensor(4.0).log().square())
    collapsed = torch.zeros(24, 4)
    collapsed[:, 2] = 50
    found = describe_routing(collapsed, 1, EVERY)
    assert float(found.balance) == pytest.approx(4.0)
    assert (float(found.load_max_over_mean), float(found.dead_experts)) == (4.0, 3.0)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", ["llama", "vesper"])
def test_they_enter_the_gradient_and_not_the_loss(family, checkpointed):
    model, batch = tiny(family), rows()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sums = LossModel(model, next_token_loss, FP32)(batch)
    plain = next_token_loss(model, batch)
    assert torch.equal(sums.loss_sum, plain.loss_sum) and plain.auxiliary is None
    real = (batch.document[:, :-1] >= 0).flatten()
    out = model.model(
        input_ids=batch.tokens[:, :-1],
        position_ids=batch.position[:, :-1],
        use_cache=False,
        output_router_logits=True,
    )
    expected = 0.0
    for logits in out.router_logits:
        logits = logits[real]
        p = F.softmax(logits, -1)
        share = F.one_hot(p.topk(2).indices, 4).sum((0, 1)) / (2 * len(p))
        balance = 4 * (share * p.mean(0)).sum()
        expected = expected + (0.01 * balance + 0.001 * logits.logsumexp(-1).square().mean()) / 2
    expected = expected * plain.count.float()
    torch.testing.assert_close(sums.auxiliary, expected)
    router = model.model.layers[0].mlp.gate.weight
    found, wanted = (torch.autograd.grad(each, router)[0] for each in (sums.auxiliary, expected))
    torch.testing.assert_close(found, wanted)
    assert found.abs().sum() > 0


class OneProcess:
    num_ranks = 1


def test_the_step_descends_on_both():
    """What is accumulated is the gradient of loss_sum + auxiliary."""
    model, batch = tiny("vesper"), rows()
    wrapped = LossModel(model, next_token_loss, FP32)
    parts = (wrapped, None, dict(model.named_parameters()), FP32.scaler(), OneProcess())
    step = GradientStep(*parts, 1.0, lambda: False)
    sums = wrapped(batch)
    router = model.model.layers[1].mlp.gate.weight
    (wanted,) = torch.autograd.grad((sums.loss_sum + sums.auxiliary) / 18, router)
    step.accumulate([batch], torch.tensor(18.0, dtype=torch.float64))
    torch.testing.assert_close(router.grad, wanted)


def test_evaluation_knows_nothing_of_them():
    model, batch = tiny("vesper", balance_coefficient=100.0), rows()
    assert LossModel(model, next_token_loss, FP32).eval()(batch).extras == {}
    quiet = tiny("vesper", balance_coefficient=0.0)
    assert mean_loss(model, [batch]) == mean_loss(quiet, [batch])


def test_training_on_the_balance_evens_the_load():
    torch.manual_seed(0)
    hidden_ND, router = torch.randn(512, 16), torch.nn.Linear(16, 6, bias=False)
    hidden_ND[:, 0] += 2
    torch.nn.init.normal_(router.weight)
    optimizer = torch.optim.SGD(router.parameters(), lr=0.3)
    real, balances = torch.ones(512, dtype=torch.bool), []
    for _ in range(100):
        found = describe_routing(router(hidden_ND), 2, real)
        balances.append(found.balance.item())
        found.balance.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert balances[0] > 1.15 and balances[-1] < 1.1
    assert float(found.load_max_over_mean) < 2
