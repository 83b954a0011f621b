"""
What the processes of one launch must have in common before they build anything: folders, config, data, code,
libraries.

    compare_ranks(ranks, build, loaded, stop_request)       # ConfigError names the first difference

Rank 0 has proven its inputs and opened the build folder; the others look for that folder and for those inputs
where they are. Two ranks that train different code or data would end in weights that no manifest describes.
"""

from collections.abc import Mapping, Sequence

from utils.pipeline.build import Build
from utils.pipeline.config import LoadedConfig
from utils.pipeline.environment import code_modules, environment_record
from utils.pipeline.errors import ConfigError, Stopped
from utils.pipeline.hashing import digest
from utils.pipeline.manifest import read_manifest
from utils.pipeline.ranks import Ranks
from utils.pipeline.seal import read_state
from utils.pipeline.signals import StopRequest
from utils.pipeline.verdict import shown
from utils.pipeline.workspace import program_of

BUILD_FOLDER, ASKED_TO_STOP = "build folder", "asked to stop"
ABSENT = "absent"


def compare_ranks(ranks: Ranks, build: Build, loaded: LoadedConfig, stop: StopRequest) -> None:
    """
    ConfigError on every rank when one differs from rank 0, or does not see the build folder that rank 0 made.
    Stopped on every rank when one was asked to stop meanwhile.
    """
    if ranks.world_size == 1:
        return
    records = ranks.gather(record_of_rank(build, loaded) | {ASKED_TO_STOP: str(stop.exit_code)})
    codes = [int(record.pop(ASKED_TO_STOP)) for record in records]
    refuse_differences(records, build.workspace.relative(build.partial))
    if code := max(codes):
        raise Stopped(code)


def record_of_rank(build: Build, loaded: LoadedConfig) -> dict[str, str]:
    """Name -> what this process has under that name."""
    workspace, state = build.workspace, read_state(build.partial) or {}
    record = {BUILD_FOLDER: state.get("run_id", ABSENT)}
    record["config"] = digest("config", [loaded.semantic, loaded.resolved])
    for role, found in build.proof.inputs.items():
        manifest = read_manifest(found.path)[0]
        record[f'input "{role}"'] = manifest.output_digest if manifest else ABSENT
    for name, source in build.proof.sources.items():
        sizes = [path.stat().st_size if path.is_file() else -1 for path in source.files]
        record[f'source "{name}"'] = f"{len(sizes)} files, {sum(sizes)} bytes"
    modules = code_modules(workspace.root / program_of(build.stage)[0], workspace.root)
    record |= {f"module {name}": found for name, found in modules.items()}
    return record | environment_record(workspace.root)


def refuse_differences(records: Sequence[Mapping[str, str]], folder: str) -> None:
    """ConfigError for the first name under which a rank has something else than rank 0."""
    ours = records[0]
    for rank, theirs in enumerate(records):
        if theirs[BUILD_FOLDER] != ours[BUILD_FOLDER]:
            raise ConfigError(
                f"rank {rank} does not see {folder}, which rank 0 has just made",
                fix="run from a folder that all machines share",
            )
        for name in sorted(ours.keys() | theirs.keys()):
            found, expected = (record.get(name, ABSENT) for record in (theirs, ours))
            if found != expected:
                raise ConfigError(
                    f"the processes of this launch differ: {name} is {shown(expected)} on rank 0 "
                    f"and {shown(found)} on rank {rank}",
                    fix="give all machines the same repository, data and environment",
                )
