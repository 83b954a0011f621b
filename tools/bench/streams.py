"""
What it costs to train on raw text that nobody packed.

    bench_stream(rounds=7)         # TB11

Steps whose rows come out of a text file, decoded, encoded and shuffled on the training thread, against steps
whose rows are in memory. Needs the demo's tokenizer.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from tools.bench.loops import CASES, BenchConfig, Case, in_stage, our_trainer
from tools.bench.text import story_text
from tools.bench.turns import NOT_MEASURED, judge, take_turns, this_device
from utils.packing.index import SpecialIds
from utils.packing.inputs import RawData
from utils.packing.raw import raw_file
from utils.packing.shards import Encoder, RawText
from utils.packing.stream import BUFFER_ROWS, TextStream
from utils.pipeline.stage import Stage
from utils.pipeline.workspace import REPOSITORY
from utils.tokenizer.frozen import FrozenTokenizer
from utils.training.loop import Trainer
from utils.training.rows import MixtureRows

TOKENIZER = "data/demo/tokenizer"
STREAM_SHARE = 0.95
NUM_STORIES = 10_000
CPU_STEPS = 4


def bench_stream(rounds: int) -> bool:
    """Speed of training from raw text over that from rows in memory; speed of the reading alone."""
    device = this_device()
    seconds = _on_gpu(CASES["tiny"], rounds, device) if device.type == "cuda" else {}
    case = CASES["tiny" if seconds else "demo"]
    seconds = seconds or _on_cpu(case, rounds, device)
    read = case.tokens / seconds["reading"]
    print(f"TB11  {case.preset}: raw text is read at {read:,.0f} tokens/s by one thread")
    if device.type != "cuda":
        print(f"      tiny on a GPU: {NOT_MEASURED}")
    return judge("      raw text / rows in memory", seconds["memory"] / seconds["raw"], least=STREAM_SHARE)


def _on_gpu(case: Case, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step; the host reads while the device computes."""
    steps, found = _steps_of_a_buffer(case), {}

    def body(config: BenchConfig, stage: Stage) -> None:
        raw = MixtureRows(text_stream(stage.partial / "trained.txt", case), RawData.read)
        trainers = {"raw": our_trainer(case, config, stage, raw), "memory": our_trainer(case, config, stage)}
        runs = {name: _steps(trainer, steps) for name, trainer in trainers.items()}
        runs["reading"] = _reading(stage.partial / "read.txt", case)
        found.update(take_turns(runs, rounds, device))

    in_stage(body, micro_batch_rows=case.batch_rows, precision="bf16")
    return {name: taken / steps for name, taken in found.items()}


def _on_cpu(case: Case, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of a step; what the thread reads it cannot train meanwhile, so the two add up."""
    found = {}

    def body(config: BenchConfig, stage: Stage) -> None:
        trainer, reading = our_trainer(case, config, stage), _reading(stage.partial / "read.txt", case)
        found.update(take_turns({"memory": _steps(trainer, CPU_STEPS), "reading": reading}, rounds, device))

    in_stage(body, micro_batch_rows=case.batch_rows, precision="bf16", cpu_threads=torch.get_num_threads())
    step, read = found["memory"] / CPU_STEPS, found["reading"] / _steps_of_a_buffer(case)
    return {"memory": step, "reading": read, "raw": step + read}


def _steps_of_a_buffer(case: Case) -> int:
    """As many as empty the stream's buffer once, so that a round holds one filling."""
    return BUFFER_ROWS // case.batch_rows


def _reading(path: Path, case: Case) -> Callable[[], object]:
    stream, steps = text_stream(path, case), _steps_of_a_buffer(case)
    return lambda: [stream.next_step(0, 1) for _ in range(steps)]


def text_stream(path: Path, case: Case) -> TextStream:
    """Rows of the stories, which are written to `path` first."""
    path.write_text(story_text(NUM_STORIES, seed=0))
    tokenizer = FrozenTokenizer(REPOSITORY.path(TOKENIZER))
    special = SpecialIds(*(tokenizer.block["special_ids"][name] for name in ("bos", "eos", "pad")))
    encoder = Encoder(tokenizer.encode_text, special, tokenizer.vocab_size)
    text = RawText(path.name, "stories", [raw_file(path, "text", "\n\n", 1 << 20)], encoder)
    return TextStream([text], [1.0], 0, case.batch_rows, case.row_tokens)


def _steps(trainer: Trainer, count: int) -> Callable[[], object]:
    trainer.resume()
    loop = iter(trainer)
    return lambda: [float(loss) for _, loss in islice(loop, count)]
