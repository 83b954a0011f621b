"""
What a run pays for being watched over: saving, evaluating, being killed.

    bench_saving(rounds=5)         # TB9: stall of the loop by checkpoints
    bench_resume()                 # TB9: kill -9 at half, in all against an uninterrupted run
    bench_evaluation(rounds=5)     # TB10: evaluation inside training against forward passes alone
    bench_demo()                   # TB12: stage 50 of the demo

The last ones run scripts/50_pretrain.py on the demo's packed data, which must be there.
"""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from tools.bench.loops import CASES, BenchConfig, StoryRows, in_stage, our_trainer
from tools.bench.turns import FEWEST_ROUNDS, judge, take_turns, this_device
from utils.pipeline.manifest import read_manifest
from utils.pipeline.stage import Stage
from utils.pipeline.workspace import REPOSITORY
from utils.training.loop import Trainer
from utils.training.loss import next_token_targets

DEMO_CONFIG, FOLDER = "config/demo/50_pretrain.json", "checkpoints/bench"
DEMO_SECONDS, STALL_SHARE, RESUME_SHARE, EVALUATION_SHARE = 190.0, 0.01, 1.1, 0.9
STEPS_BETWEEN = 4
EVALUATED_ROWS = 32


class Ran(NamedTuple):
    """A whole command: wall and processor seconds."""

    wall: float
    cpu: float


def bench_saving(rounds: int) -> bool:
    """How long the loop stands still for a checkpoint, as a share of the time between two in the demo."""
    interval = json.loads(REPOSITORY.path(DEMO_CONFIG).read_text())["save_every_steps"]
    stalls, steps = [], []

    def body(config: BenchConfig, stage: Stage) -> None:
        trainer = our_trainer(CASES["demo"], config, stage)
        trainer.resume()
        loop = iter(trainer)
        for _ in range(max(rounds, FEWEST_ROUNDS) + 1):
            started = time.perf_counter()
            float([loss for _, loss in islice(loop, STEPS_BETWEEN)][-1])
            stepped = time.perf_counter()
            trainer.save()
            stalls.append(time.perf_counter() - stepped)
            steps.append((stepped - started) / STEPS_BETWEEN)
        trainer.finish()

    in_stage(body, save_every_steps=10**6, eval_every_steps=10**6, micro_batch_rows=8, **_quiet())
    stall, step = statistics.median(stalls[1:]), statistics.median(steps[1:])
    share = stall / (interval * step)
    print(
        f"TB9   a checkpoint of demo stops the loop for {1e3 * stall:.1f} ms, a step is {1e3 * step:.0f} ms"
    )
    return judge(
        f"      share of the time, saving every {interval} steps as the demo", share, most=STALL_SHARE
    )


def bench_evaluation(rounds: int) -> bool:
    """Tokens per second of Trainer.validate over those of forward passes that end at the logits."""
    case, found = CASES["demo"], {}

    def body(config: BenchConfig, stage: Stage) -> None:
        trainer = our_trainer(case, config, stage)
        trainer.resume()
        rows, size = StoryRows(case), case.batch_rows
        batches = [rows.numbered(first, size) for first in range(0, EVALUATED_ROWS, size)]
        passes = {"evaluation": lambda: trainer.validate(batches)}
        passes["forward"] = lambda: _forward(trainer, batches)
        found.update(take_turns(passes, rounds, this_device()))

    in_stage(body, micro_batch_rows=8, **_quiet())
    rate = {name: EVALUATED_ROWS * case.row_tokens / seconds for name, seconds in found.items()}
    print(f"TB10  evaluation {rate['evaluation']:,.0f} tokens/s, forward passes alone {rate['forward']:,.0f}")
    return judge("      evaluation / forward", rate["evaluation"] / rate["forward"], least=EVALUATION_SHARE)


@torch.no_grad()
def _forward(trainer: Trainer, batches: list) -> None:
    trainer.model.eval()
    for batch in batches:
        inputs, _, position = next_token_targets(batch, trainer.machine.device)
        with trainer.machine.precision.autocast():
            trainer.model(input_ids=inputs, position_ids=position, use_cache=False)


def _quiet() -> dict[str, object]:
    return {"cpu_threads": torch.get_num_threads(), "precision": "bf16"}


def bench_demo() -> bool:
    """Stage 50 of the demo from start to manifest."""
    ran = _run_stage("base", {})
    metrics = read_manifest(REPOSITORY.path(f"{FOLDER}/base"))[0].metrics
    print(f"TB12  stage 50 of demo: {ran.wall:.0f} s ({ran.cpu:.0f} s of CPU), target {DEMO_SECONDS:.0f} s")
    print(f"      validation loss {metrics['val_loss']:.3f}, bigram model {metrics['bigram_loss']:.3f}")
    return ran.wall <= DEMO_SECONDS and metrics["val_loss"] < metrics["bigram_loss"]


def bench_resume(tokens: int = 600_000) -> bool:
    """CPU time of a run killed at half and run again, over that of one in peace; a save every twentieth."""
    shorter = {"budget": {"unit": "tokens", "value": tokens}, "save_every_steps": "auto"}
    whole = _run_stage("whole", shorter)
    first = _run_stage("killed", shorter, kill_after=whole.cpu / 2)
    second = _run_stage("killed", shorter, keep=True)
    folders = [REPOSITORY.path(f"{FOLDER}/{name}") for name in ("whole", "killed")]
    same = len({read_manifest(folder)[0].output_digest for folder in folders}) == 1
    print(f"TB9r  CPU of a run {whole.cpu:.0f} s; killed at half {first.cpu:.0f}, resumed {second.cpu:.0f}")
    print(f"      the outputs are {'equal' if same else 'NOT EQUAL'}")
    ratio = (first.cpu + second.cpu) / whole.cpu
    return judge("      killed and resumed, in all", ratio, most=RESUME_SHARE) and same


def _run_stage(name: str, values: dict, keep: bool = False, kill_after: float = 0.0) -> Ran:
    """Run stage 50 of the demo with other values, killed by -9 after so many seconds of CPU where asked."""
    config = json.loads(REPOSITORY.path(DEMO_CONFIG).read_text()) | values
    config |= {"output": f"{FOLDER}/{name}", "micro_batch_rows": 8}
    if not keep:
        for folder in (REPOSITORY.path(FOLDER)).glob(f"{name}*"):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    path = REPOSITORY.path(f"data/bench/{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    command = [sys.executable, "scripts/50_pretrain.py", "--config", str(path), "--log-level", "warning"]
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=REPOSITORY.root, start_new_session=True)
    while kill_after and child.poll() is None and _cpu_seconds(child.pid) < kill_after:
        time.sleep(0.1)
    if kill_after:
        child.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(child.pid, 0)
    if status and not kill_after:
        sys.exit(f"scripts/50_pretrain.py ended with {os.waitstatus_to_exitcode(status)}; see {path}")
    return Ran(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
