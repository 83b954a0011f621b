"""
What do our kernels cost, against torch's own operations and what this machine can copy and multiply?

    python tools/bench/ops.py                    # every claim, on the GPU where there is one
    python tools/bench/ops.py --only head        # update | head | era | experts
    TRITON_INTERPRET=1 python tools/bench/ops.py --check      # right answers only; needs no GPU

update    norm, clipping and step of AdamW and of Velvet, against torch's fused AdamW and a copy of 28 bytes
          a parameter
head      loss and gradients of the chunked head, against full logits, torch's F.linear_cross_entropy, and on
          a GPU their compiled form and Liger
era       ERA-GLU forward and backward, against the compiled plain form and the copy rate (GPU)
experts   grouped experts, against a dense layer of equal FLOPs and a loop over experts (GPU)

On a GPU every kernel proves its answers first, and copy and product rates are measured in the same run;
without one, what needs it prints `not measured here`. CPU: one thread, CPU time.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn
from torch.nn import functional as F

from kernels import era, linear_cross_entropy, moe, velvet_update
from kernels.linear_cross_entropy import Signals
from kernels.resolution import interpreted
from tools.bench.ops_gpu import bench_era, bench_experts, bench_head_on_gpu
from tools.bench.turns import NOT_MEASURED, judge, take_turns, this_device, versions
from utils.config.training import OptimizerConfig
from utils.models.llama import build_llama
from utils.models.presets import load_architecture
from utils.optim.groups import build_optimizer
from utils.pipeline.workspace import REPOSITORY

KERNELS = (velvet_update, linear_cross_entropy, era, moe)
CPU_UPDATE_TARGET, GPU_UPDATE_TARGET, COPY_TARGET = 1.05, 1.02, 0.92
HEADS = {"4,096 x 256": (4096, 256, 1.5), "32,768 x 256": (32_768, 256, 1.1)}
HEAD_ROWS = 2048
FULL_LOGITS, PATIENCE = "full logits", 4.0
COPIED_BYTES = 28
UPDATED_ON_GPU = [8192 * 8192] * 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/ops.py", description=__doc__.splitlines()[1])
    parser.add_argument("--only", choices=sorted(CLAIMS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--check", action="store_true", help="prove the Triton forms right and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = this_device()
    if arguments.check or device.type == "cuda":
        check(device)
    if arguments.check:
        return 0
    chosen = [CLAIMS[arguments.only]] if arguments.only else list(CLAIMS.values())
    held = [claim(device, arguments.rounds) for claim in chosen]
    print(versions(device))
    return 0 if all(held) else 4


def check(device: torch.device) -> None:
    """Every Triton form against its twin on this device. SystemExit where Triton cannot run."""
    if device.type == "cpu" and not interpreted():
        raise SystemExit("--check without a GPU needs TRITON_INTERPRET=1")
    for kernel in KERNELS:
        kernel.self_check(device.type)
        print(f"check   {kernel.__name__}: the Triton form agrees with torch on {device.type}")


def bench_update(device: torch.device, rounds: int) -> bool:
    """The whole step of both optimizers, behind their norms."""
    passes = {kind: update_pass(kind, device) for kind in ("torch", "adamw", "velvet")}
    parameters = sum(each.numel() for each in updated(device))
    source = torch.zeros(parameters * COPIED_BYTES // 8, device=device)
    target = torch.empty_like(source)
    passes["copy"] = lambda: target.copy_(source)
    seconds = take_turns(passes, rounds, device)
    for name, taken in seconds.items():
        print(f"update  {name:<8}{1e3 * taken:8.3f} ms for {parameters:,} parameters")
    most = GPU_UPDATE_TARGET if device.type == "cuda" else CPU_UPDATE_TARGET
    ours = {kind: seconds[kind] / seconds["torch"] for kind in ("adamw", "velvet")}
    held = [judge(f"        {kind} / torch fused AdamW", ratio, most=most) for kind, ratio in ours.items()]
    share = seconds["copy"] / seconds["velvet"]
    if device.type == "cuda":
        held.append(judge("        velvet, share of copy bandwidth", share, least=COPY_TARGET))
    else:
        print(f"        velvet reaches {share:.2f} of this CPU's copy rate; share of a GPU's: {NOT_MEASURED}")
    return all(held)


def updated(device: torch.device) -> list[nn.Parameter]:
    """Parameters with gradients: the `demo` shape, on a GPU 134 M in two matrices."""
    if device.type == "cuda":
        made = [nn.Parameter(torch.zeros(size // 8192, 8192, device=device)) for size in UPDATED_ON_GPU]
    else:
        made = list(_demo().parameters())
    for parameter in made:
        parameter.grad = torch.randn_like(parameter)
    return made


def update_pass(kind: str, device: torch.device) -> Callable[[], object]:
    """Norm, clipping and step on gradients that stay where they are."""
    parameters = updated(device)
    if kind == "torch":
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), fused=True)
    else:
        model = _Holder(parameters)
        optimizer = build_optimizer(model, OptimizerConfig(kind=kind), 1e-4)

    def stock() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return (lambda: optimizer.step(Signals(3.0, 2.0, 1.0))) if kind == "velvet" else stock


class _Holder(nn.Module):
    """Parameters as a model that an optimizer can be built for."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(parameters)
        self.head = nn.Linear(1, 4096, bias=False).requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def _demo() -> nn.Module:
    return build_llama(load_architecture("demo", REPOSITORY), 4096, {"bos": 1, "eos": 2, "pad": 3})


def bench_head(device: torch.device, rounds: int) -> bool:
    """Head, loss and both gradients in bf16."""
    if device.type == "cuda":
        return bench_head_on_gpu(device, rounds)
    held = []
    for label, (vocab, width, target) in HEADS.items():
        seconds = take_turns(head_passes(vocab, width), rounds, device, PATIENCE)
        for name, taken in seconds.items():
            print(f"head    {label}  {name:<24}{1e3 * taken:9.1f} ms")
        chunked, entropy = seconds.pop("chunked"), seconds.pop("with entropy")
        for name, taken in seconds.items():
            least = target if name == FULL_LOGITS else 1.0
            held.append(judge(f"        {label}: speed over {name}", taken / chunked, least=least))
        print(f"        {label}: entropy costs {entropy / chunked:.2f}")
    return all(held)


def head_passes(vocab: int, width: int) -> dict[str, Callable[[], object]]:
    """Name -> one forward and backward pass over 2,048 rows, which returns the loss and its two gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(HEAD_ROWS, width, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(vocab, width, generator=generator)).requires_grad_()
    targets = torch.randint(0, vocab, (HEAD_ROWS,), generator=generator)

    def run(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def forward_and_backward() -> tuple[torch.Tensor, ...]:
            with torch.autocast("cpu", torch.bfloat16):
                value = loss()
            return (value.detach(), *torch.autograd.grad(value, (hidden, weight)))

        return forward_and_backward

    def ours(with_entropy: bool) -> torch.Tensor:
        head = linear_cross_entropy.linear_cross_entropy
        return head(hidden, weight, targets, with_entropy=with_entropy).loss_sum

    def full() -> torch.Tensor:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    passes = {"chunked": lambda: ours(False), "with entropy": lambda: ours(True), FULL_LOGITS: full}
    return {name: run(loss) for name, loss in (passes | torchs_own(hidden, weight, targets)).items()}


def torchs_own(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> dict[str, Callable[[], torch.Tensor]]:
    """torch's operation with and without chunks, in bf16; none before the version that brought it."""
    if not hasattr(nn, "LinearCrossEntropyOptions"):
        print("head    F.linear_cross_entropy: absent from this torch")
        return {}

    def loss(options: object) -> torch.Tensor:
        low = hidden.bfloat16(), weight.bfloat16()
        return F.linear_cross_entropy(*low, targets, reduction="sum", options=options)

    chunked = nn.LinearCrossEntropyOptions()
    return {"F.linear_cross_entropy": lambda: loss(None), "the same with chunks": lambda: loss(chunked)}


CLAIMS = {"update": bench_update, "head": bench_head, "era": bench_era, "experts": bench_experts}


if __name__ == "__main__":
    sys.exit(main())
