"""
The whole state of a run: out of a Trainer into a snapshot, and back.

    snapshot = take_snapshot(trainer, cursor, ranks)        # copies on the host; training may go on at once
    restore(trainer, snapshot)                              # goes on as if nothing had happened
    load(trainer, snapshot)                                 # weights, moments and place in the data alone

ValueError or KeyError where a snapshot is not one of this run.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from utils.training.checkpoint import STATE, Snapshot
from utils.training.rng import derived_seed, restore_rng, seed_everything
from utils.training.state import (
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
)

if TYPE_CHECKING:
    from utils.training.loop import Trainer


def take_snapshot(trainer: "Trainer", cursor: dict, rng: list[dict[str, Tensor]]) -> Snapshot:
    """The state after the last finished step; `cursor` and `rng` (one per rank) are those behind it."""
    records = {name: list(rows) for name, rows in trainer.records.items()}
    state = trainer.skips.state() | {
        "frozen": trainer.frozen,
        "precision": trainer.machine.precision.name,
        "execution": trainer.execution.stamp(),
        "scaler": trainer.scaler.state_dict(),
        "unevaluated": trainer.unevaluated,
    }
    return Snapshot(
        step=trainer.step,
        tokens=int(trainer.tokens),
        model=model_tensors(trainer.model),
        optimizer=optimizer_tensors(trainer.optimizer, trainer.model),
        rng=rng,
        cursor=cursor,
        best=trainer.best,
        state=state,
        records=records,
    )


def restore(trainer: "Trainer", snapshot: Snapshot) -> None:
    """Put everything back that decides how the run goes on."""
    state, precision = snapshot.state, trainer.machine.precision.name
    if state["precision"] != precision:
        raise ValueError(f"{STATE}: precision was {state['precision']}, this run has {precision}")
    load(trainer, snapshot)
    trainer.step, trainer.tokens = snapshot.step, float(snapshot.tokens)
    trainer.best, trainer.records = snapshot.best, snapshot.records
    trainer.unevaluated = state.get("unevaluated", False)
    trainer.skips.restore(state)
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.execution.recall(state["execution"])
    _restore_rng(trainer, snapshot)


def _restore_rng(trainer: "Trainer", snapshot: Snapshot) -> None:
    """The state of each rank; of those that the checkpoint knows nothing of, one derived from its step."""
    rank, known, ranks = trainer.machine.rank, len(snapshot.rng), trainer.machine.num_ranks
    if ranks > known:
        text = f"ranks from {known} on draw from the seed, their number and step {snapshot.step}"
        trainer.stage.log("random", f"{text}: the checkpoint was written by {known}", step=snapshot.step)
    if rank < known:
        restore_rng(snapshot.rng[rank])
    else:
        seed_everything(derived_seed(trainer.config.seed, rank, snapshot.step))


def load(trainer: "Trainer", snapshot: Snapshot) -> None:
    """Weights, moments and place in the data."""
    if snapshot.state["frozen"] != trainer.frozen:
        theirs, ours = snapshot.state["frozen"][:12], trainer.frozen[:12]
        raise ValueError(f"{STATE}: frozen was {theirs}, this run has {ours}")
    load_model_tensors(trainer.model, snapshot.model)
    load_optimizer_tensors(trainer.optimizer, trainer.model, snapshot.optimizer)
    trainer.rows.restore(snapshot.cursor)
