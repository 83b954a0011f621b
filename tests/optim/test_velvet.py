"""Velvet against torch's AdamW, against its own equations in numpy, and against what must never happen."""

import math

import pytest
import torch
from torch import nn

from kernels.linear_cross_entropy import Signals
from utils.config.training import EntropyConfig, OptimizerConfig, PerplexityConfig
from utils.optim.groups import parameter_groups, register_mask
from utils.optim.velvet import FollowPredictions, Velvet
from utils.pipeline.errors import ConfigError, StageError

VOCAB, RATE = 50, 1e-2
SAYS = Signals(300.0, 200.0, 100.0)
OFF = {"entropy": EntropyConfig(enabled=False), "perplexity": PerplexityConfig(enabled=False)}


def config(**values):
    return OptimizerConfig(kind="velvet", **{"max_gradient_norm": 1e9} | values)


class Shapes(nn.Module):
    """Three shapes: a matrix that decays, a cube that decays, a vector that does not."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))

        self.matrix, self.cube, self.vector = draw(37, 131), draw(3, 7, 65), draw(123)


def velvet(model, settings=None, rate=RATE, **more):
    settings = settings or config()
    groups = parameter_groups(model, settings.weight_decay, settings.decay_embeddings)
    return Velvet(groups, settings, rate, VOCAB, **more)


def adamw(model, settings, rate=RATE, **more):
    groups = parameter_groups(model, settings.weight_decay, settings.decay_embeddings)
    return torch.optim.AdamW(groups, lr=rate, betas=settings.betas, eps=settings.epsilon, **more)


def set_gradients(models, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    drawn = None
    for model in models:
        drawn = drawn or [
            scale * torch.randn(each.shape, generator=generator, dtype=torch.float64)
            for each in model.parameters()
        ]
        for parameter, gradient in zip(model.parameters(), drawn, strict=True):
            parameter.grad = gradient.to(parameter.dtype)


def assert_same(one, other, tolerance):
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * float(b.detach().abs().max()), msg=name
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("fused", [True, False])
def test_controls_off_is_adamw_over_200_steps(dtype, tolerance, fused):
    """O1. Unfused fp32 AdamW rounds in another order, so it is held to a looser bound."""
    ours, theirs = Shapes(dtype), Shapes(dtype)
    settings = config(**OFF)
    optimizers = velvet(ours, settings), adamw(theirs, settings, fused=fused)
    for step in range(200):
        set_gradients([ours, theirs], step)
        optimizers[0].step(SAYS)
        optimizers[1].step()
    assert_same(ours, theirs, tolerance if fused or dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_constant_factor_is_another_learning_rate_decay_included(factor):
    """O2."""
    ours, theirs = Shapes(torch.float64), Shapes(torch.float64)
    settings = config(weight_decay=0.3)
    optimizers = (
        velvet(ours, settings, controls=lambda *_: (factor, settings.betas[0])),
        adamw(theirs, settings, rate=factor * RATE),
    )
    for step in range(30):
        set_gradients([ours, theirs], step)
        optimizers[0].step(SAYS)
        optimizers[1].step()
    assert_same(ours, theirs, 1e-12)


def test_a_constant_gradient_is_its_own_corrected_mean_for_any_betas():
    """O3: the moment over 1 - q is the gradient, whatever b did."""
    model = Shapes(torch.float64)
    generator = torch.Generator().manual_seed(0)
    optimizer = velvet(model, controls=lambda *_: (1.0, float(0.98 * torch.rand((), generator=generator))))
    constant = [torch.randn_like(each) for each in model.parameters()]
    for _ in range(500):
        for parameter, gradient in zip(model.parameters(), constant, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step(SAYS)
        for parameter, gradient in zip(model.parameters(), constant, strict=True):
            moment = optimizer.state[parameter]["m"] / (1 - optimizer.run.decayed)
            torch.testing.assert_close(moment, gradient, rtol=1e-12, atol=1e-14)


def test_zeros_that_are_parameters_move_at_the_first_step():
    """O4: sparsity is declared, never inferred from values."""
    model = Shapes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    set_gradients([model], 0)
    velvet(model).step(SAYS)
    assert all((parameter != 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("where", ["gradient", "signal", "found_inf"])
def test_what_is_not_finite_changes_nothing_but_a_counter(implementation, where):
    """O6."""
    model = Shapes()
    optimizer = velvet(model, implementation=implementation)
    for step in range(3):
        set_gradients([model], step)
        optimizer.step(SAYS)
    before = {name: each.clone() for name, each in optimizer.state_dict().items()}
    weights = [each.detach().clone() for each in model.parameters()]
    set_gradients([model], 3)
    says = SAYS
    if where == "gradient":
        model.cube.grad[1, 2, 3] = math.inf
    if where == "signal":
        says = SAYS._replace(nll_sum=math.nan)
    if where == "found_inf":
        optimizer.found_inf = torch.ones(1)
    optimizer.step(says)
    assert optimizer.report()["skipped"] == 1
    after = optimizer.state_dict()
    skipped = optimizer.run._fields.index("skipped")
    assert after["run"][skipped] == before["run"][skipped] + 1
    after["run"] = after["run"].index_fill(0, torch.tensor(skipped), float(before["run"][skipped]))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


def steps(optimizer, model, first, last):
    for step in range(first, last):
        set_gradients([model], step, scale=1 + step % 3)
        optimizer.step(Signals(100 * (3 - 0.05 * step), 150.0 + step, 100.0), warming=step < 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_continues_to_the_same_bits_in_any_order(dtype):
    """O7."""
    whole, half = Shapes(dtype), Shapes(dtype)
    one = velvet(whole, config(max_gradient_norm=1.0))
    steps(one, whole, 0, 12)
    two = velvet(half, config(max_gradient_norm=1.0))
    steps(two, half, 0, 5)
    saved = {name: each.clone() for name, each in two.state_dict().items()}
    again = Shapes(dtype, seed=9)
    again.load_state_dict(half.state_dict())
    settings = config(max_gradient_norm=1.0)
    groups = parameter_groups(again, settings.weight_decay, settings.decay_embeddings)
    for group in groups:
        for column in ("params", "names", "masks"):
            group[column].reverse()
    three = Velvet(list(reversed(groups)), settings, RATE, VOCAB)
    three.load_state_dict(saved)
    steps(three, again, 5, 12)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    ours, theirs = one.state_dict(), three.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    assert ours["m/matrix"].dtype == torch.float32 and ours["run"].dtype == torch.float64
    assert ("master/matrix" in ours) == (dtype == torch.bfloat16)


def test_state_that_does_not_fit_is_named():
    model = Shapes()
    optimizer = velvet(model)
    steps(optimizer, model, 0, 1)
    saved = optimizer.state_dict()
    cases = [
        ({k: v for k, v in saved.items() if k != "v/cube"}, "tensor v/cube is missing"),
        (saved | {"m/odd": torch.zeros(1)}, "tensor m/odd belongs to no parameter"),
        (saved | {"m/cube": torch.zeros(2)}, r"tensor m/cube is \(2,\), not \(3, 7, 65\)"),
    ]
    for tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            velvet(Shapes()).load_state_dict(tensors)
    with pytest.raises(ValueError, match="optimizer with other settings"):
        velvet(Shapes(), config(smoothing=0.5)).load_state_dict(saved)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e6])
def test_clip_factor_is_that_of_clip_grad_norm(norm):
    """O8 for one process; test_shards.py has two. The first moment after a step is (1 - b) c g."""
    ours, theirs = Shapes(), Shapes()
    set_gradients([ours, theirs], 0, scale=3.0)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), norm)
    optimizer = velvet(ours, config(max_gradient_norm=norm, **OFF))
    optimizer.step(SAYS)
    assert optimizer.report()["grad_norm"] == pytest.approx(float(expected), rel=1e-6)
    for parameter, clipped in zip(ours.parameters(), theirs.parameters(), strict=True):
        moment = optimizer.state[parameter]["m"] / (1 - 0.9)
        torch.testing.assert_close(moment, clipped.grad, rtol=2e-6, atol=0)


def test_bf16_parameters_with_masters_follow_the_fp32_run():
    """O9: 300 steps of a small regression; a norm that starts at 1 leaves it, which bf16 alone would not."""

    def run(dtype):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 4)).to(dtype)
        inputs, wanted = torch.randn(256, 16), torch.randn(16, 4)
        targets = torch.tanh(inputs @ wanted)
        for parameter in model.parameters():
            parameter.grad_dtype = torch.float32
        optimizer = velvet(model, config(max_gradient_norm=1.0), rate=1e-3)
        for _ in range(300):
            loss = (model(inputs.to(dtype)).float() - targets).square().mean()
            loss.backward()
            optimizer.step(SAYS)
            optimizer.zero_grad()
        return float(loss.detach()), model, optimizer

    exact, _, _ = run(torch.float32)
    rough, model, optimizer = run(torch.bfloat16)
    assert abs(exact - rough) < 1e-2 and exact < 0.1
    assert (model[1].weight != 1).float().mean() > 0.5
    master = optimizer.state[model[1].weight]["master"]
    assert master.dtype == torch.float32 and torch.equal(model[1].weight, master.bfloat16())


def test_replay_of_logged_rates_and_betas_reproduces_the_run():
    """O11: AdamW's equations, written here, fed the logged (eta, b)."""
    model, copy = Shapes(torch.float64), Shapes(torch.float64)
    optimizer = velvet(model)
    weights = [each.detach().clone() for each in copy.parameters()]
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in weights]
    product, etas = 1.0, []
    for step in range(40):
        set_gradients([model], step, scale=0.1 + step % 3)
        gradients = [each.grad.clone() for each in model.parameters()]
        optimizer.step(Signals(100 * (5 - 0.1 * step), 380 - 9.0 * step, 100.0), warming=step < 4)
        said = optimizer.report()
        eta, b = said["eta"], said["b"]
        etas.append(eta)
        product *= b
        for i, (p, g) in enumerate(zip(weights, gradients, strict=True)):
            m, v = moments[i]
            m, v = b * m + (1 - b) * g, 0.95 * v + 0.05 * g**2
            moments[i] = m, v
            if p.ndim > 1:
                p.mul_(1 - eta * 0.1)
            p.sub_(eta * (m / (1 - product)) / ((v / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
    assert len(set(etas)) > 10  # the controls moved
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=1e-12, atol=1e-13)


def test_replay_through_velvet_itself_is_exact():
    """O11 as the benchmark uses it: the same kernel, the controls replaced by the log."""
    model, copy = Shapes(), Shapes()
    optimizer, log = velvet(model, config(max_gradient_norm=1.0)), []
    for step in range(30):
        set_gradients([model], step)
        optimizer.step(Signals(100 * (5 - 0.1 * step), 380 - 9.0 * step, 100.0), warming=step < 4)
        log.append(optimizer.report())
    entries = iter(log)
    entry = {}
    replay = velvet(copy, config(max_gradient_norm=1.0), controls=lambda *_: (1.0, entry["b"]))
    for step in range(30):
        set_gradients([copy], step)
        entry = next(entries)
        for group in replay.param_groups:
            group["lr"] = entry["eta"]
        replay.step(SAYS)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_signals_are_averaged_without_bias_and_act_in_their_own_step():
    """By hand: smoothing, correction, controls, warm-up."""
    model = Shapes()
    settings = config(smoothing=0.9, perplexity=PerplexityConfig(baseline=20.0), entropy=EntropyConfig())
    optimizer = velvet(model, settings)
    nats = fraction = 0.0
    for step, (ce, entropy) in enumerate([(3.5, 2.0), (3.2, 2.2), (2.0, 1.1), (1.0, 0.9), (0.5, 0.1)], 1):
        set_gradients([model], step)
        optimizer.step(Signals(ce * 70, entropy * 70, 70.0), warming=step < 3)
        said = optimizer.report()
        nats, fraction = 0.9 * nats + 0.1 * ce, 0.9 * fraction + 0.1 * entropy / math.log(VOCAB)
        ce_hat, h_hat = nats / (1 - 0.9**step), fraction / (1 - 0.9**step)
        s = min(max(h_hat / 0.5, 0.7), 1.3)
        b = 1 - 0.1 * min(max(math.sqrt(math.exp(ce_hat) / 20), 0.5), 2)
        b = min(max(b, 0.5), min(0.98, math.sqrt(0.95) - 0.005))
        s, b = (1.0, 0.9) if step < 3 else (s, b)
        assert said["s"] == pytest.approx(s, rel=1e-12) and said["b"] == pytest.approx(b, rel=1e-12)
        assert said["eta"] == pytest.approx(RATE * s) and said["entropy"] == pytest.approx(
            entropy / math.log(VOCAB)
        )
    assert s != 1 and b != 0.9


def test_the_loss_can_stand_for_the_entropy():
    settings = config(smoothing=0.0, entropy=EntropyConfig(source="loss"))
    assert not settings.follows_entropy and config().follows_entropy
    model = Shapes()
    optimizer = velvet(model, settings)
    set_gradients([model], 0)
    optimizer.step(Signals(2.2 * 10, math.nan, 10.0))
    assert optimizer.report()["s"] == pytest.approx(2.2 / math.log(VOCAB) / 0.5)
    assert "entropy" not in optimizer.report()


def test_beta1_moves_slowly_enough_over_all_perplexities():
    """At most 0.01 for a tenth of a nat, from 0 to 11 nats."""
    follow = FollowPredictions(config())
    nats = torch.arange(0, 11, 0.1, dtype=torch.float64)
    betas = follow(nats, torch.ones_like(nats))[1]
    assert float(betas.diff().abs().max()) <= 0.01
    assert betas[0] > 0.9 > betas[-1] and (betas.diff() <= 0).all()
    reverse = FollowPredictions(config(perplexity=PerplexityConfig(exponent=-0.5)))
    assert (reverse(nats, nats)[1].diff() >= 0).all()


def test_masked_entries_keep_every_bit_and_get_no_decay():
    model = Shapes()
    mask = torch.rand(37, 131) > 0.5
    register_mask(model, "matrix", mask)
    before = model.matrix.detach().clone()
    optimizer = velvet(model)
    steps(optimizer, model, 0, 5)
    assert torch.equal(model.matrix[~mask], before[~mask]) and (model.matrix[mask] != before[mask]).all()
    assert (optimizer.state[model.matrix]["m"][~mask] == 0).all()
    assert "matrix_structural_mask" not in model.state_dict()
    with pytest.raises(ConfigError, match="the mask of vector must be boolean of shape"):
        register_mask(model, "vector", mask)


def test_no_state_before_the_first_step_and_none_is_a_fresh_start():
    optimizer = velvet(Shapes())
    assert optimizer.state_dict() == {} and not optimizer.state
    optimizer.load_state_dict({})
    assert optimizer.run is None


def test_a_parameter_without_a_gradient_is_named():
    model = Shapes()
    set_gradients([model], 0)
    model.cube.grad = None
    with pytest.raises(StageError, match="cube gets no gradient: it is cut off from the loss"):
        velvet(model).step(SAYS)


def test_a_gradient_scaler_leaves_scale_and_overflow_to_the_step():
    model, plain = Shapes(), Shapes()
    optimizer, other = (
        velvet(model, config(max_gradient_norm=1.0)),
        velvet(plain, config(max_gradient_norm=1.0)),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(1))
    for step in range(4):
        set_gradients([model], step, scale=scaler.get_scale())
        set_gradients([plain], step)
        if step == 2:
            model.cube.grad[0, 0, 0] = math.inf
        scaler.step(optimizer, SAYS)
        scaler.update()
        if step != 2:
            other.step(SAYS)
    assert scaler.get_scale() == 512 and float(optimizer.run.skipped) == 1 and float(optimizer.run.step) == 3
    assert_same(model, plain, 1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"betas": (0.98, 0.95)}, "beta1 must lie in"),
        ({"betas": (0.3, 0.95)}, "beta1 must lie in"),
        ({"betas": (0.9, 1.0)}, r"betas .* must lie in \[0, 1\)"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"learning_rate": -1.0}, "learning_rate -1.0 is below 0"),
        ({"entropy": {"bounds": (1.1, 1.3)}}, "bounds"),
        ({"entropy": {"bounds": (0.7, 0.9)}}, "bounds"),
    ],
)
def test_arguments_are_refused_with_their_key(values, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig.model_validate({"kind": "velvet"} | values)
    assert OptimizerConfig(betas=(0.98, 0.95)).kind == "adamw"  # AdamW has no such bound


def test_a_vocabulary_or_rate_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="optimizer.kind.*vocabulary above 1 entry"):
        Velvet(parameter_groups(Shapes(), 0.1, False), config(), RATE, 1)
    with pytest.raises(ConfigError, match="optimizer.learning_rate"):
        Velvet(parameter_groups(Shapes(), 0.1, False), config(), -1.0, VOCAB)
