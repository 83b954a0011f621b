"""
The same documents through stage 20 and through datatrove: cleaning, language, quality rules, near duplicates.

    python tools/bench/prepare_peer.py --books 'books/*.jsonl.gz'

datatrove's pipeline: FTFYFormatter, LambdaFilter with the language test of stage 20, GopherRepetition,
GopherQuality, C4 (terminal punctuation off) and FineWeb filters, JsonlWriter, then its four MinHash steps;
two workers. It runs as shipped where spaCy is installed, which splits its words, and with words split at
whitespace. Stage 20 uses the preset `web`, the same families of rules.
"""

import argparse
import glob
import importlib.util
import re
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.bench.prepare import CHARACTERS_PER_TOKEN, grow, timed, write_config
from utils.pipeline.environment import host_class

TARGETS = {"as shipped": 2.0, "words at whitespace": 1.0}
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/bench/prepare_peer.py", description=__doc__.splitlines()[1])
    parser.add_argument("--books", required=True, help="glob of .jsonl.gz files with text, title and id")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    files, good = sorted(glob.glob(arguments.books)), True
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokens = grow(files, root / "raw", 0) / CHARACTERS_PER_TOKEN
        write_config(root, arguments.workers, preset="web")
        ours = timed(root)
        print(f"stage 20                       {ours:7.1f} s {tokens / ours:12,.0f} tokens/s")
        for name, target in TARGETS.items():
            seconds = peer(root, len(files), arguments.workers, shipped=name == "as shipped")
            if seconds is None:
                print(f"datatrove {name}: not measured, spaCy is not installed")
                continue
            ratio = seconds / ours
            print(f"datatrove {name:<20} {seconds:7.1f} s {tokens / seconds:12,.0f} tokens/s", end="")
            print(f"   ratio {ratio:.2f} (target {target:g})")
            good &= ratio >= target
    print(host_class())
    return 0 if good else 4


def peer(root: Path, tasks: int, workers: int, shipped: bool) -> float | None:
    """Seconds of datatrove's pipeline, or None where its word splitter is not installed."""
    if shipped and importlib.util.find_spec("spacy") is None:
        return None
    shutil.rmtree(root / "peer", ignore_errors=True)
    hash_encoded_text()
    if not shipped:
        split_at_whitespace()
    started = time.perf_counter()
    for pipeline, count in steps(root / "raw", root / "peer", tasks):
        run(pipeline, count, workers, root / "peer")
    seconds = time.perf_counter() - started
    assert list((root / "peer" / "deduplicated").glob("*.jsonl.gz")), "datatrove wrote nothing"
    return seconds


class Whitespace:
    """A splitter with datatrove's interface."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        ends = [*(match.start() for match in SENTENCE_END.finditer(text)), len(text)]
        return list(zip([0, *ends], ends, strict=False))


def split_at_whitespace() -> None:
    """Give datatrove another splitter; its processes are forked, so they have it too."""
    import datatrove.pipeline.dedup.minhash
    import datatrove.utils.word_tokenizers

    for module in (datatrove.pipeline.dedup.minhash, datatrove.utils.word_tokenizers):
        module.load_word_tokenizer = lambda language: Whitespace()


def hash_encoded_text() -> None:
    """datatrove hands strings to xxhash, whose version 4 takes bytes only."""
    import datatrove.utils.hashes.xxhash
    import xxhash

    datatrove.utils.hashes.xxhash.xxhash64 = lambda text: xxhash.xxh64_intdigest(text.encode())


def steps(raw: Path, peer: Path, tasks: int) -> list[tuple[list, int]]:
    """The pipelines in order, each with its number of tasks."""
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        LambdaFilter,
    )
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    minhash = MinhashConfig(n_grams=5, num_buckets=20, hashes_per_bucket=6)
    folder = {name: str(peer / name) for name in ("filtered", "signatures", "buckets", "clusters")}
    filters = [
        FTFYFormatter(),
        LambdaFilter(is_english),
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    ]
    filtered = JsonlReader(folder["filtered"])
    return [
        ([JsonlReader(str(raw)), *filters, JsonlWriter(folder["filtered"])], tasks),
        ([filtered, MinhashDedupSignature(folder["signatures"], minhash)], tasks),
        ([MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=minhash)], minhash.num_buckets),
        ([MinhashDedupCluster(folder["buckets"], folder["clusters"], config=minhash)], 1),
        ([filtered, MinhashDedupFilter(folder["clusters"]), JsonlWriter(str(peer / "deduplicated"))], tasks),
    ]


def is_english(document: object) -> bool:
    """The language test of stage 20, one document at a time as datatrove's filters get them."""
    from utils.corpus.language import LanguageSettings, decide, identify

    return decide(next(iter(identify([document.text]))), LanguageSettings(("en",), 0.65, True)).keep


def run(pipeline: list, tasks: int, workers: int, folder: Path) -> None:
    """Run one pipeline; what it says goes to a file."""
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.remove()
    folder.mkdir(exist_ok=True)
    number = len(list(folder.glob("logs-*")))
    settings = {"workers": min(workers, tasks), "logging_dir": str(folder / f"logs-{number}")}
    with open(folder / "said.txt", "a", encoding="utf-8") as said, redirect_stderr(said):
        LocalPipelineExecutor(pipeline, tasks=tasks, start_method="fork", **settings).run()


if __name__ == "__main__":
    sys.exit(main())
