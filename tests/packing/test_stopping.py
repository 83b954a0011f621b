"""Stage 40 asked to stop: the blocks that are finished by then are committed, and the rest comes later."""

import os
import signal

import pytest

from tests.corpus.tiny import Tiny
from utils.corpus import shards
from utils.corpus.executor import InlineWorkers
from utils.pipeline.journal import Journal

STAGE = "40_pack_dataset"


def test_sigterm_commits_every_finished_block(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    tiny = Tiny(tmp_path_factory.mktemp("stopped"))
    tiny.run_all()
    monkeypatch.setattr(shards, "BLOCK_ROWS", 20)
    monkeypatch.setattr(InlineWorkers, "look_ahead", 4)  # blocks that are finished at the first commit
    commit, config = Journal.commit, tiny.pack_config()

    def ask_at_the_first(self: Journal, record: dict) -> None:
        commit(self, record)
        if record["rows"] == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "commit", ask_at_the_first)
        tiny.write_config(STAGE, config)
        assert tiny.execute(STAGE) == 75
    journal = tiny.root / "data/packed.partial/.journal/train.jsonl"
    assert len(journal.read_text().splitlines()) == 4
    resumed = tiny.run(STAGE, config)
    assert resumed.output_digest == tiny.run(STAGE, config | {"output": "data/calm"}).output_digest
