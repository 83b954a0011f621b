"""Adapters against PEFT, against their definition written as loops, and in what they must leave alone."""

import copy

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from utils.config.adapter import AdapterConfig
from utils.models.flylora import (
    DenseAdapter,
    FlyAdapter,
    attach_adapters,
    counted_selections,
    merge_adapters,
)
from utils.models.ranks import choose_ranks, rebalance
from utils.pipeline.errors import ConfigError

DENSE = AdapterConfig(kind="dense", rank=4)
FLY = AdapterConfig(kind="fly", rank=8, active_ranks=3)


class Gated(nn.Module):
    """A small FFN with a layer that no target names."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(24, 40, bias=False) for _ in range(2))
        self.down_proj, self.other = nn.Linear(40, 24, bias=False), nn.Linear(24, 24)

    def forward(self, x):
        return self.other(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))


def adapted(config, seed=0, model=None, stirred=True):
    """A model with adapters whose B is no longer zero."""
    torch.manual_seed(seed)
    model = Gated() if model is None else model
    attach_adapters(model, config, seed)
    if stirred:
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                nn.init.normal_(parameter, std=0.1)
    return model


def layer(config, inputs=24, outputs=40, dtype=torch.float32):
    torch.manual_seed(0)
    kind = {"dense": DenseAdapter, "fly": FlyAdapter}[config.kind]
    made = kind(nn.Linear(inputs, outputs, bias=False), config, torch.Generator().manual_seed(0))
    nn.init.normal_(made.lora_B, std=0.1)
    return made.to(dtype)


def fly_by_hand(made, x, score):
    """The definition, token by token and rank by rank, in fp64."""
    rank, entries = made.values.shape
    out = x.double() @ made.weight.double().T
    for token in range(x.shape[0]):
        z = [
            sum(float(made.values[i, j]) * x[token, int(made.columns[i, j])].double() for j in range(entries))
            for i in range(rank)
        ]
        scores = [score(float(z[i]), float(made.offsets[i])) for i in range(rank)]
        best = sorted(range(rank), key=lambda i: (-scores[i], i))[: made.config.num_active_ranks]
        update = sum(made.lora_B[:, i].double() * z[i] for i in best)
        out[token] = out[token] + made.config.scale * update
    return out


SCORES = {
    "magnitude": lambda z, d: abs(z) + d,
    "published": lambda z, d: abs(z + d),
    "off": lambda z, d: abs(z),
}


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
def test_a_fresh_adapter_changes_nothing(config):
    x = torch.randn(5, 24)
    torch.manual_seed(3)
    plain = Gated()
    expected = plain(x)
    model = adapted(config, model=plain, stirred=False)
    assert torch.equal(model(x), expected)
    kinds = [type(each) for each in (model.gate_proj, model.down_proj, model.other)]
    kind = DenseAdapter if config.kind == "dense" else FlyAdapter
    assert kinds == [kind, kind, nn.Linear]


def test_dense_equals_peft_in_output_and_gradients():
    model, x = adapted(DENSE.model_copy(update={"train_base": True})), torch.randn(7, 24)
    shape = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])
    plain = Gated()
    plain.load_state_dict(model.state_dict(), strict=False)
    theirs = peft.get_peft_model(plain, shape).base_model.model.requires_grad_(True)
    for name in ("gate_proj", "up_proj", "down_proj"):
        mine, other = getattr(model, name), getattr(theirs, name)
        other.lora_A["default"].weight.data.copy_(mine.lora_A)
        other.lora_B["default"].weight.data.copy_(mine.lora_B)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-6)
    model(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name in ("gate_proj", "up_proj", "down_proj"):
        mine, other = getattr(model, name), getattr(theirs, name)
        pairs = [(mine.weight, other.base_layer.weight)]
        pairs += [
            (mine.lora_A, other.lora_A["default"].weight),
            (mine.lora_B, other.lora_B["default"].weight),
        ]
        for one, two in pairs:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-5)


def test_one_product_and_three_agree_in_output_and_all_gradients():
    made, x = layer(DENSE), torch.randn(37, 24, requires_grad=True)
    leaves, grad = (x, made.weight, made.lora_A, made.lora_B), torch.randn(37, 40)
    three = x @ made.weight.T + made.config.scale * (x @ made.lora_A.T) @ made.lora_B.T
    one = made(x)
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(each, leaves, grad) for each in (one, three))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_dense_starts_uniform_within_its_bound():
    made = layer(AdapterConfig(kind="dense", rank=64), inputs=400)
    assert made.lora_A.abs().max() <= 0.05 and made.lora_A.std().item() == pytest.approx(
        0.05 / 3**0.5, rel=0.02
    )


def test_dropout_hides_inputs_from_the_adapter_only_and_only_in_training():
    made = layer(AdapterConfig(kind="dense", rank=4, dropout=0.5)).requires_grad_(False)
    x = torch.randn(7, 24)
    assert torch.equal(made.eval()(x), made(x))
    noisy = made.train()(x)
    update = noisy - F.linear(x, made.weight)
    assert not torch.allclose(noisy, made.eval()(x))
    assert torch.linalg.matrix_rank(update) <= 4


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
@pytest.mark.parametrize("train_base", [False, True])
def test_what_trains(config, train_base):
    model = adapted(config.model_copy(update={"train_base": train_base}))
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    own = {name for name, _ in model.named_parameters() if "lora_" in name}
    plain = {name for name, _ in Gated().named_parameters()}
    assert trained == (own | plain if train_base else own)
    assert {name.rpartition(".")[2] for name in own} == (
        {"lora_A", "lora_B"} if config.kind == "dense" else {"lora_B"}
    )
    assert plain <= set(model.state_dict())


@pytest.mark.parametrize("density", [None, 0.01, 1.0])
def test_rows_of_a_hold_p_entries_at_distinct_places(density):
    made = layer(AdapterConfig(kind="fly", rank=8, active_ranks=3, density=density))
    expected = {None: 9, 0.01: 1, 1.0: 24}[density]
    assert made.columns.dtype == torch.int32 and made.values.dtype == torch.float32
    assert made.columns.shape == made.values.shape == (8, expected)
    assert all(len(set(row.tolist())) == expected for row in made.columns)
    assert ((made.projection() != 0).sum(1) == expected).all()


def test_values_of_a_have_deviation_one_over_r():
    made = layer(AdapterConfig(kind="fly"), inputs=2048)
    assert made.values.std() == pytest.approx(1 / 32, rel=0.02)
    assert made.values.mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("balance", ["magnitude", "published", "off"])
def test_fly_is_its_definition(balance):
    made = layer(FLY.model_copy(update={"balance": balance}))
    made.offsets.copy_(0.05 * torch.randn(8))
    x = torch.randn(11, 24)
    torch.testing.assert_close(made(x).double(), fly_by_hand(made, x, SCORES[balance]), rtol=1e-5, atol=1e-5)


def test_fly_gradients_in_double_precision():
    made = layer(FLY, dtype=torch.float64)
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: made(x), (x, made.lora_B, made.weight))


def test_ties_go_to_the_lower_rank():
    made = layer(FLY)
    z = torch.tensor([[0.0] * 8, [0, 0, 0, 0, 0, 2, -2, 2], [1, -3, 1, 1, 3, 1, 1, 1]])
    chosen = choose_ranks(z, made.offsets, made.config)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [
        [0, 1, 2],
        [5, 6, 7],
        [0, 1, 4],
    ]


def test_a_is_the_same_for_the_same_seed_and_differs_between_layers():
    one, two, other = adapted(FLY, seed=0), adapted(FLY, seed=0), adapted(FLY, seed=1)
    assert torch.equal(one.gate_proj.projection(), two.gate_proj.projection())
    assert not torch.equal(one.gate_proj.projection(), one.up_proj.projection())
    assert not torch.equal(one.gate_proj.projection(), other.gate_proj.projection())


def test_a_and_frozen_weights_stay_bit_identical_while_b_learns():
    model = adapted(FLY, stirred=False)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    before, x, target = copy.deepcopy(model.state_dict()), torch.randn(32, 24), torch.randn(32, 24)
    losses = []
    for _ in range(50):
        with counted_selections(model, torch.ones(32, dtype=torch.bool)):
            loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rebalance(model)
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same != name.endswith(("lora_B", "offsets")), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_counts_come_from_the_first_forward_only_and_from_trained_tokens(reentrant):
    model, x = adapted(FLY), torch.randn(2, 9, 24, requires_grad=True)
    trained = torch.rand(2, 9) < 0.6
    found = []
    for recompute in (False, True):
        with counted_selections(model, trained):
            y = checkpoint(model, x, use_reentrant=reentrant) if recompute else model(x)
        y.square().sum().backward()
        found.append([each.counts.clone() for each in (model.gate_proj, model.down_proj)])
        gradient = model.gate_proj.lora_B.grad.clone()
        found[-1].append(gradient)
        model.zero_grad()
        for each in (model.gate_proj, model.up_proj, model.down_proj):
            each.counts = None
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][0].sum() == 3 * trained.sum()
    gate = model.gate_proj
    expected = choose_ranks(F.linear(x, gate.projection()), gate.offsets, gate.config)[trained].sum(0)
    assert torch.equal(found[0][0], expected)


def test_nothing_is_counted_outside_and_micro_batches_add_up():
    model, x = adapted(FLY), torch.randn(8, 24)
    model(x)
    assert model.gate_proj.counts is None
    everywhere = torch.ones(8, dtype=torch.bool)
    with counted_selections(model, everywhere):
        model(x)
    whole = model.gate_proj.counts
    model.gate_proj.counts = None
    for part in x.split(4):
        with counted_selections(model, everywhere[:4]):
            model(part)
    assert torch.equal(model.gate_proj.counts, whole)


def test_rebalance_moves_each_offset_one_step_towards_the_mean():
    model = adapted(FLY.model_copy(update={"balance_step": 0.5}))
    model.gate_proj.counts = torch.tensor([9, 0, 3, 3, 3, 3, 3, 0])
    rebalance(model)
    assert model.gate_proj.offsets.tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0.5]
    assert model.gate_proj.counts is None and not model.up_proj.offsets.any()


def test_a_skipped_step_moves_no_offset_and_forgets_its_counts():
    """A row of NaN has scores all the same, so it chooses some ranks."""
    model = adapted(FLY)
    for skipped, x in ((True, torch.full((8, 24), torch.nan)), (False, torch.randn(8, 24))):
        before = model.gate_proj.offsets.clone()
        with counted_selections(model, torch.ones(8, dtype=torch.bool)):
            model(x)
        assert model.gate_proj.counts.any()
        rebalance(model, torch.tensor(skipped))
        assert torch.equal(model.gate_proj.offsets, before) is skipped
        assert model.gate_proj.counts is None


def _count_and_rebalance(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    made = layer(FLY)
    made.counts = torch.tensor([[8, 0, 1, 1, 1, 1, 1, 1], [0, 2, 1, 1, 1, 1, 1, 3]][rank])
    rebalance(made)
    torch.save(made.offsets, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_rebalance_by_the_sum_of_their_counts(tmp_path):
    given = (str(tmp_path / "store"), str(tmp_path))
    torch.multiprocessing.spawn(_count_and_rebalance, given, nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # sums 8 2 2 2 2 2 2 4, mean 3
    expected = torch.tensor([-1.0, 1, 1, 1, 1, 1, 1, -1]) * FLY.offset_step
    assert torch.equal(one, expected) and torch.equal(two, expected)


def load_after(balance, updates=600):
    """Busiest rank over the mean at first, and busiest and idlest over the last hundred updates."""
    config = AdapterConfig(kind="fly", balance=balance)
    made = FlyAdapter(nn.Linear(256, 8, bias=False), config, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    usual, counts = torch.randn(256, generator=generator), []
    for _ in range(updates):
        x = usual + 0.5 * torch.randn(64, 256, generator=generator)
        with counted_selections(made, torch.ones(64, dtype=torch.bool)), torch.no_grad():
            made(x)
        counts.append(made.counts.double())
        rebalance(made)
    last = sum(counts[-100:])
    return [float(each) for each in (counts[0].max() / 16, last.max() / 1600, last.min() / 1600)]


def test_magnitude_evens_out_a_skewed_load_and_the_published_score_does_not():
    first, busiest, idlest = load_after("magnitude")
    assert first > 3 and busiest <= 1.1 and idlest >= 0.9
    first, busiest, idlest = load_after("published")
    assert first > 3 and busiest > first and idlest < 0.05


@pytest.mark.parametrize(
    "config",
    [DENSE, DENSE.model_copy(update={"train_base": True}), FLY.model_copy(update={"active_ranks": 8})],
    ids=["dense", "dense with base", "fly with all ranks"],
)
def test_a_merged_model_computes_the_same_with_plain_layers(config):
    model, x = adapted(config), torch.randn(13, 24)
    expected = model(x)
    merge_adapters(model)
    assert type(model.gate_proj) is nn.Linear
    assert set(model.state_dict()) == set(Gated().state_dict())
    found = model(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_a_merge_of_bf16_weights_rounds_once():
    made = layer(DENSE, dtype=torch.bfloat16)
    w, a, b = (each.double() for each in (made.weight, made.lora_A, made.lora_B))
    exact = w + made.config.scale * b @ a
    torch.testing.assert_close(made.merged_weight().double(), exact, rtol=0.51 * 2**-7, atol=1e-6)


def test_ranks_chosen_per_token_cannot_be_merged():
    model = adapted(FLY)
    with pytest.raises(
        ConfigError, match="adapter fly, 3 of 8 ranks: depends on the token, cannot be merged"
    ):
        merge_adapters(model)
    assert isinstance(model.gate_proj, FlyAdapter)


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
def test_autocast_and_bf16_weights_stay_close(config):
    model, x = adapted(config.model_copy(update={"train_base": True})), torch.randn(64, 24)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)
    assert rough.dtype == torch.bfloat16
    assert F.cosine_similarity(rough.float(), expected, dim=1).mean() > 0.99
    low = model.bfloat16()
    assert low(x.bfloat16()).dtype == torch.bfloat16
    if config.kind == "fly":
        assert low.gate_proj.values.dtype == low.gate_proj.offsets.dtype == torch.float32
        assert low.gate_proj.columns.dtype == torch.int32


@pytest.mark.parametrize("config", [DENSE, FLY], ids=lambda each: each.kind)
def test_a_model_built_on_the_meta_device_loads_the_state_of_another(config):
    trained, x = adapted(config), torch.randn(5, 24)
    with torch.device("meta"):
        model = Gated()
        attach_adapters(model, config, seed=9)
    assert model.gate_proj.lora_B.is_meta
    model.load_state_dict(trained.state_dict(), assign=True)
    assert torch.equal(model(x), trained(x))


def test_a_target_that_names_nothing_and_a_second_adapter_are_refused():
    with pytest.raises(ConfigError, match='no linear layer is called "q_proj"') as refused:
        attach_adapters(Gated(), DENSE.model_copy(update={"targets": ("up_proj", "q_proj")}), 0)
    assert refused.value.fix == "available: down_proj, gate_proj, other, up_proj"
    with pytest.raises(ConfigError, match="has adapters already"):
        attach_adapters(adapted(DENSE), FLY, 0)
