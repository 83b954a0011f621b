"""
How fast is text prepared, in how much memory, and what does a kill cost?

    python tools/bench/prepare.py speed --books 'books/*.jsonl.gz'            # tokens per second
    python tools/bench/prepare.py memory --books ... --gigabytes 1            # all processes together
    python tools/bench/prepare.py resume --books ...                          # killed at half time

The stage runs as a process of its own, from reading its sources to the sealed manifest: cleaning, quality,
language, exact and near duplicates, split, shards, and kept copies of what was removed. Tokens are characters
over 4.3. A larger corpus is grown from the books by replacing words at random: some copies are near
duplicates, some not. tools/bench/prepare_peer.py compares with datatrove.
"""

import argparse
import glob
import gzip
import importlib.util
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.pipeline.environment import host_class

ROOT = Path(__file__).resolve().parents[2]
STAGE = "20_prepare_corpus"
PACKAGES = ("ftfy", "py3langid", "numpy", "sentencepiece")
CHARACTERS_PER_TOKEN = 4.3
MIN_TOKENS_PER_SECOND, MAX_GIGABYTES, MAX_RESUME_RATIO = 500_000, 2.0, 1.1
# share of words that a copy of the books replaces: Jaccard about 0.95, 0.82, 0.63, 0.20, 0.04
EDITS = (0.005, 0.02, 0.05, 0.2, 0.4)
RUN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tools.bench.prepare import run_stage_in
if __name__ == "__main__":
    sys.exit(run_stage_in(Path({folder!r})))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/prepare.py", description=__doc__.splitlines()[1])
    parser.add_argument("what", choices=["speed", "memory", "resume"])
    parser.add_argument("--books", required=True, help="glob of .jsonl.gz files with text, title and id")
    parser.add_argument(
        "--gigabytes", type=float, default=0, help="size of the corpus; 0 = the books as they are"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of speed")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        characters = grow(sorted(glob.glob(arguments.books)), root / "raw", arguments.gigabytes)
        write_config(root, arguments.workers)
        print(
            f"{characters / 1e6:,.0f} M characters, {characters / CHARACTERS_PER_TOKEN / 1e6:,.1f} M tokens"
        )
        good = {"speed": speed, "memory": memory, "resume": resume}[arguments.what](
            root, characters, arguments
        )
    return 0 if good else 4


def speed(root: Path, characters: int, arguments: argparse.Namespace) -> bool:
    """Median of a few runs."""
    rates = [characters / CHARACTERS_PER_TOKEN / timed(root) for _ in range(arguments.rounds)]
    rate = statistics.median(rates)
    print(f"tokens/s {', '.join(f'{rate:,.0f}' for rate in rates)}")
    print(f"median {rate:,.0f} tokens/s (target {MIN_TOKENS_PER_SECOND:,}); {versions()}")
    return rate >= MIN_TOKENS_PER_SECOND


def memory(root: Path, characters: int, arguments: argparse.Namespace) -> bool:
    """The largest sum of the resident sets of the stage and its workers, looked at ten times a second."""
    started = time.perf_counter()
    process = start(root)
    tree, most = psutil.Process(process.pid), {}
    while process.poll() is None:
        sizes = resident(tree)
        if sum(sizes) > sum(most.values()):
            most = dict(enumerate(sizes))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    gigabytes = sum(most.values()) / 1e9
    shown = ", ".join(f"{size / 1e6:,.0f}" for size in most.values())
    print(
        f"{seconds:.1f} s, {characters / CHARACTERS_PER_TOKEN / seconds:,.0f} tokens/s; processes {shown} MB"
    )
    print(f"most memory {gigabytes:.2f} GB (target {MAX_GIGABYTES:g}); {versions()}")
    return process.returncode == 0 and gigabytes < MAX_GIGABYTES


def resident(tree: psutil.Process) -> list[int]:
    """Resident bytes of a process and of everything below it."""
    sizes = []
    try:
        for process in [tree, *tree.children(recursive=True)]:
            sizes.append(process.memory_info().rss)
    except psutil.NoSuchProcess:
        pass
    return sizes


def resume(root: Path, characters: int, arguments: argparse.Namespace) -> bool:
    """
    Two runs, one of them killed at half the time of the other and started again. Processor time is compared,
    since other work on the machine changes seconds by more than a kill costs.
    """
    calm, calm_cpu = timed(root), children_cpu()
    shutil.rmtree(root / "data")
    started = time.perf_counter()
    process = start(root)
    time.sleep(calm / 2)
    killed_cpu = tree_cpu(psutil.Process(process.pid))
    process.kill()
    process.wait()
    before, already = time.perf_counter() - started, children_cpu()
    total = before + timed(root, fresh=False)
    total_cpu = killed_cpu + children_cpu() - already
    ratio = total_cpu / calm_cpu
    print(f"uninterrupted {calm:.1f} s, killed at {before:.1f} s and resumed {total:.1f} s in all")
    print(f"CPU {calm_cpu:.1f} s, killed at {killed_cpu:.1f} s and resumed {total_cpu:.1f} s in all")
    print(f"ratio of CPU {ratio:.3f} (target {MAX_RESUME_RATIO}); {versions()}")
    return ratio <= MAX_RESUME_RATIO


def tree_cpu(root: psutil.Process) -> float:
    """Processor seconds of a process and of everything below it, so far."""
    times = [process.cpu_times() for process in [root, *root.children(recursive=True)]]
    return sum(used.user + used.system for used in times)


def children_cpu() -> float:
    """Processor seconds of all processes that were started here and have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def versions() -> str:
    """What the figures were measured with."""
    found = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    return f"{found}; {host_class()}"


def timed(root: Path, fresh: bool = True) -> float:
    """Seconds of one run of the stage."""
    if fresh:
        shutil.rmtree(root / "data", ignore_errors=True)
    started = time.perf_counter()
    assert start(root).wait() == 0, "the stage failed"
    return time.perf_counter() - started


def start(root: Path) -> subprocess.Popen:
    code = RUN.format(root=str(ROOT), folder=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


def run_stage_in(root: Path) -> int:
    """Run stage 20 in a workspace of its own; returns its exit code."""
    from utils.pipeline.stage import execute
    from utils.pipeline.workspace import STAGES, Workspace

    spec = importlib.util.spec_from_file_location("stage_20", ROOT / "scripts" / f"{STAGE}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    workspace = Workspace(root, STAGES)
    arguments = ["--config", str(root / f"{STAGE}.json")]
    return execute(STAGE, workspace.config_class(STAGE), script.main, arguments, workspace=workspace)


def write_config(root: Path, workers: int, preset: str = "prose") -> None:
    fields = {"text": "text", "group": "title", "id": "id"}
    source = {"name": "books", "kind": "local", "paths": ["raw/*"], "fields": fields, "preset": preset}
    config = {
        "output": "data/corpus",
        "sources": [source | {"max_removed_fraction": 1.0}],
        "language": {"keep": ["en"]},
        "split": {"by": "document", "min_val_documents": 1},
        "executor": {"workers": workers},
    }
    (root / f"{STAGE}.json").write_text(json.dumps(config), encoding="utf-8")


def grow(books: list[str], folder: Path, gigabytes: float) -> int:
    """Write the books, and edited copies of them up to this size; returns the number of characters."""
    folder.mkdir()
    characters = 0
    for name in books:
        shutil.copy(name, folder)
        characters += sum(len(row["text"]) for row in rows_of(name))
    copy = 0
    while characters < gigabytes * 1e9:
        with open(folder / f"copy-{copy:03d}.jsonl", "w", encoding="utf-8") as file:
            for name in books:
                for row in rows_of(name):
                    row["text"] = edited(row["text"], EDITS[copy % len(EDITS)], f"{copy}/{row['id']}")
                    row["title"] += f" ({copy})"
                    characters += len(row["text"])
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        copy += 1
    return characters


def rows_of(name: str) -> Iterator[dict]:
    with gzip.open(name, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def edited(text: str, share: float, seed: str) -> str:
    """Replace this share of the words by others of the text."""
    dice = random.Random(seed)
    words = text.split(" ")
    for _ in range(round(share * len(words))):
        words[dice.randrange(len(words))] = words[dice.randrange(len(words))]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
