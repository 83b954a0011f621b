"""
What do Velvet's update and the head loss cost, against torch's own in the same run?

    python tools/bench/ops.py                   # both claims, on the GPU where there is one, else the CPU
    python tools/bench/ops.py --only update     # update | head

update   norm, clipping and step of Velvet with both controls on, over the parameters of `demo`, against
         torch's fused AdamW behind clip_grads_with_norm_; and against copying 28 bytes a parameter
head     loss and gradients of the chunked head with and without entropy, against full logits

Contestants take turns; medians of rounds, one thread, CPU time of this process where there is no GPU. What
needs one prints `not measured here` without.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.nn import functional as F

from kernels.linear_cross_entropy import Signals, linear_cross_entropy
from utils.config.training import OptimizerConfig
from utils.models.llama import build_llama
from utils.models.presets import load_architecture
from utils.optim.groups import build_optimizer
from utils.pipeline.environment import host_class
from utils.pipeline.workspace import REPOSITORY

UPDATE_TARGET, COPY_TARGET = 1.05, 0.92
HEADS = {"4,096 x 256": (4096, 256, 1.5), "32,768 x 256": (32_768, 256, 1.1)}
COPIED_BYTES = 28


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/ops.py", description=__doc__.splitlines()[1])
    parser.add_argument("--only", choices=["update", "head"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    claims = {"update": bench_update, "head": bench_head}
    chosen = [claims[arguments.only]] if arguments.only else list(claims.values())
    held = [claim(device, arguments.rounds) for claim in chosen]
    print(f"torch {torch.__version__}, {device.type}, {host_class()}")
    return 0 if all(held) else 4


def bench_update(device: torch.device, rounds: int) -> bool:
    """Velvet's whole step against AdamW's."""
    passes = {kind: update_pass(kind, device) for kind in ("adamw", "velvet")}
    parameters = sum(each.numel() for each in demo_model(device).parameters())
    source = torch.zeros(parameters * COPIED_BYTES // 8, device=device)
    target = torch.empty_like(source)
    passes["copy"] = lambda: target.copy_(source)
    seconds = measure(passes, rounds, device)
    for name, taken in seconds.items():
        print(f"update  {name:<8}{1e3 * taken:8.3f} ms for {parameters:,} parameters")
    ratio, share = seconds["velvet"] / seconds["adamw"], seconds["copy"] / seconds["velvet"]
    print(f"        velvet / adamw {ratio:.2f} (target {UPDATE_TARGET}), copy rate reached {share:.2f}")
    if device.type != "cuda":
        print(f"        share of a GPU's copy bandwidth (goal {COPY_TARGET}): not measured here")
        return ratio <= UPDATE_TARGET
    return ratio <= UPDATE_TARGET and share >= COPY_TARGET


def demo_model(device: torch.device) -> nn.Module:
    """The `demo` shape with gradients."""
    model = build_llama(load_architecture("demo", REPOSITORY), 4096, {"bos": 1, "eos": 2, "pad": 3})
    for parameter in model.to(device).parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def update_pass(kind: str, device: torch.device) -> Callable[[], object]:
    """Norm, clipping and step on gradients that stay where they are."""
    model = demo_model(device)
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind), 1e-4)
    parameters = list(model.parameters())

    def adamw() -> None:
        norm = nn.utils.get_total_norm([each.grad for each in parameters])
        nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        optimizer.step()

    return adamw if kind == "adamw" else lambda: optimizer.step(Signals(3.0, 2.0, 1.0))


def bench_head(device: torch.device, rounds: int) -> bool:
    """Head, loss and both gradients for 2,048 rows in bf16."""
    held = True
    for label, (vocab, width, target) in HEADS.items():
        seconds = measure(head_passes(vocab, width, device), max(5, rounds // 3), device)
        ratio = seconds["full logits"] / seconds["chunked"]
        price = seconds["with entropy"] / seconds["chunked"]
        print(
            f"head    {label}: chunked {ratio:.2f}x full logits (target {target}), entropy costs {price:.2f}x"
        )
        held = held and ratio >= target
    return held


def head_passes(vocab: int, width: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Name -> one forward and backward pass."""
    hidden = torch.randn(2048, width, device=device, requires_grad=True)
    weight = torch.randn(vocab, width, device=device, requires_grad=True)
    targets = torch.randint(0, vocab, (2048,), device=device)

    def chunked(with_entropy: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            sums = linear_cross_entropy(hidden, weight, targets, with_entropy=with_entropy)
        torch.autograd.grad(sums.loss_sum, (hidden, weight))

    def full() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = F.linear(hidden, weight)
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        torch.autograd.grad(loss, (hidden, weight))

    return {"chunked": lambda: chunked(False), "with entropy": lambda: chunked(True), "full logits": full}


def measure(passes: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, so that a busy moment hits all alike."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds + 1):
        for name, run in passes.items():
            started = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(clock() - started)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
