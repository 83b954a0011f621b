"""
Where an artifact may be built. A stage replaces the folder that its config names, so a slip there must cost
nothing.

    check_placement("40_pack_dataset", loaded, workspace)      # ConfigError for "data/raw", "", an input
"""

import os
from pathlib import Path, PurePosixPath

from utils.pipeline.config import LoadedConfig, input_folders
from utils.pipeline.errors import ConfigError
from utils.pipeline.manifest import read_manifest
from utils.pipeline.workspace import Workspace

ROOTS = ("data", "checkpoints")
NOT_A_PROFILE = ("raw", ".lockstep")


def check_placement(stage: str, loaded: LoadedConfig, workspace: Workspace) -> None:
    """
    The output is `data/<profile>/<artifact>` or `checkpoints/<profile>/<artifact>`, apart from every input,
    and holds nothing or an artifact of this very stage. ConfigError otherwise, before anything is touched.
    """
    output = loaded.config.output
    parts = PurePosixPath(os.path.normpath(output)).parts
    if len(parts) < 2 or parts[0] not in ROOTS or parts[1] in NOT_A_PROFILE:
        raise ConfigError(
            f'{loaded.path}: output "{output}" is no place for an artifact: what is there would be replaced',
            fix="name a folder of its own: data/<profile>/<artifact> or checkpoints/<profile>/<artifact>",
        )
    folder = workspace.path(os.path.normpath(output))
    for role, given in input_folders(loaded.config).items():
        if _overlap(folder, workspace.path(os.path.normpath(given))):
            raise ConfigError(
                f'{loaded.path}: output "{output}" and input "{role}" ({given}) are not apart',
                fix="give the output a folder of its own",
            )
    manifest = read_manifest(folder)[0] if (folder / "manifest.json").is_file() else None
    if manifest is not None and manifest.stage != stage:
        raise ConfigError(
            f'{loaded.path}: output "{output}" holds an artifact of {manifest.stage}',
            fix="give the output a folder of its own, or remove that artifact yourself",
        )


def _overlap(first: Path, second: Path) -> bool:
    return first == second or first in second.parents or second in first.parents


def holds_unknown_files(output: Path) -> bool:
    """Whether there is a folder with files in it that no manifest accounts for."""
    return output.is_dir() and not (output / "manifest.json").exists() and any(output.iterdir())
