"""Two processes of one launch: rank 0 decides and writes, both leave with one code (P30)."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from tests.pipeline.toy import Toy
from utils.pipeline import ranks as ranks_module
from utils.pipeline.locks import exclusive
from utils.pipeline.ranks import FAILED, Elsewhere, Ranks

SCRIPT = """
import json, sys
sys.path.insert(0, {repo!r})
from pathlib import Path
from tests.pipeline.toy import Toy
from tests.pipeline.toy_configs import CLASSES
from utils.pipeline import peers
from utils.pipeline.ranks import Ranks
from utils.pipeline.stage import execute

toy, ranks = Toy(Path({root!r})), Ranks.from_environment()

def main(config, stage):
    seen = stage.input("corpus").manifest.output_digest if stage.has_input("corpus") else ""
    stage.log("seen", "by everybody, said once")
    if stage.is_main:
        (stage.partial / "weights").write_text("written once")
    facts = {{"rank": ranks.rank, "key": stage.build.key, "run": stage.build.run_id, "seen": seen}}
    print(json.dumps(facts), flush=True)
    return {{"ranks": ranks.world_size}}

def run(stage, *more):
    argv = ["--config", f"config/demo/{{stage}}.json", *more]
    code = execute(stage, CLASSES[stage], main, argv, toy.workspace, ranks)
    print(json.dumps({{"rank": ranks.rank, "stage": stage, "code": code}}), flush=True)
    return code

run("60_prepare_sft", "--force")     # built
run("60_prepare_sft")                # up to date
run("40_pack_dataset", "--force")    # locked by the test
if not ranks.is_main:
    ours = peers.environment_record
    peers.environment_record = lambda root: ours(root) | {{"torch": "1.0"}}
run("60_prepare_sft", "--force")     # rank 1 has another torch
ranks.leave(run("50_pretrain"))      # refused: tampered data
"""


@pytest.fixture
def outcome(toy: Toy) -> list[dict]:
    """Everything that two ranks print as JSON while they run four stages, and how they leave."""
    toy.flip("40_pack_dataset", "train.bin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = SCRIPT.format(repo=str(Path(__file__).parents[2]), root=str(toy.root))
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    launch |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = time.time()
    with exclusive(toy.workspace, "data/demo/packed", "held by the test"):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", script],
                cwd=toy.root,
                env=os.environ | launch | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        texts = [process.communicate(timeout=120)[0] for process in processes]
    rows = [json.loads(line) for text in texts for line in text.splitlines() if line.startswith("{")]
    left = [{"left": process.returncode} for process in processes]
    return [*rows, *left, {"text": texts, "seconds": time.time() - started}]


@pytest.mark.slow
def test_two_processes_one_decision(toy: Toy, outcome: list[dict]) -> None:
    texts = outcome[-1]["text"]
    for rank in range(2):
        codes = [row["code"] for row in outcome if "code" in row and row["rank"] == rank]
        assert codes == [0, 0, 4, 2, 3], texts
    assert [row["left"] for row in outcome if "left" in row] == [3, 3]
    builds = [row for row in outcome if "key" in row]
    assert [row["rank"] for row in builds] == [0, 1], "main ran once on each rank, and not when up to date"
    assert builds[0] | {"rank": 1} == builds[1], "both work under one key, one run, one proof"
    assert "said once" in texts[0] and "said once" not in texts[1]
    assert texts[0].count("error: ") == 3 and "error: " not in texts[1]
    assert "the processes of this launch differ: torch is absent on rank 0 and 1.0 on rank 1" in texts[0]
    assert "is being built (pid" in texts[0] and "is tampered" in texts[0]
    assert toy.manifest("60_prepare_sft")["metrics"] == {"ranks": 2}
    assert toy.manifest("60_prepare_sft")["run"]["id"] == builds[0]["run"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """What two ranks would share, and a watch that is in a hurry."""
    shared = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(ranks_module, "_store", lambda: shared)
    monkeypatch.setattr(ranks_module, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(ranks_module, "PATIENCE_SECONDS", 0.2)
    return shared


class WatchedRank(Ranks):
    """Rank 0 of two, whose process survives its end."""

    def __init__(self) -> None:
        super().__init__(rank=0, world_size=2)
        self.ended, self.heard = threading.Event(), []

    def _end(self, code: int) -> None:
        self.heard.append(code)
        self.ended.set()

    def said(self, error: Elsewhere) -> None:
        self.heard += [str(error), error.exit_code]


@pytest.mark.parametrize(("reason", "said"), [("no room", "rank 1: no room"), ("", "")])
def test_a_rank_that_waits_follows_one_that_failed(store: TCPStore, reason: str, said: str) -> None:
    rank = WatchedRank()
    with rank.watched(rank.said):
        assert not rank.ended.wait(0.1)
        store.set(FAILED, json.dumps([1, 4, reason]))
        assert rank.ended.wait(10)
    assert rank.heard == [said, 4, 4]


def test_a_rank_that_ends_by_itself_is_left_alone(store: TCPStore) -> None:
    rank = WatchedRank()
    with rank.watched(rank.said):
        store.set(FAILED, json.dumps([1, 4, "no room"]))
        time.sleep(0.05)
    assert not rank.ended.wait(0.4) and not rank.heard


def test_the_first_that_fails_is_the_one_to_follow(store: TCPStore) -> None:
    for rank, reason in ((1, "no room"), (0, "broken connection")):
        store.set(f"leaving/{1 - rank}", "")
        store.set(f"gone/{1 - rank}", "")
        assert Ranks(rank, 2, unsaid=reason)._meet(4)
    assert json.loads(store.get(FAILED)) == [1, 4, "no room"]
