"""
How fast are files hashed, against the faster of `sha256sum` and `openssl dgst -sha256` run in parallel over
the same files?

    python tools/bench/hashing.py                 # 8 files of 128 MiB in a temporary folder, five interleaved
    rounds

Every verification reads every byte, so this ratio is the price of the chain. The files are warm in the page
cache.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from utils.pipeline.environment import host_class
from utils.pipeline.hashing import hash_files, usable_cores

TARGET = 0.9
PEERS = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "dgst", "-sha256"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/hashing.py", description=__doc__.splitlines()[1])
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--mebibytes", type=int, default=128, help="size of each file")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.bin" for index in range(arguments.files)]
        for path in paths:
            path.write_bytes(os.urandom(arguments.mebibytes << 20))
        seconds = measure(contestants(paths), arguments.rounds)
    megabytes = arguments.files * (arguments.mebibytes << 20) / 1e6
    for name, taken in seconds.items():
        print(f"{name:<12}{megabytes / taken:8,.0f} MB/s")
    best_peer = min(taken for name, taken in seconds.items() if name != "hash_files")
    ratio = best_peer / seconds["hash_files"]
    print(f"ratio to the faster peer {ratio:.2f} (target {TARGET}); {host_class()}")
    return 0 if ratio >= TARGET else 4


def contestants(paths: list[Path]) -> dict[str, Callable[[], object]]:
    """Name -> one full pass over the files."""
    found: dict[str, Callable[[], object]] = {"hash_files": lambda: hash_files(paths)}
    for name, command in PEERS.items():
        if shutil.which(command[0]):
            found[name] = lambda command=command: _in_parallel(command, paths)
    return found


def _in_parallel(command: list[str], paths: list[Path]) -> None:
    names = "\n".join(map(str, paths))
    workers = ["xargs", "-P", str(usable_cores()), "-n", "1", *command]
    subprocess.run(workers, input=names, text=True, check=True, capture_output=True)


def measure(passes: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contestant; they take turns, so that a busy moment hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            started = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    sys.exit(main())
