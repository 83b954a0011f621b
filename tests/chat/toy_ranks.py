"""
A stage of the toy chain as one of several processes (tests/training/ranks.py).

    python tests/chat/toy_ranks.py ROOT --config CONFIG 70_train_sft
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chat.toy_chain import UPSTREAM, script
from utils.pipeline.ranks import Ranks
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace
from utils.serving import batch
from utils.training import examine_tuning

STOPPED = "TOY_STOPPED_IN"  # "1 3": rank 1 gets SIGTERM in its third evaluation


def signalled(work: Callable, moment: int) -> Callable:
    """`work`, whose so many-th call finds that this process was asked to stop."""
    calls = []

    def signal_and_work(*given: object, **options: object) -> object:
        calls.append(given)
        if len(calls) == moment:
            os.kill(os.getpid(), signal.SIGTERM)
        return work(*given, **options)

    return signal_and_work


if __name__ == "__main__":
    root, _, config, name = sys.argv[1:]
    ranks = Ranks.from_environment()
    rank, moment = map(int, os.environ.get(STOPPED, "-1 0").split())
    if rank == ranks.rank:
        batch.greedy_answers = signalled(batch.greedy_answers, moment)
        examine_tuning.held_out_logps = signalled(examine_tuning.held_out_logps, moment)
    toys = {stage: f"tests.chat.toy_chain:{kind.__name__}" for stage, (kind, _, _) in UPSTREAM.items()}
    workspace = Workspace(Path(root), dict(STAGES) | toys)
    given = (name, workspace.config_class(name), script(name).main, ["--config", config], workspace, ranks)
    ranks.leave(ranks.code_of(lambda: execute(*given)))
