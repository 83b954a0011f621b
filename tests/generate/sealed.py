"""
A sealed artifact in a temporary workspace, from a mapping of files, without running a stage.

    workspace = Workspace(tmp_path, STAGES)
    folder = seal(workspace, "data/toy/generated", {"chat/dataset.jsonl": b"{}\\n"})
"""

from pathlib import Path

from utils.pipeline.manifest import compute_key
from utils.pipeline.seal import write_manifest
from utils.pipeline.workspace import Workspace


def seal(
    workspace: Workspace,
    output: str,
    files: dict[str, bytes],
    stage: str = "10_generate",
    resolved: dict | None = None,
    **more: object,
) -> Path:
    """Write the files and a manifest over them; `more` replaces manifest fields."""
    folder = workspace.path(output)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    semantic = {"seed": 0}
    fields = {
        "stage": stage,
        "stage_version": 1,
        "determinism": "stochastic",
        "key": compute_key(stage, 1, semantic, {}, {}),
        "config": {
            "path": f"config/toy/{stage}.json",
            "sha256": "0" * 64,
            "semantic": semantic,
            "resolved": resolved or {},
        },
        "inputs": [],
        "tokenizer": {},
        "sources": [],
        "metrics": {},
        "code": {"git_commit": "", "dirty": False, "python": "3.11", "digest": "0" * 64, "modules": {}},
        "environment": {"python": "3.11"},
        "mismatches_allowed": [],
        "run": {
            "id": "0" * 32,
            "started": "2026-01-01T00:00:00Z",
            "finished": "2026-01-01T00:00:01Z",
            "seconds": 1.0,
            "rates": {},
            "argv": [f"scripts/{stage}.py"],
            "host_class": "linux",
        },
    }
    write_manifest(folder, fields | more, workspace)
    return folder
