"""Experts against every expert on every token in fp64, for each form of the grouped product."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from kernels.era import era_glu
from kernels.moe import (
    grouped_glu,
    grouped_linear,
    permute,
    reference_grouped_glu,
    resolution,
    self_check,
    unpermute,
)
from kernels.resolution import resolve_kernel
from utils.pipeline.errors import StageError

IMPLEMENTATIONS = ["torch", "triton"]
BAND = 4096  # entries around an output: as many as a tile of a kernel holds
ERA = partial(era_glu, gamma=0.1)


def swiglu(gate, up):
    return F.silu(gate) * up


# tokens, experts, experts per token, width, inner width
SIZES = {
    "usual": (37, 5, 2, 24, 40),
    "one token": (1, 4, 2, 16, 16),
    "every expert": (9, 3, 3, 16, 24),
    "one expert": (6, 1, 1, 8, 8),
    "many rows of one": (150, 3, 1, 72, 40),
    "odd widths": (37, 4, 2, 13, 7),
    "no token": (0, 3, 2, 8, 8),
}


def routing(case, tokens, experts, top_k, generator):
    """Weights and expert numbers: random, without one expert, all on one, or from equal logits."""
    logits = torch.randn(tokens, experts, generator=generator)
    if case == "empty expert":
        logits[:, 1] = -torch.inf
    if case == "collapsed":
        logits[:] = torch.arange(experts, 0, -1.0)
    if case == "ties":
        logits[:] = 0.0
    weights, chosen = torch.topk(logits.softmax(-1), top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), chosen


def problem(size, case="random", device="cpu", dtype=torch.float32, seed=0):
    tokens, experts, top_k, width, inner = size
    generator = torch.Generator().manual_seed(seed)
    weights, chosen = routing(case, tokens, experts, top_k, generator)
    shapes = ((tokens, width), (experts, 2 * inner, width), (experts, width, inner))
    drawn = [torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for shape in shapes]
    leaves = [each.to(device, dtype).requires_grad_() for each in drawn]
    leaves.append(weights.to(device, torch.promote_types(dtype, torch.float32)).requires_grad_())
    return leaves, chosen.to(device), torch.randn(tokens, width, generator=generator).to(device, dtype)


def experts(leaves, chosen, activation=ERA, implementation="auto"):
    x, gate_up, down, weights = leaves
    rows, offsets, order = permute(x, chosen, gate_up.shape[0])
    found = grouped_glu(rows, gate_up, down, offsets, activation, implementation)
    return unpermute(found, order, weights)


def oracle(leaves, chosen, activation=ERA):
    """Every expert on every token, then a mask."""
    x, gate_up, down, weights = leaves
    total = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        hidden = activation(*F.linear(x, gate_up[expert]).chunk(2, -1))
        share = (weights * (chosen == expert)).sum(1, keepdim=True)
        total = total + share * F.linear(hidden, down[expert])
    return total


def output_and_gradients(function, leaves, grad, *rest):
    found = function(leaves, *rest)
    gradients = torch.autograd.grad(found, leaves, grad.to(found.dtype), allow_unused=True)
    return [found.detach(), *gradients]


def doubled(leaves):
    return [each.detach().double().requires_grad_() for each in leaves]


def assert_equal(found, expected, tolerance):
    for mine, theirs in zip(found, expected, strict=True):
        if theirs is None or not theirs.numel():
            continue
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["random", "empty expert", "collapsed", "ties"])
@pytest.mark.parametrize("size", ["usual", "many rows of one"])
def test_output_and_every_gradient_equal_the_oracle(size, case, implementation, device):
    leaves, chosen, grad = problem(SIZES[size], case, device)
    found = output_and_gradients(experts, leaves, grad, chosen, ERA, implementation)
    assert_equal(found, output_and_gradients(oracle, doubled(leaves), grad, chosen), 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", ["random", "empty expert", "collapsed"])
def test_grouped_products_equal_their_definition(case, implementation, device):
    """The part between sorting and gathering, which the oracle sees only through both."""
    (x, gate_up, down, _), chosen, _ = problem(SIZES["usual"], case, device)
    rows, offsets, _ = permute(x.detach(), chosen, 5)
    leaves = [rows.requires_grad_(), gate_up, down]
    grad = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(device)
    ours = partial(grouped_glu, implementation=implementation)
    found, exact = (
        output_and_gradients(lambda given, form=form: form(*given, offsets, ERA), given, grad)
        for form, given in ((ours, leaves), (reference_grouped_glu, doubled(leaves)))
    )
    assert_equal(found, exact, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", ["one token", "every expert", "one expert", "odd widths"])
def test_unusual_sizes(size, implementation, device):
    leaves, chosen, grad = problem(SIZES[size], device=device)
    found = output_and_gradients(experts, leaves, grad, chosen, swiglu, implementation)
    assert_equal(found, output_and_gradients(oracle, doubled(leaves), grad, chosen, swiglu), 1e-5)


def test_experts_equal_those_of_mixtral():
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2}
    theirs = MixtralExperts(MixtralConfig(**shape))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    leaves, chosen, grad = problem(SIZES["usual"])
    leaves[1:3] = theirs.gate_up_proj, theirs.down_proj
    found = output_and_gradients(experts, leaves, grad, chosen, swiglu)
    expected = output_and_gradients(lambda given: theirs(given[0], chosen, given[3]), leaves, grad)
    assert_equal(found, expected, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_token_at_all(implementation, device):
    leaves, chosen, grad = problem(SIZES["no token"], device=device)
    found = output_and_gradients(experts, leaves, grad, chosen, ERA, implementation)
    assert found[0].shape == (0, 8) and not found[2].any() and not found[3].any()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_low_precision(dtype, tolerance, implementation, device):
    leaves, chosen, grad = problem(SIZES["usual"], device=device, dtype=dtype)
    found = output_and_gradients(experts, leaves, grad, chosen, ERA, implementation)
    assert [each.dtype for each in found] == [dtype] * 4 + [torch.float32]
    assert_equal(found, output_and_gradients(oracle, doubled(leaves), grad, chosen), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_in_low_precision_is_the_exact_one_rounded_once(dtype, device):
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in ((37, 64), (3, 48, 64))
    )
    offsets = torch.tensor([10, 10, 37], dtype=torch.int32, device=device)
    found = grouped_linear(x, weight, offsets, "triton")
    exact = torch.cat([x[:10].double() @ weight[0].double().T, x[10:].double() @ weight[2].double().T])
    torch.testing.assert_close(found.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-4)


def test_gradients_in_double_precision():
    leaves, chosen, _ = problem((5, 3, 2, 4, 3), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *given: experts(given, chosen), leaves)
    x, gate_up, down, _ = leaves
    rows, offsets, _ = permute(x.detach(), chosen, 3)
    rows.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *given: reference_grouped_glu(*given, offsets, ERA), (rows, gate_up, down)
    )


def test_autocast_multiplies_in_bf16_and_returns_fp32_gradients():
    leaves, chosen, grad = problem(SIZES["usual"])
    with torch.autocast("cpu", torch.bfloat16):
        found = experts(leaves, chosen)
    assert found.dtype == torch.bfloat16
    gradients = torch.autograd.grad(found, leaves, grad.bfloat16())
    assert {each.dtype for each in gradients} == {torch.float32}
    assert_equal([found], [oracle(doubled(leaves), chosen)], 3e-2)


def test_autocast_does_not_round_the_weighted_sum():
    (_, _, _, weights), chosen, grad = problem(SIZES["usual"])
    rows, _, order = permute(torch.randn(37, 24).requires_grad_(), chosen, 5)
    plain = output_and_gradients(lambda given: unpermute(given[0], order, given[1]), [rows, weights], grad)
    with torch.autocast("cpu", torch.bfloat16):
        under = output_and_gradients(
            lambda given: unpermute(given[0], order, given[1]), [rows, weights], grad
        )
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def test_order_is_stable_and_offsets_are_ends():
    chosen = torch.tensor([[2, 0], [0, 2], [2, 3]])
    x = torch.arange(3.0)[:, None]
    rows, offsets, order = permute(x, chosen, 5)
    assert order.tolist() == [1, 2, 0, 3, 4, 5]
    assert rows.flatten().tolist() == [0, 1, 0, 1, 2, 2]
    assert offsets.tolist() == [2, 2, 5, 6, 6] and offsets.dtype == torch.int32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_equal_inputs_give_equal_bits(implementation, device):
    leaves, chosen, grad = problem(SIZES["usual"], device=device)
    once, again = (output_and_gradients(experts, leaves, grad, chosen, ERA, implementation) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_token_does_not_depend_on_its_company(implementation, device):
    leaves, chosen, _ = problem(SIZES["usual"], device=device)
    together = experts(leaves, chosen, ERA, implementation)
    x, gate_up, down, weights = leaves
    alone = experts([x[3:4], gate_up, down, weights[3:4]], chosen[3:4], ERA, implementation)
    torch.testing.assert_close(alone, together[3:4], rtol=1e-5, atol=1e-6)


def test_kernels_read_and_write_only_the_rows_of_each_expert(device):
    """Operands are cut out of NaN, so that one value read beyond them spoils a product."""
    from kernels.moe_triton import launch_products, launch_weight_products

    def cut(*shape):
        wide = torch.full([n + 70 for n in shape], torch.nan, device=device)
        inside = wide[tuple(slice(5, 5 + n) for n in shape)]
        return inside.copy_(torch.randn(shape))

    x, grad, weight = cut(19, 13), cut(19, 21), cut(3, 21, 13)
    offsets = torch.tensor([7, 7, 19], dtype=torch.int32, device=device)
    found = launch_products(x, weight, offsets)
    torch.testing.assert_close(found, torch.cat([x[:7] @ weight[0].T, x[7:] @ weight[2].T]))
    found = launch_weight_products(grad, x, offsets)
    expected = torch.stack([grad[:7].T @ x[:7], torch.zeros(21, 13, device=device), grad[7:].T @ x[7:]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(19, 13, 21), (64, 32, 64), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_fill_their_outputs_and_nothing_around_them(shape, dtype, monkeypatch, device):
    """Outputs and offsets lie between bands: a store outside destroys one, a place left out stays NaN."""
    from kernels import moe_triton

    bands = []

    def between_bands(*sizes, dtype, device):
        count = torch.Size(sizes).numel()
        whole = torch.full((count + 2 * BAND,), torch.nan, dtype=dtype, device=device)
        bands.append((whole[:BAND], whole[-BAND:]))
        return whole[BAND : BAND + count].view(sizes)

    class Torch:
        empty, bfloat16 = staticmethod(between_bands), torch.bfloat16

    (rows, inner, outer), generator = shape, torch.Generator().manual_seed(0)
    x, grad, weight = (
        torch.randn(size, generator=generator).to(device, dtype)
        for size in ((rows, inner), (rows, outer), (3, outer, inner))
    )
    around = torch.full((3 + 2 * BAND,), 10**6, dtype=torch.int32, device=device)
    offsets = around[BAND : BAND + 3].copy_(torch.tensor([rows // 3, rows // 3, rows]))
    monkeypatch.setattr(moe_triton, "torch", Torch)
    products = moe_triton.launch_products(x, weight, offsets)
    sums = moe_triton.launch_weight_products(grad, x, offsets)
    assert products.isfinite().all() and sums.isfinite().all() and len(bands) == 2
    assert all(band.isnan().all() for pair in bands for band in pair)
    assert (around[:BAND] == 10**6).all() and (around[-BAND:] == 10**6).all()


@pytest.mark.gpu
def test_nothing_waits_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    leaves, chosen, grad = problem(SIZES["usual"], device="cuda")
    experts(leaves, chosen, ERA, "triton").backward(grad)
    torch.cuda.set_sync_debug_mode("error")
    try:
        experts(leaves, chosen, ERA, "triton").backward(grad)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiles_into_one_graph():
    leaves, chosen, grad = problem(SIZES["usual"])
    compiled = torch.compile(lambda *given: experts(given, chosen), fullgraph=True, backend="aot_eager")
    found = output_and_gradients(lambda given: compiled(*given), leaves, grad)
    assert_equal(found, output_and_gradients(experts, leaves, grad, chosen), 1e-6)


def test_auto_is_torch_on_a_cpu_and_a_wrong_kernel_falls_back(monkeypatch, device):
    found = resolution("auto", torch.device("cpu"), torch.float32)
    assert found.record() == {"asked": "auto", "resolved": "torch", "reason": "cpu"}
    from kernels import moe_triton

    right = moe_triton.launch_weight_products
    monkeypatch.setattr(moe_triton, "launch_weight_products", lambda *given: 1.01 * right(*given))

    def check(_):
        self_check(device.type)

    found = resolve_kernel("moe", "auto", "cuda", check)
    assert found.implementation == "torch" and found.fell_back and "moe differs" in found.reason
    with pytest.raises(StageError, match='kernel moe: "triton" cannot run: ArithmeticError'):
        resolve_kernel("moe", "triton", "cuda", check)
