"""Facts of Triton's interpreter that the kernels respect. If one of these changes, a workaround can go."""

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("facts of the interpreter, which a GPU does not use", allow_module_level=True)

import triton
import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime.errors import InterpreterError


@triton.jit
def store_bf16(x_ptr, y_ptr):
    tl.store(y_ptr, tl.load(x_ptr).to(tl.bfloat16))


@triton.jit
def product(a_ptr, b_ptr, y_ptr):
    places = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(y_ptr + places, tl.dot(tl.load(a_ptr + places), tl.load(b_ptr + places)))


@triton.jit
def tanh(x_ptr):
    tl.store(x_ptr, libdevice.tanh(tl.load(x_ptr)))


@triton.jit
def add_program_numbers(sums_ptr):
    tl.atomic_add(sums_ptr + tl.program_id(0) % 2, tl.program_id(0))


@triton.jit
def draw(x_ptr, seed):
    places = tl.arange(0, 1024)
    tl.store(x_ptr + places, tl.rand(seed, places))


def test_a_store_from_fp32_to_bf16_truncates():
    value, found = torch.tensor([1.01171875]), torch.zeros(1, dtype=torch.bfloat16)
    store_bf16[(1,)](value, found)
    assert found.item() == 1.0078125 != value.bfloat16().item()


def test_bf16_is_multiplied_wrongly():
    eye, found = torch.eye(16).bfloat16(), torch.zeros(16, 16)
    product[(1,)](eye, eye, found)
    assert not torch.allclose(found, torch.eye(16), atol=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fp16_and_fp32_are_multiplied_exactly(dtype):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-64, 65, (16, 16), generator=generator).to(dtype) for _ in range(2))
    found = torch.zeros(16, 16)
    product[(1,)](left, right, found)
    assert torch.equal(found, left.float() @ right.float())


def test_there_is_no_libdevice():
    """A function of it has no body, so it returns None."""
    with pytest.raises(InterpreterError) as caught:
        tanh[(1,)](torch.ones(1))
    assert str(caught.value) == "TypeError(\"cannot convert None of type <class 'NoneType'> to tensor\")"
    assert libdevice.tanh.__module__ == "triton.language.extra.libdevice"


def test_atomics_work():
    sums = torch.zeros(2, dtype=torch.int32)
    add_program_numbers[(8,)](sums)
    assert sums.tolist() == [0 + 2 + 4 + 6, 1 + 3 + 5 + 7]


def test_random_numbers_work_and_follow_their_seed():
    one, again, other = (torch.full((1024,), -1.0) for _ in range(3))
    for numbers, seed in ((one, 5), (again, 5), (other, 6)):
        draw[(1,)](numbers, seed)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert 0 <= one.min() < 0.01 and 0.99 < one.max() < 1 and abs(float(one.mean()) - 0.5) < 0.03
