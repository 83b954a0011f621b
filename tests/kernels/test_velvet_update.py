"""Reference, stock and Triton forms of the update against each other and against torch."""

import numpy as np
import pytest
import torch

from kernels.resolution import resolve_kernel
from kernels.velvet_update import (
    UpdateScalars,
    gradient_norm,
    implementation_for,
    resolution,
    self_check,
    velvet_update,
)
from utils.pipeline.errors import StageError

SHAPES = [(1, 1), (5, 123), (37, 1031), (128, 256), (3, 7, 65), (0,), (4095,), (4096,), (12295,)]
SCALARS = {"eta": 1e-2, "beta1": 0.87, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
SCALARS |= {"first_correction": 1 / (1 - 0.7), "second_correction": (1 - 0.95**3) ** -0.5}
SCALARS |= {"clip": 0.37, "skip": 0.0, "step": 3.0}


def scalars(device="cpu", **changed):
    return UpdateScalars(**SCALARS | changed).packed(device)


def problem(shapes, device="cpu", dtype=torch.float32, seed=0, masters=False, masks=False, grad_dtype=None):
    """Parameters, gradients, moments in the middle of a run, masters and masks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape, positive=False):
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        return value.abs() if positive else value

    high = torch.float64 if dtype == torch.float64 else torch.float32
    weights = [draw(shape).to(device, high) for shape in shapes]
    parameters = [each.to(dtype, copy=True) for each in weights]
    return {
        "parameters": parameters,
        "gradients": [draw(shape).to(device, grad_dtype or dtype) for shape in shapes],
        "first": [draw(shape).to(device, high) for shape in shapes],
        "second": [draw(shape, True).to(device, high) for shape in shapes],
        "masters": weights if masters else [None] * len(shapes),
        "masks": [(draw(shape) > 0).to(device) for shape in shapes] if masks else [None] * len(shapes),
        "decay": [index % 2 == 0 for index in range(len(shapes))],
    }


def copied(given):
    return {
        name: [each.clone() if isinstance(each, torch.Tensor) else each for each in values]
        for name, values in given.items()
    }


def updated(given, implementation, device="cpu", **changed):
    given = copied(given)
    _update(given, implementation, device, changed)
    return given


def _update(given, implementation, device, changed):
    names = ("parameters", "gradients", "first", "second")
    rest = {name: value for name, value in given.items() if name not in names}
    velvet_update(
        *(given[name] for name in names),
        **rest,
        scalars=scalars(device, **changed),
        implementation=implementation,
    )


def by_hand(p, g, m, v, decays):
    """The equations in numpy, in fp64."""
    p, m, v = (each.double().numpy() for each in (p, m, v))
    g = g.double().numpy() * SCALARS["clip"]
    if decays:
        p = p * (1 - 1e-2 * 0.1)
    m, v = 0.87 * m + (1 - 0.87) * g, 0.95 * v + (1 - 0.95) * g**2
    p = p - 1e-2 * (m / (1 - 0.7)) / (np.sqrt(v / (1 - 0.95**3)) + 1e-8)
    return [torch.from_numpy(each) for each in (p, m, v)]


def assert_equal(one, other, rtol=1e-6, names=("parameters", "first", "second", "masters")):
    for name in names:
        for a, b in zip(one[name], other[name], strict=True):
            if a is not None and a.numel():
                scale = float(b.float().abs().max())
                torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("implementation", ["reference", "stock", "triton"])
def test_every_form_is_the_written_equation(implementation, device):
    place = device if implementation == "triton" else torch.device("cpu")
    given = problem(SHAPES, place)
    found = updated(given, implementation, place)
    for i, decays in enumerate(given["decay"]):
        columns = (given[name][i].cpu() for name in ("parameters", "gradients", "first", "second"))
        expected = by_hand(*columns, decays)
        for name, value in zip(("parameters", "first", "second"), expected, strict=True):
            torch.testing.assert_close(found[name][i].cpu().double(), value, rtol=2e-6, atol=2e-6)


def test_fp64_forms_agree_to_the_last_digits(device):
    given = problem(SHAPES, dtype=torch.float64)
    reference = updated(given, "reference", clip=1.0)
    for implementation in ("stock", "triton"):
        found = updated(given, implementation, clip=1.0)
        assert_equal(found, reference, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("grad_dtype", [None, torch.float32])
def test_masters_masks_and_low_precision_parameters(dtype, masks, grad_dtype, device):
    masters = dtype != torch.float32
    given = problem(SHAPES, device, dtype, masters=masters, masks=masks, grad_dtype=grad_dtype)
    reference, triton = (updated(given, each, device) for each in ("reference", "triton"))
    # a parameter behind a master may round another way where the masters differ in their last bit
    assert_equal(triton, reference, names=("first", "second", "masters" if masters else "parameters"))
    for found in (reference, triton):
        for i, parameter in enumerate(found["parameters"]):
            if masters:  # a parameter is the rounding of its own master, bit for bit
                rounded = found["masters"][i].to(dtype)
                kept = given["masks"][i] if masks else torch.ones_like(rounded, dtype=torch.bool)
                assert torch.equal(parameter[kept], rounded[kept])
            if masks:
                kept = ~given["masks"][i]
                for name in ("parameters", "first", "second"):
                    assert torch.equal(found[name][i][kept], given[name][i][kept])
                assert (
                    not parameter.numel() or not torch.equal(parameter, given["parameters"][i]) or kept.all()
                )


def test_bf16_rounding_is_to_nearest_even_for_every_kind_of_number(device):
    from kernels.velvet_update_triton import BLOCK

    special = torch.tensor(
        [0.0, -0.0, 1.0, 3.4e38, -3.4e38, 1e-40, torch.inf, torch.nan, 1.00390625, 1.01171875]
    )
    weights = torch.cat([special, torch.randn(BLOCK)]).to(device)
    given = {
        "parameters": [weights.bfloat16()],
        "gradients": [torch.zeros_like(weights)],
        "first": [torch.zeros_like(weights)],
        "second": [torch.ones_like(weights)],
        "masters": [weights],
        "masks": [None],
        "decay": [False],
    }
    found = updated(given, "triton", device)["parameters"][0]
    expected = weights.bfloat16()
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("implementation", ["reference", "stock", "triton"])
def test_skip_leaves_every_bit_even_for_gradients_that_are_not_finite(implementation, device):
    given = problem(SHAPES, device)
    given["gradients"][1][0, 0] = torch.nan
    given["gradients"][2][0, 0] = torch.inf
    found = updated(given, implementation, device, skip=1.0)
    for name in ("parameters", "first", "second"):
        assert all(torch.equal(a, b) for a, b in zip(found[name], given[name], strict=True))


@pytest.mark.parametrize("implementation", ["reference", "stock", "triton"])
@pytest.mark.parametrize("view", ["transposed", "sliced"])
def test_tensors_that_are_not_contiguous(implementation, view, device):
    given = problem([(37, 65), (64, 128)], device)
    expected = updated(given, "reference", device)

    def cut(tensor):
        if view == "transposed":
            return tensor.t().contiguous().t()
        wide = torch.full((tensor.shape[0], tensor.shape[1] + 6), torch.nan, device=device)
        wide[:, 3:-3] = tensor
        return wide[:, 3:-3]

    names = ("parameters", "gradients", "first", "second")
    views = {name: [cut(each) for each in given[name]] for name in names} | {
        name: given[name] for name in ("masters", "masks", "decay")
    }
    assert not views["parameters"][0].is_contiguous()
    _update(views, implementation, device, {})
    assert_equal(views, expected)


@pytest.mark.parametrize("implementation", ["reference", "stock", "triton"])
@pytest.mark.parametrize("offset", [16, 3], ids=["aligned", "odd"])
def test_nothing_beyond_a_tensor_is_read_or_written(implementation, offset, device):
    """Tensors live between bands of NaN: reading one spoils a neighbour or the norm, writing one shows."""
    sizes, given = (1, 4096, 5003), problem([(1,), (4096,), (5003,)], device)
    buffers, names = [], ("parameters", "gradients", "first", "second")
    inside = {name: [] for name in names}
    for name in names:
        for size, tensor in zip(sizes, given[name], strict=True):
            buffer = torch.full((offset + size + 4096,), torch.nan, device=device)
            buffer[offset : offset + size] = tensor
            buffers.append((buffer, offset + size))
            inside[name].append(buffer[offset : offset + size])
    rest = {name: given[name] for name in ("masters", "masks", "decay")}
    norm = gradient_norm(inside["gradients"], implementation)
    assert torch.isfinite(norm)
    _update(inside | rest, implementation, device, {})
    assert_equal(inside | rest, updated(given, "reference", device))
    for buffer, end in buffers:
        assert buffer[:offset].isnan().all() and buffer[end:].isnan().all()


@pytest.mark.parametrize("implementation", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norm_equals_torch_in_double_precision(implementation, dtype, device):
    gradients = problem(SHAPES, device, dtype)["gradients"]
    exact = torch.cat([each.double().flatten() for each in gradients]).norm()
    found = gradient_norm(gradients, implementation)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)


def test_norm_of_nothing_is_zero_and_of_nan_is_nan(device):
    for implementation in ("reference", "triton"):
        assert gradient_norm([torch.zeros(0, device=device)], implementation) == 0
        assert gradient_norm([torch.full((9,), torch.nan, device=device)], implementation).isnan()


def test_a_learning_rate_of_zero_moves_only_the_moments():
    given = problem([(5, 3)])
    for implementation in ("reference", "stock", "triton"):
        found = updated(given, implementation, eta=0.0)
        assert torch.equal(found["parameters"][0], given["parameters"][0])
        assert not torch.equal(found["first"][0], given["first"][0])


def test_auto_is_stock_on_a_cpu_and_says_why():
    assert implementation_for("auto", "cpu") == implementation_for("torch", "cpu") == "stock"
    assert resolution("auto", "cpu").record() == {"asked": "auto", "resolved": "torch", "reason": "cpu"}


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch, device):
    if device.type == "cpu":
        assert implementation_for("triton", "cpu") == "triton"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    resolve_kernel.cache_clear()
    with pytest.raises(
        StageError, match='kernel velvet_update: "triton" cannot run: Triton compiles for CUDA'
    ):
        implementation_for("triton", "cpu")


def test_a_wrong_kernel_falls_back_under_auto_and_is_refused_when_asked_for(monkeypatch, device):
    from kernels import velvet_update_triton

    right = velvet_update_triton.launch_update

    def wrong(slots, scalars):
        right(slots, scalars * 1.0001)

    monkeypatch.setattr(velvet_update_triton, "launch_update", wrong)
    with pytest.raises(ArithmeticError, match="velvet_update differs from torch by"):
        self_check(device.type)

    def check(_):
        self_check(device.type)

    found = resolve_kernel("velvet_update", "auto", "cuda", check)
    assert found.implementation == "torch" and found.fell_back and "differs from torch" in found.reason
    with pytest.raises(StageError, match="cannot run: ArithmeticError: velvet_update differs from torch"):
        resolve_kernel("velvet_update", "triton", "cuda", check)


@pytest.mark.gpu
def test_a_tensor_beyond_2_to_the_31_elements():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device with 40 GB: four tensors of 2^31 + 5 elements")
    size = 2**31 + 5
    tensors = [torch.ones(size, device="cuda") for _ in range(4)]
    _update(
        dict(zip(("parameters", "gradients", "first", "second"), ([each] for each in tensors), strict=True))
        | {"masters": [None], "masks": [None], "decay": [True]},
        "triton",
        "cuda",
        {},
    )
    assert torch.equal(tensors[0][-5:], tensors[0][:5]) and tensors[0][-1] != 1
