"""ERA and its gated unit: known values, both forms against the definition, and what must stay untouched."""

import pytest
import torch
from torch.nn import functional as F

from kernels.era import era, era_glu, reference_era, reference_era_glu, resolution, self_check
from kernels.resolution import resolve_kernel
from utils.pipeline.errors import StageError

SHAPES = [(1, 1), (5, 123), (37, 1031), (128, 256), (3, 7, 65), (0,), (0, 7), (9,), (2, 1500)]
IMPLEMENTATIONS = ["torch", "triton"]
# x, value and slope at gamma 0.1, computed with 50 digits
VECTORS = [
    (-3.0, 0.001221343, -0.006841579),
    (-1.0, -0.127481841, -0.056069942),
    (0.0, 0.069314718, 0.55),
    (0.5, 0.443121708, 0.929615837),
    (2.0, 2.167290495, 1.174178964),
    (20.0, 22.0, 1.1),
    (-0.82828, -0.132618217, 0.0),
]


def problem(shape, device="cpu", dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = [2 * torch.randn(shape, generator=generator) for _ in range(3)]
    gate, up, grad = (each.to(device, dtype) for each in drawn)
    return gate.requires_grad_(), up.requires_grad_(), grad


def value_and_gradients(value, inputs, grad):
    return value.detach(), *torch.autograd.grad(value, inputs, grad)


def exact(gate, up, grad, gamma=0.1):
    """The definition in fp64, from the rounded inputs."""
    gate, up = (each.detach().double().requires_grad_() for each in (gate, up))
    return value_and_gradients(reference_era_glu(gate, up, gamma), (gate, up), grad.double())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_known_values_and_slopes(implementation, dtype, tolerance, device):
    x, values, slopes = torch.tensor(VECTORS, dtype=dtype, device=device).unbind(1)
    x = x.clone().requires_grad_()
    found = era(x, 0.1, implementation)
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(found.detach(), values, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(slope, slopes, rtol=tolerance, atol=max(tolerance, 5e-6))
    if dtype == torch.float64:  # the last point is the minimum only to five digits
        torch.testing.assert_close(slope[:-1], slopes[:-1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_equal_the_definition(shape, gamma, implementation, device):
    gate, up, grad = problem(shape, device)
    found = value_and_gradients(era_glu(gate, up, gamma, implementation), (gate, up), grad)
    expected = exact(gate, up, grad, gamma)
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        scale = float(theirs.abs().amax()) if theirs.numel() else 1.0
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 123), (3, 7, 65)], ids=str)
def test_low_precision_is_the_exact_result_rounded_once(shape, dtype, implementation, device):
    gate, up, grad = problem(shape, device, dtype)
    found = value_and_gradients(era_glu(gate, up, 0.1, implementation), (gate, up), grad)
    ulp = torch.finfo(dtype).eps
    for mine, theirs in zip(found, exact(gate, up, grad), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=0.51 * ulp, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_ungated_form_and_its_gradient(implementation, device):
    x, _, grad = problem((5, 123), device)
    found = value_and_gradients(era(x, 0.1, implementation), x, grad)
    expected = value_and_gradients(reference_era(x, 0.1), x, grad)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gamma_zero_is_gelu(implementation, device):
    x = torch.linspace(-12, 12, 999, device=device)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(era(x, 0.0, implementation), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_tail_of_softplus_keeps_its_digits(implementation, device):
    x = torch.tensor([-17.0, -20.0, -30.0, -60.0], device=device)
    expected = reference_era(x.double(), 1.0)
    torch.testing.assert_close(era(x, 1.0, implementation).double(), expected, rtol=1e-5, atol=0)


def test_gradients_in_double_precision(device):
    gate, up, _ = problem((3, 5), device, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: reference_era_glu(a, b, 0.1), (gate, up))
    for implementation in IMPLEMENTATIONS:
        assert torch.autograd.gradcheck(lambda a, b, i=implementation: era_glu(a, b, 0.1, i), (gate, up))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_inputs_stay_finite(dtype, implementation, device):
    points = [0.0, -0.0, 1e-40, -1e-40, 9.99, 10.0, -10.0, 40.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4]
    points += [1e20, -1e20, 3e38, -3e38]
    x = torch.tensor(points, dtype=dtype, device=device).requires_grad_()
    found = era(x, 0.1, implementation)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(found[:-2]).all() and torch.isfinite(slope).all()
    torch.testing.assert_close(slope[-2:].float().cpu(), torch.tensor([1.1, 0.0]), rtol=1e-2, atol=1e-30)
    torch.testing.assert_close(found[-3].float().cpu(), torch.tensor(0.0), rtol=0, atol=1e-30)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("view", ["halves", "transposed", "sliced", "expanded gradient"])
def test_layouts(view, implementation, device):
    def lay_out(tensor):
        if view == "transposed":
            return tensor.t().contiguous().t()
        wide = torch.full((37, 2 * 65), torch.nan, device=device)
        wide[:, 20:85] = tensor
        return wide[:, 20:85] if view == "sliced" else tensor

    gate, up, grad = (each.detach() for each in problem((37, 65), device))
    if view == "expanded gradient":
        grad = torch.ones((), device=device).expand(37, 65)
    expected = exact(gate, up, grad)
    gate, up = (lay_out(each) for each in (gate, up))
    if view == "halves":
        gate, up = torch.cat([gate, up], 1).chunk(2, -1)
    gate, up = gate.requires_grad_(), up.requires_grad_()
    found = value_and_gradients(era_glu(gate, up, 0.1, implementation), (gate, up), grad)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


def test_nothing_outside_the_rows_is_written(device, monkeypatch):
    """Outputs are cut out of bands of NaN, which must survive."""
    from kernels import era_triton

    gate, up, grad = (each.detach() for each in problem((5, 123), device))
    bands = []

    def banded(*_, **__):
        band = torch.full((5 * 123 + 2048,), torch.nan, device=device)
        bands.append(band)
        return band[1024 : 1024 + 5 * 123].view(5, 123)

    monkeypatch.setattr(era_triton.torch, "empty", banded)
    monkeypatch.setattr(era_triton.torch, "empty_like", banded)
    found = era_triton.launch_forward(gate, up, 0.1), *era_triton.launch_backward(grad, gate, up, 0.1)
    monkeypatch.undo()
    assert len(bands) == 3
    for mine, theirs, band in zip(found, exact(gate, up, grad), bands, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
        assert band[:1024].isnan().all() and band[-1024:].isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_only_gate_and_up_are_kept_for_the_backward_pass(implementation, device):
    gate, up, _ = problem((5, 123), device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        era_glu(gate, up, 0.1, implementation)
    assert [each.data_ptr() for each in kept] == [gate.data_ptr(), up.data_ptr()]


def test_compiles_into_one_graph():
    gate, up, grad = problem((5, 16))
    compiled = torch.compile(lambda a, b: era_glu(a, b, 0.1) * 2, fullgraph=True, backend="aot_eager")
    found = value_and_gradients(compiled(gate, up), (gate, up), grad)
    expected = value_and_gradients(era_glu(gate, up, 0.1) * 2, (gate, up), grad)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_unequal_shapes_and_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"gate torch.float32 \(2, 3\) and up torch.float32 \(2, 4\) differ"):
        era_glu(torch.zeros(2, 3), torch.zeros(2, 4), 0.1)
    with pytest.raises(ValueError, match="differ"):
        era_glu(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bfloat16), 0.1)


def test_auto_is_torch_on_a_cpu_and_a_wrong_kernel_falls_back(monkeypatch, device):
    assert resolution("auto", "cpu").record() == {"asked": "auto", "resolved": "torch", "reason": "cpu"}
    from kernels import era_triton

    right = era_triton.launch_backward
    monkeypatch.setattr(
        era_triton, "launch_backward", lambda *given: [1.001 * each for each in right(*given)]
    )

    def check(_):
        self_check(device.type)

    found = resolve_kernel("era_glu", "auto", "cuda", check)
    assert found.implementation == "torch" and found.fell_back and "era_glu differs" in found.reason
    with pytest.raises(StageError, match='kernel era_glu: "triton" cannot run: ArithmeticError'):
        resolve_kernel("era_glu", "triton", "cuda", check)
