"""
How fast is the way from text to rows of ids: training the tokenizer, packing against sentencepiece alone, and
reading a mixture of two datasets?

    python tools/bench/tokens.py data/raw/corpus/*.jsonl.gz                  # about two minutes for 60 MB
    python tools/bench/tokens.py FILES --only packing                        # tokenizer | packing | mixture

The files become a corpus by stage 20 first, which is not timed. Each stage runs as a user runs it, a whole
command in a new process, and all of it counts: start, verification of the input, work, rows, manifest. The
peer of packing is `SentencePieceProcessor.encode(texts, num_threads=2)` over the same texts, in memory.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.prepare import versions
from utils.corpus.shards import read_lines
from utils.packing.dataset import PackedDataset
from utils.packing.mixture import Mixture, MixtureSource, read_draws
from utils.pipeline.inputs import Input
from utils.pipeline.manifest import read_manifest
from utils.pipeline.workspace import REPOSITORY

FOLDER = "data/bench"
SAMPLE_MEBIBYTES, VOCABULARY, ROW_TOKENS = 12, 8_192, 1_024
MOST_TOKENIZER_SECONDS, LEAST_PACKING_RATIO, LEAST_READER_TOKENS = 20, 0.9, 20e6
WEIGHTS, BATCH_ROWS, STEPS = (0.7, 0.3), 32, 1_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/tokens.py", description=__doc__.splitlines()[1])
    parser.add_argument("files", nargs="+", type=Path, help="texts, in any format that stage 20 reads")
    parser.add_argument("--only", choices=list(CLAIMS), default="")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    corpus = prepare([str(path.resolve()) for path in arguments.files])
    print(f"{corpus.manifest.metrics['train_documents']:,} training documents; {versions()}")
    run_stage("30_train_tokenizer", tokenizer_config())
    claims = [CLAIMS[arguments.only]] if arguments.only else CLAIMS.values()
    held = [claim(corpus, arguments.rounds) for claim in claims]
    return 0 if all(held) else 4


def prepare(files: list[str]) -> Input:
    """The corpus of these files, made by stage 20 unless it is there already."""
    fields = {"text": "text", "group": "title", "optional": ["group"]}
    source = {"name": "books", "kind": "local", "paths": files, "fields": fields}
    config = {"output": f"{FOLDER}/corpus", "sources": [source], "deduplicate": {"near": False}}
    run_stage("20_prepare_corpus", config)
    folder = REPOSITORY.path(config["output"])
    return Input("corpus", folder, read_manifest(folder)[0])


def tokenizer_config() -> dict:
    inputs = {"corpus": f"{FOLDER}/corpus"}
    sizes = {"vocab_size": VOCABULARY, "sample_mebibytes": SAMPLE_MEBIBYTES}
    return {"output": f"{FOLDER}/tokenizer", "inputs": inputs} | sizes


def pack_config(mode: str) -> dict:
    inputs = {"corpus": f"{FOLDER}/corpus", "tokenizer": f"{FOLDER}/tokenizer"}
    rows = {"sequence_length_tokens": ROW_TOKENS, "mode": mode}
    return {"output": f"{FOLDER}/packed_{mode}", "inputs": inputs} | rows


def run_stage(stage: str, config: dict, *switches: str) -> float:
    """Seconds of a whole command; its output is shown when it fails."""
    path = REPOSITORY.path(FOLDER) / f"{stage}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config), encoding="utf-8")
    command = [sys.executable, f"scripts/{stage}.py", "--config", str(path), *switches]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY.root, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return seconds


def measure_tokenizer(corpus: Input, rounds: int) -> bool:
    """Training on 12 MiB with all gates and the report."""
    seconds = min(run_stage("30_train_tokenizer", tokenizer_config(), "--force") for _ in range(rounds))
    print(
        f"tokenizer   {SAMPLE_MEBIBYTES} MiB, {VOCABULARY:,} pieces, all gates: {seconds:.1f} s "
        f"(target below {MOST_TOKENIZER_SECONDS})"
    )
    return seconds < MOST_TOKENIZER_SECONDS


def measure_packing(corpus: Input, rounds: int) -> bool:
    """Packing against encoding alone, taking turns, the best of each."""
    import sentencepiece

    texts = [json.loads(line)["text"] for split in ("train", "val") for line in read_lines(corpus, split)]
    model = REPOSITORY.path(FOLDER) / "tokenizer" / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours, peer = [], []
    for _ in range(rounds):
        peer.append(seconds_of(lambda: processor.encode(texts, num_threads=2)))
        ours.append(run_stage("40_pack_dataset", pack_config("best_fit"), "--force"))
    metrics = read_manifest(REPOSITORY.path(pack_config("best_fit")["output"]))[0].metrics
    tokens, ratio = metrics["train_tokens"] + metrics["val_tokens"], min(peer) / min(ours)
    print(
        f"packing     {tokens:,} tokens, sealed in {min(ours):.2f} s ({tokens / min(ours) / 1e6:.2f} M/s), "
        f"sentencepiece alone {min(peer):.2f} s; ratio {ratio:.2f} (target {LEAST_PACKING_RATIO})"
    )
    print(f"            padding {metrics['padding_fraction']:.2%} at {ROW_TOKENS:,} tokens")
    return ratio >= LEAST_PACKING_RATIO


def measure_mixture(corpus: Input, rounds: int) -> bool:
    """Rows of two datasets, drawn and read by one thread."""
    datasets, sources = [], []
    for mode, weight in zip(("best_fit", "concat"), WEIGHTS, strict=True):
        run_stage("40_pack_dataset", pack_config(mode))
        folder = REPOSITORY.path(pack_config(mode)["output"])
        data = PackedDataset(folder, "train")
        datasets.append(data)
        sources.append(MixtureSource(data.num_rows, read_manifest(folder)[0].output_digest, weight))

    def read() -> None:
        mixture = Mixture(sources, seed=0, batch_rows=BATCH_ROWS)
        for _ in range(STEPS):
            read_draws(datasets, mixture.next_step())

    rate = STEPS * BATCH_ROWS * ROW_TOKENS / min(seconds_of(read) for _ in range(rounds))
    print(
        f"mixture     rows of {ROW_TOKENS:,} from two datasets, one thread: {rate / 1e6:.1f} M tokens/s "
        f"(target {LEAST_READER_TOKENS / 1e6:.0f} M)"
    )
    return rate >= LEAST_READER_TOKENS


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


CLAIMS = {"tokenizer": measure_tokenizer, "packing": measure_packing, "mixture": measure_mixture}

if __name__ == "__main__":
    sys.exit(main())
