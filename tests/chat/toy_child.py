"""
A stage of the toy chain as a process of its own, to be killed.

    python tests/chat/toy_child.py ROOT 70_train_sft CONFIG
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chat.toy_chain import UPSTREAM, script
from utils.pipeline.stage import execute
from utils.pipeline.workspace import STAGES, Workspace

if __name__ == "__main__":
    root, name, config = sys.argv[1:]
    toys = {stage: f"tests.chat.toy_chain:{kind.__name__}" for stage, (kind, _, _) in UPSTREAM.items()}
    workspace = Workspace(Path(root), dict(STAGES) | toys)
    sys.exit(execute(name, workspace.config_class(name), script(name).main, ["--config", config], workspace))
