"""
Kill -9 at random moments of stages 20, 30 and 40, again and again: the bytes are those of a calm run.

    python -m pytest tests/corpus/test_kills.py                    # four kills of stage 20
    python -m pytest -m bench tests/corpus/test_kills.py           # twenty of each
"""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.corpus.tiny import INLINE, ROOT, Tiny
from utils.pipeline.manifest import read_manifest

PROGRAM = """
import sys
sys.path[:0] = [{root!r}]
from pathlib import Path
from tests.corpus.tiny import Tiny
import utils.corpus.shards, utils.corpus.sources
utils.corpus.sources.BLOCK_ROWS = utils.corpus.shards.BLOCK_ROWS = 12
if __name__ == "__main__":
    sys.exit(Tiny(Path({workspace!r})).execute({stage!r}))
"""
STAGES = ("20_prepare_corpus", "30_train_tokenizer", "40_pack_dataset")


def config_of(tiny: Tiny, stage: str, executor: dict) -> dict:
    if stage == "30_train_tokenizer":
        return tiny.tokenizer_config()
    return (tiny.corpus_config if stage == STAGES[0] else tiny.pack_config)(executor=executor)


def start(tiny: Tiny, stage: str) -> subprocess.Popen:
    """Start a stage and return when it has begun to build (or has nothing to do)."""
    code = PROGRAM.format(root=str(ROOT), workspace=str(tiny.root), stage=stage)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if f"{stage:<23}build" in line or "up to date" in line:
            break
    return process


def committed(tiny: Tiny, output: str) -> list[str]:
    journals = (tiny.root / f"{output}.partial" / ".journal").glob("*.jsonl")
    return [line for path in journals for line in path.read_text().splitlines(keepends=True)]


@pytest.mark.parametrize(
    ("stage", "kills", "executor"),
    [
        ("20_prepare_corpus", 4, INLINE),
        *(pytest.param(stage, 20, {"workers": 2}, marks=pytest.mark.bench) for stage in STAGES),
    ],
)
def test_killed_again_and_again_it_ends_in_the_same_bytes(
    tmp_path: Path, stage: str, kills: int, executor: dict
):
    tiny = Tiny(tmp_path)
    tiny.write_books()
    copies = tiny.root / "data/raw/corpus/part-9.jsonl"
    copies.write_text((tiny.root / "data/raw/corpus/part-0.jsonl").read_text().replace("The boat", "A boat"))
    for before in STAGES[: STAGES.index(stage)]:
        tiny.run(before, config_of(tiny, before, INLINE))
    config = config_of(tiny, stage, executor)
    output = tiny.root / config["output"]
    tiny.write_config(stage, config | {"output": "data/calm"})
    process, started = start(tiny, stage), time.monotonic()
    assert process.wait(timeout=120) == 0
    seconds = time.monotonic() - started
    expected = read_manifest(tiny.root / "data/calm")[0].output_digest
    tiny.write_config(stage, config)
    dice, known = random.Random(kills), []
    while kills:
        process = start(tiny, stage)
        time.sleep(seconds * dice.random())
        process.kill()
        if process.wait() == -9:
            kills -= 1
        if output.exists():
            assert read_manifest(output)[0].output_digest == expected
            shutil.rmtree(output)
            known = []
        now = committed(tiny, config["output"])
        assert not now or now[: len(known)] == known  # nothing that was committed is done again
        known = [line for line in now if line.endswith("\n")]
    assert start(tiny, stage).wait(timeout=120) == 0
    assert read_manifest(output)[0].output_digest == expected
