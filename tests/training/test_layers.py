"""Layers that are recomputed or compiled compute what they computed before."""

import pytest
import torch

from tests.training.test_routing import tiny
from tests.training.toy_stage import CountingRows, toy_model
from utils.config.adapter import AdapterConfig
from utils.training import layers
from utils.training.layers import compile_layers, decoder_layers, recompute_layers, restore_layers
from utils.training.loss import LossModel, next_token_loss
from utils.training.precision import FP32


def fly():
    model = tiny("vesper", num_experts=1, experts_per_token=1)
    model.adapt(AdapterConfig(kind="fly", rank=8, active_ranks=2, train_base=True), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.1)
    return model


MODELS = {
    "llama": toy_model,
    "dropout": lambda: toy_model(dropout=0.2),
    "mixtral": lambda: tiny("llama"),
    "vesper experts": lambda: tiny("vesper"),
    "vesper fly": fly,
}


def step(model):
    """Loss, auxiliary, extras, gradients and counts of one pass; how often a layer ran."""
    calls = []
    hook = decoder_layers(model)[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    sums = LossModel(model, next_token_loss, FP32).train()(CountingRows().rows(range(4)))
    total = sums.loss_sum if sums.auxiliary is None else sums.loss_sum + sums.auxiliary
    total.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.requires_grad}
    model.zero_grad()
    hook.remove()
    counts = [module.counts for module in model.modules() if hasattr(module, "counts")]
    return total.detach(), dict(sums.extras), gradients, counts, len(calls)


def assert_same(ours, theirs, tolerance):
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    for part in (1, 2):
        for name, value in ours[part].items():
            torch.testing.assert_close(value, theirs[part][name], rtol=tolerance, atol=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(ours[3], theirs[3], strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_recomputed_layers_give_the_same_step_and_count_once(name):
    expected, model = step(MODELS[name]()), MODELS[name]()
    recompute_layers(model)
    found = step(model)
    assert_same(found, expected, 1e-6)
    assert (expected[4], found[4]) == (1, 2), "nothing was recomputed"
    if name == "vesper fly":
        assert found[3] and all(int(each.sum()) > 0 for each in found[3])


@pytest.mark.parametrize("name", ["llama", "vesper experts"])
def test_compiled_layers_give_the_same_step_in_training_only(name, monkeypatch):
    used = []

    def backend(graph, inputs):
        used.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(layers, "BACKEND", backend)
    expected, model = step(MODELS[name]()), MODELS[name]()
    names = list(model.state_dict())
    compile_layers(model)
    assert_same(step(model), expected, 1e-4)
    assert list(model.state_dict()) == names and used
    seen = len(used)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)
    assert len(used) == seen, "a sample was compiled"
    restore_layers(model.train())
    step(model)
    assert len(used) == seen
    torch._dynamo.reset()


@pytest.mark.slow
def test_inductor_agrees_with_eager():
    expected, model = step(toy_model()), toy_model()
    compile_layers(model)
    assert_same(step(model), expected, 1e-4)
    torch._dynamo.reset()
