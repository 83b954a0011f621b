"""Adapters of experts against their definition written as loops over tokens, experts and ranks, in fp64."""

import pytest
import torch
from torch import nn

from utils.config.adapter import AdapterConfig
from utils.models.expert_adapters import expert_weight
from utils.models.flylora import adapters_of, attach_adapters, counted_selections, merge_adapters
from utils.models.load import build_model, load_model, save_model
from utils.models.presets import count_parameters, load_architecture
from utils.models.ranks import rebalance
from utils.models.vesper import VesperConfig, VesperForCausalLM, VesperSparseMoeBlock
from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import REPOSITORY

TARGETS = ("gate_proj", "up_proj", "down_proj")
DENSE = AdapterConfig(kind="dense", rank=4)
FLY = AdapterConfig(kind="fly", rank=8, active_ranks=3)
ALL_RANKS = FLY.model_copy(update={"active_ranks": 8, "density": 0.25})
SIZES = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_local_experts": 4, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
    "num_experts_per_tok": 2,
}  # fmt: skip
IDS = torch.randint(4, 64, (2, 9), generator=torch.Generator().manual_seed(0))


def stir(model):
    generator = torch.Generator().manual_seed(1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(("lora_B", "offsets")):
            tensor.data.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model


def block(config):
    """A router and experts with adapters that do something."""
    torch.manual_seed(0)
    made = VesperSparseMoeBlock(VesperConfig(**SIZES))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    attach_adapters(made, config, seed=0)
    return stir(made)


def product(experts, target, expert, x):
    """W x + s B A x of one expert for one token; of fly the strongest ranks only."""
    adapter = experts.adapters[target]
    a, b = adapter.projection()[expert].double(), adapter.lora_B[expert].double()
    z = a @ x
    if adapter.config.kind == "fly":
        scores = (z.abs() + adapter.offsets[expert].double()).tolist()
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: adapter.config.num_active_ranks]
        z = torch.stack([z[i] if i in best else torch.zeros_like(z[i]) for i in range(len(scores))])
    return expert_weight(experts, target)[expert].double() @ x + adapter.config.scale * b @ z


def by_hand(made, hidden_ND):
    _, weights_NK, chosen_NK = made.gate(hidden_ND)
    out = []
    for token, x in enumerate(hidden_ND.double()):
        parts = []
        for weight, expert in zip(weights_NK[token].double(), chosen_NK[token].tolist(), strict=True):
            gate, up = (product(made.experts, name, expert, x) for name in ("gate_proj", "up_proj"))
            parts.append(weight * product(made.experts, "down_proj", expert, made.experts.unit(gate, up)))
        out.append(sum(parts))
    return torch.stack(out)


@pytest.mark.parametrize("config", [DENSE, FLY, ALL_RANKS], ids=["dense", "fly", "fly with all ranks"])
def test_output_and_gradients_are_the_definition(config):
    made = block(config.model_copy(update={"train_base": True}))
    hidden_ND = torch.randn(7, 16, requires_grad=True)
    leaves = [hidden_ND, *made.parameters()]
    found, expected = made(hidden_ND[None])[0], by_hand(made, hidden_ND)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(each.square().sum(), leaves) for each in (found, expected)]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("targets", [TARGETS, ("up_proj",), ("down_proj",)])
def test_where_the_base_trains_one_product_equals_three(targets, monkeypatch):
    """Output and all gradients of W + s B A, and that the separate products are not computed."""
    made = block(DENSE.model_copy(update={"train_base": True, "targets": targets}))
    hidden = torch.randn(1, 37, 16, requires_grad=True)
    leaves, grad = [hidden, *made.parameters()], torch.randn(1, 37, 16)
    separate, asked = type(made.experts)._adapted, []
    monkeypatch.setattr(type(made.experts), "_adapted", lambda *given: asked.append(1) or separate(*given))
    one = made(hidden)
    assert not asked
    monkeypatch.setattr(type(made.experts), "_trains_merged", lambda self: False)
    three = made(hidden)
    assert asked
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(each, leaves, grad) for each in (one, three))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "training", "merged"),
    [
        (DENSE.model_copy(update={"train_base": True}), True, True),
        (DENSE, True, False),
        (DENSE.model_copy(update={"train_base": True, "dropout": 0.5}), True, False),
        (DENSE.model_copy(update={"train_base": True, "dropout": 0.5}), False, True),
        (ALL_RANKS.model_copy(update={"train_base": True}), True, False),
    ],
)
def test_when_one_product_serves_base_and_adapters(config, training, merged):
    experts = block(config).train(training).experts
    assert experts._trains_merged() is merged
    with torch.no_grad():
        assert not experts._trains_merged()


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
def test_a_fresh_adapter_changes_nothing_and_differs_between_experts(config):
    torch.manual_seed(0)
    made, x = VesperSparseMoeBlock(VesperConfig(**SIZES)), torch.randn(1, 5, 16)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    before = made(x)
    attach_adapters(made, config, seed=0)
    torch.testing.assert_close(made(x), before, rtol=1e-6, atol=1e-6)
    assert len(list(adapters_of(made))) == 3
    a = made.experts.adapters["up_proj"].projection()
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], made.experts.adapters["gate_proj"].projection()[0])


def test_each_expert_counts_the_ranks_of_its_real_tokens_and_evens_them_out():
    made, x = block(FLY), torch.randn(2, 9, 16)
    real = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    with counted_selections(made, real):
        made(x)
    _, _, chosen_NK = made.gate(x.flatten(0, 1))
    rows_E = torch.stack([(chosen_NK[real.flatten()] == expert).sum() for expert in range(4)])
    adapter = made.experts.adapters["down_proj"]
    assert adapter.counts.shape == (4, 8)
    assert torch.equal(adapter.counts.sum(1), 3 * rows_E)
    before, counts = adapter.offsets.clone(), adapter.counts.double()
    rebalance(made)
    moved = ((adapter.offsets - before) / FLY.offset_step).round()
    assert torch.equal(moved, (counts.mean(1, keepdim=True) - counts).sign().float())
    assert adapter.counts is None
    made(x)
    assert adapter.counts is None


@pytest.mark.parametrize("config", [DENSE, ALL_RANKS], ids=lambda each: each.kind)
def test_merged_experts_compute_the_same_without_adapters(config):
    made, x = block(config), torch.randn(1, 11, 16)
    names, expected = set(VesperSparseMoeBlock(VesperConfig(**SIZES)).state_dict()), made(x)
    merge_adapters(made)
    assert set(made.state_dict()) == names and not list(adapters_of(made))
    torch.testing.assert_close(made(x), expected, rtol=1e-5, atol=1e-5)


def test_ranks_chosen_per_token_are_not_merged():
    made = block(FLY)
    with pytest.raises(ConfigError, match="adapter fly, 3 of 8 ranks: depends on the token"):
        merge_adapters(made)
    assert len(made.experts.adapters) == 3


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
def test_a_model_is_counted_and_survives_the_disk(tmp_path, config):
    config = config.model_copy(update={"targets": (*TARGETS, "q_proj")})
    shape = load_architecture("vesper_tiny_moe", REPOSITORY)
    shape = shape.model_copy(update={"adapter": config, "num_layers": 1})
    large = build_model(shape, 512, {})
    large.adapt(config, seed=0)
    found = count_parameters(shape, 512)
    assert sum(each.numel() for each in large.parameters()) == found.total
    ffn = config.rank * (3 * 768 if config.kind == "dense" else 0)
    ffn += config.rank * (2 * 768 + 256 + (0 if config.kind == "fly" else 2 * 256 + 768 - 3 * 768))
    assert found.body - found.active == 2 * (3 * 256 * 768 + ffn)

    torch.manual_seed(0)
    model = VesperForCausalLM(VesperConfig(**SIZES)).eval()
    model.adapt(config, seed=3)
    stir(model)
    with torch.no_grad():
        before = model(input_ids=IDS).logits
        save_model(model, tmp_path)
        loaded = load_model(tmp_path).eval()
        assert torch.equal(loaded(input_ids=IDS).logits, before)


def test_in_low_precision_ranks_are_still_scored_in_fp32():
    made, x = block(FLY), torch.randn(1, 40, 16)
    expected = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
    assert nn.functional.cosine_similarity(rough.float(), expected, dim=-1).mean() > 0.99
    low = made.bfloat16()
    adapter = low.experts.adapters["up_proj"]
    assert adapter.values.dtype == adapter.offsets.dtype == torch.float32
    assert adapter.lora_B.dtype == low(x.bfloat16()).dtype == torch.bfloat16
