"""
The checkpoint chain: sealed folders `checkpoints/step_00000200/` that a run continues from to the same bytes.

    model.safetensors        trainable weights by name, fp32
    optimizer.safetensors    exp_avg/<name>, exp_avg_sq/<name>, step/<name>
    rng/rank_00000.safetensors
    trainer.json             counters, batch split, data cursor, best so far, digest of the frozen weights
    history.jsonl, ...       the records of the run up to this step

Each folder is an artifact with its parent's digest. It is written under a temporary name, sealed, then
renamed, so a kill leaves the one before or this one. No pickle. A folder that verifies but does not load ends
the run.

    store = CheckpointStore(stage, keep_last=2, keep_best=True)
    store.write(snapshot)                   # on a thread; the next one waits, and raises what this one met
    store.wait()
    folder = store.newest()                 # verified, of this key; None at the start of a run
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.pipeline.errors import StageError, UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import canonical_json
from utils.pipeline.manifest import Manifest, read_manifest
from utils.pipeline.stage import Stage
from utils.pipeline.verdict import Verdict
from utils.pipeline.verify import Verifier, changes_since, stored_currency
from utils.training.background import Background
from utils.training.dtensor import placed_like

MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "trainer.json"
WRITING = ".writing-"


@dataclass(frozen=True)
class Snapshot:
    """Everything that decides how a run goes on after `step` finished optimizer steps."""

    step: int
    tokens: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    rng: list[dict[str, Tensor]]  # one per rank
    cursor: dict
    best: dict  # {} before the first evaluation, else {step, val_loss}
    state: dict
    records: dict[str, list[dict]] = field(default_factory=dict)


class CheckpointStore:
    """The `checkpoints/` of a run. Rank 0 writes; every rank may read."""

    def __init__(self, stage: Stage, keep_last: int, keep_best: bool) -> None:
        self._stage, self._keep_last, self.keeps_best = stage, keep_last, keep_best
        self.folder = stage.partial / "checkpoints"
        self._parent = ""
        self._background = Background()
        self._abandoned = False
        stage.leaving.callback(self._leave)

    def newest(self) -> Path | None:
        """
        The checkpoint to continue from, proven: the newest, or the one that --resume names; None at the start
        of a run.

        UpstreamError when it is altered or belongs to another config, data or tokenizer.
        """
        named = self._stage.resume not in ("auto", "never")
        folder = Path(self._stage.resume).resolve() if named else max(self.folders(), default=None)
        if folder is None:
            return None
        self._parent = self._prove(folder).output_digest
        return folder

    def discard_after(self, step: int) -> None:
        """
        Remove checkpoints beyond `step`: continuing from a named one makes them another future of the run.
        """
        for folder in self.folders():
            if folder > self.of_step(step):
                shutil.rmtree(folder)

    def _prove(self, folder: Path) -> Manifest:
        manifest, verdict = Verifier(self._stage.workspace).artifact(folder)
        if manifest is None or not verdict.good:
            where = f"{folder.name}/{verdict.component}" if verdict.component else folder.name
            raise self._refusal(f"{where} is {verdict}", verdict.before, verdict.after)
        if manifest.key != self._stage.build.key:
            changes = changes_since(stored_currency(manifest), self._stage.build.proof.currency)
            raise self._refusal(
                f"{folder.name} is {Verdict.changed('stale', changes)}", manifest.key, self._stage.build.key
            )
        return manifest

    def _refusal(self, problem: str, expected: str, actual: str) -> UpstreamError:
        fix = (
            "restore it, delete that folder to continue from the one before, or --resume never to start again"
        )
        return UpstreamError(
            f"{self._stage.name} cannot continue: {problem}",
            fix=fix,
            verdict=problem,
            expected=expected,
            actual=actual,
        )

    def folders(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*"))

    def newest_name(self) -> str:
        """The folder that a rerun would continue from, for messages."""
        self._background.join(0 if self._abandoned else None)
        return max((folder.name for folder in self.folders()), default="none")

    def of_step(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def sweep(self) -> None:
        """Remove what a killed writer left under a temporary name."""
        for leftover in self.folder.glob(WRITING + "*"):
            shutil.rmtree(leftover)

    def write(self, snapshot: Snapshot) -> None:
        """
        Seal one checkpoint on a thread and remove those no longer kept, once the one before is done. A step
        that is already there is left as it is. Raises what the one before met.
        """
        self._background.start(lambda: self._seal(snapshot))

    def wait(self, seconds: float | None = None) -> bool:
        """Whether everything is sealed, after at most so many seconds; else what is under way is given up."""
        self._abandoned = not self._background.wait(seconds)
        return not self._abandoned

    def _leave(self) -> None:
        """Nobody else may have the folder while the thread writes in it."""
        if not self._abandoned:
            self._background.join()

    def _seal(self, snapshot: Snapshot) -> None:
        target = self.of_step(snapshot.step)
        if not target.exists():
            self._build(target, snapshot)
        if snapshot.best.get("step") == snapshot.step:
            self.point_to_best(snapshot.best)
        self._prune(snapshot.best.get("step", -1))

    def _build(self, target: Path, snapshot: Snapshot) -> None:
        building = self.folder / f"{WRITING}{target.name}"
        building.mkdir(parents=True)
        _write_files(building, snapshot)
        block = {"step": snapshot.step, "parent": self._parent, "tokens_seen": snapshot.tokens}
        block |= {"cursor": snapshot.cursor, "best": snapshot.best}
        self._parent = self._stage.seal_checkpoint(building, block)
        _into_place(building, target)

    def point_to_best(self, best: dict) -> None:
        """Let best.json name the checkpoint of `best`; without such a checkpoint there is no best.json."""
        pointer, (manifest, _) = self.folder / "best.json", read_manifest(self.of_step(best.get("step", -1)))
        if manifest is None:
            return pointer.unlink(missing_ok=True)
        row = best | {"output_digest": manifest.output_digest}
        pointer.with_suffix(".tmp").write_bytes(canonical_json(row) + b"\n")
        os.replace(pointer.with_suffix(".tmp"), pointer)

    def _prune(self, best_step: int) -> None:
        for folder in self.folders()[: -self._keep_last]:
            if not (self.keeps_best and folder == self.of_step(best_step)):
                shutil.rmtree(folder)


def fatal_load(folder: Path, load: Callable[[], None]) -> None:
    """Run `load`; if it fails the run ends with StageError, since no failed load may lead to step 0 (P42)."""
    failure = None
    try:
        load()
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        failure = error
    if GUARDS["G22"](failure):
        raise StageError(
            f"{folder.name} verifies but cannot be loaded: {failure}; will not start over",
            fix=f"delete {folder.name} to continue from the one before, or --resume never to start again",
        ) from failure


def read_snapshot(folder: Path) -> Snapshot:
    """
    Read a checkpoint folder back; ValueError naming the file, or KeyError, for contents that are not a
    checkpoint's.
    """
    state = json.loads((folder / STATE).read_text(encoding="ascii"))
    records = {path.stem: _read_lines(path) for path in sorted(folder.glob("*.jsonl"))}
    rng = [_read_tensors(path) for path in sorted((folder / "rng").glob("rank_*.safetensors"))]
    tensors = {"model": _read_tensors(folder / MODEL), "optimizer": _read_tensors(folder / OPTIMIZER)}
    chain = {name: state.pop(name) for name in ("step", "tokens", "cursor", "best")}
    return Snapshot(**chain, **tensors, rng=rng, state=state, records=records)


def copy_into(source: dict[str, Tensor], target: dict[str, Tensor], file: str) -> None:
    """Copy tensors by name. ValueError naming file and tensor when names, shapes or dtypes differ."""
    if missing := sorted(target.keys() - source.keys()):
        raise ValueError(f"{file}: tensor {missing[0]} is missing")
    if extra := sorted(source.keys() - target.keys()):
        raise ValueError(f"{file}: tensor {extra[0]} belongs to no parameter")
    for name, tensor in target.items():
        found = source[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            ours, theirs = (f"{tuple(each.shape)} {each.dtype}" for each in (tensor, found))
            raise ValueError(f"{file}: tensor {name} is {theirs}, the model has {ours}")
        tensor.copy_(placed_like(found, tensor))


def write_lines(path: Path, records: list[dict]) -> None:
    """One canonical JSON object per line."""
    path.write_bytes(b"".join(canonical_json(record) + b"\n" for record in records))


def _into_place(building: Path, target: Path) -> None:
    """Give a sealed folder its name, and make the name survive a power loss."""
    os.rename(building, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_files(folder: Path, snapshot: Snapshot) -> None:
    _write_tensors({name: tensor.contiguous() for name, tensor in snapshot.model.items()}, folder / MODEL)
    _write_tensors(snapshot.optimizer, folder / OPTIMIZER)
    (folder / "rng").mkdir()
    for rank, tensors in enumerate(snapshot.rng):
        _write_tensors(tensors, folder / "rng" / f"rank_{rank:05d}.safetensors")
    chain = {
        "step": snapshot.step,
        "tokens": snapshot.tokens,
        "cursor": snapshot.cursor,
        "best": snapshot.best,
    }
    (folder / STATE).write_bytes(canonical_json(snapshot.state | chain) + b"\n")
    for name, records in snapshot.records.items():
        write_lines(folder / f"{name}.jsonl", records)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # how its writer reports a full disk, too
        raise StageError(
            f"{path.parent.name}/{path.name} cannot be written: {error}; what was committed is kept",
            fix="make room or mend that, then rerun to continue",
        ) from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name}: {error}") from None


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
