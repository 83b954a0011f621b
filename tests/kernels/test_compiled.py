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
from kernels import era_triton, linear_cross_entropy_triton, moe_triton, velvet_update_triton

def check(kernel, element, kinds, **constants):
    kinds = dict.fromkeys(constants, "constexpr") | kinds
    signature = {
        name: kinds.get(name, element if name.endswith("_ptr") else "i32") for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
    print("compiled", kernel.__name__, element)

ELEMENTS = {"*bf16": tl.bfloat16, "*fp16": tl.float16, "*fp32": tl.float32}
TABLES = {"table_ptr": "*i64", "blocks_ptr": "*i64", "scalars_ptr": "*fp64", "sums_ptr": "*fp32"}
ROWS = {"labels_ptr": "*i64", "z_loss": "fp32"}
ROWS |= {name: "*fp32" for name in ("shares_ptr", "nll_ptr", "entropy_ptr", "normaliser_ptr")}
EXPERTS = {"offsets_ptr": "*i32"}
pointwise = {"A": tl.float32, "GAMMA": 0.1, "GATED": True, "BLOCK": 1024}
blocks = {"UPCAST": False, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}
update = {"S": tl.float32, "BLOCK": 4096}
for element, dtype in ELEMENTS.items():
    master = dtype != tl.float32
    for mask in (False, True):
        flags = {"HAS_MASTER": master, "HAS_MASK": mask, "ALIGNED": not mask}
        check(velvet_update_triton._update_kernel, element, TABLES, P=dtype, G=dtype, **update, **flags)
    check(velvet_update_triton._square_sum_kernel, element, TABLES, G=dtype, **update)
    for graded in (False, True):
        kernel = linear_cross_entropy_triton._row_kernel
        check(kernel, element, ROWS, A=tl.float32, GRADED=graded, BLOCK=4096)
    check(era_triton._forward_kernel, element, {}, **pointwise)
    check(era_triton._backward_kernel, element, {}, **pointwise)
    check(moe_triton._products_kernel, element, EXPERTS, E=8, **blocks)
    check(moe_triton._weight_products_kernel, element, EXPERTS, **blocks)
"""
COMPILED = 3 * (3 + 2 + 2 + 2)  # dtypes x (update plain and masked, norm; rows; ERA; products)


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("compiled") == COMPILED
