"""
The claims about kernels that need a GPU, as shares of what the same run copies and multiplies.

    bench_era(device, rounds=9)        # True where every target is reached; a line and True without a GPU

Formulas: the head costs 6 N d V FLOPs and moves 6 bytes per logit; ERA-GLU in bf16 moves 6 bytes an element
forward and 10 backward; a gated expert costs 6 D F FLOPs a row forward and three times that in all.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.era import era_glu, reference_era_glu
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.moe import grouped_glu, permute, unpermute
from tools.bench.turns import NOT_MEASURED, judge, take_turns
from utils.training.speed import measure_gemm

COPIED_BYTES = 2**30
HEAD_SHAPE = (16_384, 32_768, 2048)  # N, V, d
ERA_SHAPE = (16_384, 8192)
EXPERTS = {"tokens": 32_768, "experts": 8, "top_k": 2, "width": 1024, "inner": 2816}
GAMMA = 0.1


def bench_head_on_gpu(device: torch.device, rounds: int) -> bool:
    """Time and peak memory of the head against the roofline of T = 6 N d V / GEMM + 6 N V / copy."""
    rows, vocab, width = HEAD_SHAPE
    hidden, weight = (_drawn(device, torch.bfloat16, each, width) for each in (rows, vocab))
    targets = torch.randint(0, vocab, (rows,), device=device)

    def full(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    losses = {"ours": lambda h, w: linear_cross_entropy(h, w, targets).loss_sum, "full logits": full}
    losses |= {"compiled": torch.compile(full)} | _liger(targets)
    passes = {name: _with_gradients(loss, hidden, weight) for name, loss in losses.items()}
    seconds = take_turns(passes, rounds, device)
    for name, run in passes.items():
        peak = _peak_bytes(run, device) / 2**20
        print(f"head    {name:<12}{1e3 * seconds[name]:8.2f} ms, peak {peak:,.0f} MiB")
    ideal = 6 * rows * width * vocab / measure_gemm(device, torch.bfloat16)
    ideal += 6 * rows * vocab / copy_rate(device, rounds)
    held = [judge("        ours / (products + copies)", seconds["ours"] / ideal, most=1.15)]
    peers = (name for name in seconds if name != "ours")
    held += [judge(f"        faster than {name}", seconds[name] / seconds["ours"], least=1) for name in peers]
    return all([*held, _bench_row_kernel(device, rounds)])


def _bench_row_kernel(device: torch.device, rounds: int) -> bool:
    """The pass over the logits alone: read, read again, write."""
    from kernels.linear_cross_entropy_triton import launch_rows

    rows, vocab = HEAD_SHAPE[0] // 2, HEAD_SHAPE[1]
    logits = _drawn(device, torch.bfloat16, rows, vocab).detach()
    labels = torch.randint(0, vocab, (rows,), device=device)
    shares = torch.ones(rows, device=device)
    run = {"rows": lambda: launch_rows(logits, labels, shares, 0.0, True)}
    rate = 6 * logits.numel() / take_turns(run, rounds, device)["rows"]
    return judge("        row kernel, share of copy bandwidth", rate / copy_rate(device, rounds), least=0.85)


def bench_era(device: torch.device, rounds: int) -> bool:
    """ERA-GLU forward and backward."""
    if device.type != "cuda":
        print(f"era     share of copy bandwidth (goal 0.9), against the compiled plain form: {NOT_MEASURED}")
        return True
    gate, up = (_drawn(device, torch.bfloat16, *ERA_SHAPE) for _ in range(2))
    compiled = torch.compile(reference_era_glu)
    forms = {"ours": lambda g, u: era_glu(g, u, GAMMA), "compiled": lambda g, u: compiled(g, u, GAMMA)}
    seconds = take_turns({n: _with_gradients(f, gate, up) for n, f in forms.items()}, rounds, device)
    share = 16 * gate.numel() / seconds["ours"] / copy_rate(device, rounds)
    held = judge("era     share of copy bandwidth", share, least=0.9)
    return (
        judge("        faster than the compiled plain form", seconds["compiled"] / seconds["ours"], least=1)
        and held
    )


def bench_experts(device: torch.device, rounds: int) -> bool:
    """A layer of grouped experts against a dense one of equal FLOPs and a loop."""
    if device.type != "cuda":
        print(f"experts share of the GEMM rate (goals 0.6 forward, 0.45 in all), peers: {NOT_MEASURED}")
        return True
    forms, leaves = expert_forms(device, torch.bfloat16, **EXPERTS)
    passes = {name: _with_gradients(form, *leaves) for name, form in forms.items()}
    passes["forward"] = lambda: forms["grouped"](*(each.detach() for each in leaves))
    seconds = take_turns(passes, rounds, device)
    products = EXPERTS["tokens"] * EXPERTS["top_k"] * EXPERTS["width"] * EXPERTS["inner"]
    ideal = 6 * products / measure_gemm(device, torch.bfloat16)
    held = [
        judge("experts forward, share of the GEMM rate", ideal / seconds["forward"], least=0.6),
        judge("        in all, share of the GEMM rate", 3 * ideal / seconds["grouped"], least=0.45),
        judge("        speed of the dense layer", seconds["dense"] / seconds["grouped"], least=0.85),
        judge("        faster than the loop", seconds["loop"] / seconds["grouped"], least=1),
    ]
    return all(held)


def expert_forms(
    device: torch.device, dtype: torch.dtype, tokens: int, experts: int, top_k: int, width: int, inner: int
) -> tuple[dict[str, Callable[..., Tensor]], tuple[Tensor, ...]]:
    """Name -> a layer of (x, gate_up, down), and these; `dense` shares the FLOPs of the others only."""
    x = _drawn(device, dtype, tokens, width)
    gate_up = _drawn(device, dtype, experts, 2 * inner, width)
    down = _drawn(device, dtype, experts, width, inner)
    chosen = torch.rand(tokens, experts, device=device).topk(top_k).indices
    weights = torch.full((tokens, top_k), 1 / top_k, device=device)

    def grouped(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        x_sorted, offsets, order = permute(x, chosen, experts)
        return unpermute(grouped_glu(x_sorted, gate_up, down, offsets, _glu), order, weights)

    def loop(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in range(experts):
            token, _ = (chosen == expert).nonzero(as_tuple=True)
            hidden = _glu(*(x[token] @ gate_up[expert].T).chunk(2, dim=-1))
            out = out.index_add(0, token, hidden @ down[expert].T / top_k)
        return out

    def dense(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        hidden = _glu(*(x @ gate_up[:top_k].flatten(0, 1).T).chunk(2, dim=-1))
        return hidden @ down[:top_k].transpose(1, 2).flatten(0, 1)

    return {"grouped": grouped, "dense": dense, "loop": loop}, (x, gate_up, down)


def copy_rate(device: torch.device, rounds: int) -> float:
    """Bytes read and written per second by copying 1 GiB."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED_BYTES / take_turns({"copy": lambda: target.copy_(source)}, rounds, device)["copy"]


def _with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> Callable[[], object]:
    def run() -> None:
        value = function(*leaves)
        torch.autograd.grad(value, leaves, torch.ones_like(value))

    return run


def _peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Memory that a pass needs besides its inputs."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _liger(targets: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    try:
        functional = importlib.import_module("liger_kernel.transformers.functional")
    except ImportError:
        print("head    Liger: absent")
        return {}
    fused = functional.liger_fused_linear_cross_entropy
    return {"Liger": lambda hidden, weight: fused(hidden, weight, targets, reduction="sum")}


def _drawn(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return (0.02 * torch.randn(*shape, device=device, dtype=dtype)).requires_grad_()


def _glu(gate: Tensor, up: Tensor) -> Tensor:
    return era_glu(gate, up, GAMMA)
