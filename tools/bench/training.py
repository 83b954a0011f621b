"""
How fast is training, against transformers.Trainer, torch's own operations and itself without extras?

    python tools/bench/training.py                       # every claim but the slow ones
    python tools/bench/training.py --only TB1 TB9        # some of them; --rounds 9 for more blocks

TB1   training tokens/s against transformers.Trainer: equal model, rows, precision, threads, fused AdamW and
      clipping; shapes demo and tiny, eager on both sides
TB1c  the same with compilation on both sides (slow)
TB2   head, loss and gradients (on a GPU TB4); TB3 optimizer step; TB5 ERA-GLU; TB6 experts
TB7   end to end on one GPU: vesper_xlarge, compiled      TB8  tiny and medium
TB9   what checkpoints cost; TB9r a kill and a second start (slow, needs the demo's data)
TB10  evaluation inside training against forward passes alone
TB11  rows out of raw text against rows in memory (needs the demo's tokenizer)
TB12  stage 50 of the demo (slow, needs the demo's data)

Contestants take turns in one process; medians of at least five blocks, CPU time where there is no GPU.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import TrainerCallback

from tools.bench.loops import (
    CASES,
    BenchConfig,
    Case,
    in_stage,
    our_trainer,
    separate_accelerators,
    their_trainer,
)
from tools.bench.ops import bench_era, bench_experts, bench_head, bench_update
from tools.bench.streams import bench_stream
from tools.bench.turns import FEWEST_ROUNDS, NOT_MEASURED, clock, judge, take_turns, this_device, versions
from tools.bench.upkeep import bench_demo, bench_evaluation, bench_resume, bench_saving
from utils.models.presets import flops_per_token, load_architecture
from utils.pipeline.stage import Stage
from utils.pipeline.workspace import REPOSITORY
from utils.training.speed import stated_peak

LOOP_TARGET, CURVE_TOLERANCE = 1.15, 0.01
BLOCK_TOKENS = 4096
XLARGE = {f"vesper_xlarge at {n}": Case("vesper_xlarge", 32_768, 65_536 // n, n) for n in (1024, 2048, 4096)}
SMALLER = {name: Case(name, 32_768, 64, 1024) for name in ("tiny", "medium")}
GPU_STEPS = 10


class Alternating(TrainerCallback):
    """After each block of the other trainer's steps, a block of ours; seconds of both."""

    def __init__(self, ours: Iterator[tuple[int, float]], steps: int, device: torch.device) -> None:
        self._ours, self._steps, self._device = ours, steps, device
        self.seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        self.losses: list[float] = []
        self._started = 0.0

    def on_train_begin(self, *_: object, **__: object) -> None:
        self._started = clock(self._device)

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        if state.global_step % self._steps:
            return
        between = clock(self._device)
        self.losses += [float(next(self._ours)[1]) for _ in range(self._steps)]
        ended = clock(self._device)
        self.seconds["theirs"].append(between - self._started)
        self.seconds["ours"].append(ended - between)
        self._started = clock(self._device)


def bench_loop(rounds: int, compiled: bool, precision: str) -> bool:
    """TB1."""
    held = [compare_loops(name, rounds, compiled, precision) for name in CASES]
    return all(held)


def compare_loops(name: str, rounds: int, compiled: bool, precision: str) -> bool:
    """One shape of TB1: tokens/s of both, and how far apart their loss curves are."""
    case = CASES[name]
    block = max(1, BLOCK_TOKENS // case.tokens)
    steps = block * (max(rounds, FEWEST_ROUNDS) + 1)
    both, curve = _run_both(case, block, steps, compiled, precision)
    medians = {side: statistics.median(taken[1:]) for side, taken in both.seconds.items()}
    ours, theirs = (case.tokens * block / medians[side] for side in ("ours", "theirs"))
    kind = f"{precision}, {'compiled' if compiled else 'eager'}"
    print(f"TB1   {name:<5} {kind}: {ours:,.0f} tokens/s, transformers.Trainer {theirs:,.0f}")
    apart = [abs(a - b) / b for a, b in zip(both.losses, curve, strict=True)]
    print(
        f"      loss after {steps} steps {both.losses[-1]:.4f} and {curve[-1]:.4f}, "
        f"apart {statistics.fmean(apart):.2%} on average, {max(apart):.2%} at most"
    )
    held = judge("      speed over transformers.Trainer", ours / theirs, least=LOOP_TARGET)
    return held and statistics.fmean(apart) <= CURVE_TOLERANCE


def _run_both(
    case: Case, block: int, steps: int, compiled: bool, precision: str
) -> tuple[Alternating, list[float]]:
    """Train with both loops, block by block; our times and losses, and their losses."""
    found: dict = {}

    def body(config: BenchConfig, stage: Stage) -> None:
        trainer = our_trainer(case, config, stage)
        trainer.resume()
        both = Alternating(iter(trainer), block, this_device())
        with separate_accelerators(), tempfile.TemporaryDirectory() as folder:
            theirs = their_trainer(case, precision, compiled, steps, Path(folder), both)
            theirs.train()
        found.update(both=both, curve=[row["loss"] for row in theirs.state.log_history if "loss" in row])

    in_stage(
        body,
        precision=precision,
        steps=steps + 1,
        cpu_threads=torch.get_num_threads(),
        micro_batch_rows=case.batch_rows,
        compile="on" if compiled else "off",
    )
    return found["both"], found["curve"]


def bench_end_to_end(claim: str, cases: dict[str, Case], least_mfu: float) -> bool:
    """TB7, TB8: tokens/s and share of the stated peak of whole steps on a GPU."""
    if this_device().type != "cuda":
        print(f"{claim:<5} {', '.join(cases)} end to end on one GPU: {NOT_MEASURED}")
        return True
    held = [_end_to_end(claim, name, case, least_mfu) for name, case in cases.items()]
    return all(held)


def _end_to_end(claim: str, name: str, case: Case, least_mfu: float) -> bool:
    device, found = this_device(), {}

    def body(config: BenchConfig, stage: Stage) -> None:
        trainer = our_trainer(case, config, stage)
        trainer.resume()
        loop = iter(trainer)
        run = {"steps": lambda: [None for _ in islice(loop, GPU_STEPS)]}
        found.update(take_turns(run, FEWEST_ROUNDS, device))

    in_stage(body, precision="bf16", compile="on", micro_batch_rows="auto")
    rate = case.tokens * GPU_STEPS / found["steps"]
    flops = flops_per_token(load_architecture(case.preset, REPOSITORY), case.vocab_size, case.row_tokens)
    peak = stated_peak(torch.cuda.get_device_name(device))
    print(
        f"{claim:<5} {name}, {case.row_tokens} tokens a row: {rate:,.0f} tokens/s; litgpt, nanochat: absent"
    )
    if peak is None:
        print("      MFU: the peak of this GPU is not known")
        return not least_mfu
    return judge("      MFU", rate * flops / peak, least=least_mfu)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/training.py", description=__doc__.splitlines()[1])
    parser.add_argument("--only", nargs="+", choices=list(CLAIMS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of TB1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = arguments.only or [name for name in CLAIMS if name not in SLOW]
    held = [CLAIMS[name](arguments) for name in chosen]
    print(f"{date.today()}: {versions(this_device())}")
    return 0 if all(held) else 4


CLAIMS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "TB1": lambda given: bench_loop(given.rounds, False, given.precision),
    "TB1c": lambda given: bench_loop(given.rounds, True, given.precision),
    "TB2": lambda given: bench_head(this_device(), given.rounds),
    "TB3": lambda given: bench_update(this_device(), given.rounds),
    "TB5": lambda given: bench_era(this_device(), given.rounds),
    "TB6": lambda given: bench_experts(this_device(), given.rounds),
    "TB7": lambda _: bench_end_to_end("TB7", XLARGE, 0.5),
    "TB8": lambda _: bench_end_to_end("TB8", SMALLER, 0.0),
    "TB9": lambda given: bench_saving(given.rounds),
    "TB9r": lambda _: bench_resume(),
    "TB10": lambda given: bench_evaluation(given.rounds),
    "TB11": lambda given: bench_stream(given.rounds),
    "TB12": lambda _: bench_demo(),
}
SLOW = ("TB1c", "TB9r", "TB12")


if __name__ == "__main__":
    sys.exit(main())
