"""
Continuing another run under a new schedule: the weights, moments and place in the data of one of its
checkpoints.

    start = starting_point(stage)                  # None when the config names no "continue_from"
    start.refuse_other_batch(plan.batch_rows)
    trainer.adopt(start.folder)

A continued run is an artifact of its own: it counts its steps from 0, and the run that it continues is an
input of its manifest. With a "wsd" schedule this extends a horizon: from the last checkpoint before the decay
the new run takes the very steps that a longer run would have taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.errors import ConfigError, UpstreamError
from utils.pipeline.inputs import Input
from utils.pipeline.manifest import CHECKPOINT_FOLDER, Manifest
from utils.pipeline.stage import Stage
from utils.pipeline.verdict import shown
from utils.pipeline.verify import Verifier

ROLE = "continue_from"
SAME_FIELDS = ("model", "seed", "parameter_dtype", "inputs")
DATA_ROLES = ("data", "raw")


@dataclass(frozen=True)
class StartingPoint:
    """A proven checkpoint that this run may go on from."""

    folder: Path
    manifest: Manifest

    def refuse_other_batch(self, batch_rows: int) -> None:
        """ConfigError unless a step of this run takes as many rows: the cursor counts in steps."""
        theirs = self.manifest.checkpoint.cursor["batch_rows"]
        if theirs != batch_rows:
            raise _other("global_batch_tokens", self.folder, f"{theirs} rows a step", f"{batch_rows} rows")

    def figures(self) -> dict:
        """Where the run started, for the manifest."""
        digest, step = self.manifest.output_digest, self.manifest.checkpoint.step
        return {"continued_from_step": step, "continued_from_digest": digest}


def starting_point(stage: Stage) -> StartingPoint | None:
    """
    The checkpoint that the config continues from, or the newest one of the finished run that it names.

    ConfigError names a field in which the two runs may not differ; UpstreamError when they read other data,
    or when the checkpoint is gone or altered.
    """
    if not stage.has_input(ROLE):
        return None
    given = stage.input(ROLE)
    if given.manifest.stage != stage.name:
        raise ConfigError(f'"{ROLE}": {given.path} is of {given.manifest.stage}, not of {stage.name}')
    folder, manifest = (
        _newest(stage, given) if given.manifest.checkpoint is None else (given.path, given.manifest)
    )
    _refuse_other_run(stage, folder, manifest)
    return StartingPoint(folder, manifest)


def _newest(stage: Stage, run: Input) -> tuple[Path, Manifest]:
    """The newest checkpoint of a finished run; its manifest lists none of them, so it is proven here."""
    folder = max((run.path / CHECKPOINT_FOLDER).glob("step_*"), default=None)
    where = stage.workspace.relative(folder or run.path / CHECKPOINT_FOLDER)
    if folder is None:
        raise UpstreamError(
            f'"{ROLE}": {where} holds no checkpoint, so the moments and the place in the data are gone',
            fix="build that run again, or name a checkpoint folder",
        )
    manifest, verdict = Verifier(stage.workspace).artifact(folder)
    if manifest is None or not verdict.good:
        raise UpstreamError(f'"{ROLE}": {where} is {verdict}', fix="name an older checkpoint of that run")
    if manifest.key != run.manifest.key:
        raise UpstreamError(f'"{ROLE}": {where} is of another run than its folder', fix="name it directly")
    return folder, manifest


def _refuse_other_run(stage: Stage, folder: Path, manifest: Manifest) -> None:
    now = stage.build.proof.currency
    for name in SAME_FIELDS:
        theirs, ours = manifest.semantic.get(name), now.semantic.get(name)
        if theirs != ours:
            if name == "model":
                theirs, ours = _named_models(stage, manifest, theirs, ours)
            raise _other(name, folder, shown(theirs), shown(ours))
    theirs, ours = (each["optimizer"]["kind"] for each in (manifest.semantic, now.semantic))
    if theirs != ours:
        raise _other("optimizer.kind", folder, theirs, ours)
    for read_then, read_now in (
        (manifest.input_digests, now.inputs),
        (manifest.source_digests, now.sources),
    ):
        then, today = _data(read_then), _data(read_now)
        if changed := sorted(name for name in then | today if then.get(name) != today.get(name)):
            read = _named(changed[0], then), _named(changed[0], today)
            raise UpstreamError(
                f'"{ROLE}": {folder.name} read {read[0]}, this run reads {read[1]}',
                fix="continue with the data of that run: its checkpoint says which rows come next",
            )


def _named_models(stage: Stage, manifest: Manifest, theirs: str, ours: str) -> tuple[str, str]:
    """The architectures by the names that the configs gave them; one edited since, by its digest as well."""
    then, now = manifest.config.resolved["model"], stage.build.loaded.resolved["model"]
    return (then, now) if then != now else (f"{then} of {shown(theirs)}", f"{now} of {shown(ours)}")


def _data(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.split(".")[0] in DATA_ROLES}


def _named(role: str, digests: Mapping[str, str]) -> str:
    return f"{role} {digests[role][:12]}" if role in digests else f"no {role}"


def _other(field: str, folder: Path, theirs: object, ours: object) -> ConfigError:
    return ConfigError(
        f'"{field}": {folder.name} of "{ROLE}" was made with {theirs}, this config says {ours}',
        fix=f'give "{field}" the value of that run ({theirs}), or train from scratch',
    )
