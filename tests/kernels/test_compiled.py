"""
The interpreter forgives what the compiler refuses, so the kernels are also compiled for a GPU, without one.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels import era_triton, moe_triton

def check(kernel, element, **constants):
    kinds = {"constexpr": constants, "*i32": ["offsets_ptr"]}
    signature = {
        name: next((kind for kind, names in kinds.items() if name in names),
                   element if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print("compiled", kernel.__name__, element)

pointwise = {"A": tl.float32, "GAMMA": 0.1, "GATED": True, "BLOCK": 1024}
blocks = {"UPCAST": False, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
check(era_triton._forward_kernel, "*bf16", **pointwise)
check(era_triton._backward_kernel, "*bf16", **pointwise)
check(moe_triton._products_kernel, "*bf16", E=8, **blocks)
check(moe_triton._weight_products_kernel, "*bf16", **blocks)
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == 4
