"""
Stage 50 as one of several processes, started by test_50_sharded.py.

    python tests/scripts/sharded_50.py WORKSPACE --config CONFIG.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chat.toy_chain import script
from tests.scripts.test_50_pretrain import workspace_of
from utils.config.pretrain import PretrainConfig
from utils.pipeline.ranks import Ranks
from utils.pipeline.stage import execute

STAGE = "50_pretrain"

if __name__ == "__main__":
    ranks = Ranks.from_environment()
    workspace = workspace_of(Path(sys.argv[1]))
    ranks.leave(execute(STAGE, PretrainConfig, script(STAGE).main, sys.argv[2:], workspace, ranks))
