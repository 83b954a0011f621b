"""Workers that die in the middle of stage 20, and what is tried again alone."""

import fcntl
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.corpus.tiny import Tiny
from utils.config.shared import ExecutorConfig
from utils.corpus import reading, sources
from utils.corpus.executor import open_executor, ordered_map

STAGE = "20_prepare_corpus"


def die_of_poison(task: object) -> object:
    """What a worker does with a block, but for one that holds a poison row."""
    if any(b"poison" in row for row in task.task.block.rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return reading._work(task)


def test_a_poison_row_ends_the_stage_and_keeps_what_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sources, "BLOCK_ROWS", 20)
    tiny = Tiny(tmp_path)
    tiny.write_books()
    part = tiny.root / "data/raw/corpus/part-2.jsonl"
    rows = part.read_text().splitlines()
    row = json.loads(rows[7])  # the 128th of the source, in its seventh block
    rows[7] = json.dumps(row | {"text": row["text"] + " It was poison."})
    part.write_text("".join(f"{row}\n" for row in rows))
    config = tiny.corpus_config(executor={"workers": 2})
    tiny.write_config(STAGE, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_work", die_of_poison)
        assert tiny.execute(STAGE) == 4
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert "a worker process died at books rows 120-139, and again when that was tried alone" in said
    assert "Traceback" not in said and not (tiny.root / "data/corpus").exists()
    journal = tiny.root / "data/corpus.partial/.journal/blocks.jsonl"
    assert len(journal.read_text().splitlines()) == 6
    resumed = tiny.run(STAGE, config)
    assert "resuming" in capsys.readouterr().out
    assert resumed.output_digest == tiny.run(STAGE, tiny.corpus_config(output="data/whole")).output_digest


def watched(path: str) -> str:
    """
    Say whether this is a first try, or another one with nothing beside it. "a" dies at the first, while "b"
    runs. A lock goes with its process, so a worker that was ended leaves none.
    """
    name, mark, other = Path(path).name, Path(f"{path}.tried"), Path(path).with_name("b.tried")
    again = mark.exists()
    mark.touch()
    with open(mark.with_name("running"), "a") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if again else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return "beside another"
        if again:
            time.sleep(1)
            return "alone"
        while name == "a" and not other.exists():
            time.sleep(0.01)
        if name == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 if name == "b" else 0)
        return "first"


def test_what_a_dead_worker_had_in_hand_is_tried_again_with_nothing_beside_it(tmp_path: Path):
    with open_executor(ExecutorConfig(workers=2)) as executor:
        found = list(ordered_map(executor, watched, [str(tmp_path / name) for name in "abcdef"]))
    assert found == ["alone", "alone", "first", "first", "first", "first"]
