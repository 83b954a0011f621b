"""
Training that ends with an error after a step, as a stand-in for a kill whose place is chosen.

    with dying_at(70):
        assert run(workspace, "50_pretrain", CONFIG) == 4
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from utils.pipeline.errors import StageError


def die() -> None:
    """End the stage with exit code 4."""
    raise StageError("killed")


@contextmanager
def dying_at(step: int, act: Callable[[], None] = die) -> Iterator[None]:
    """Inside the block a run does `act` once the checkpoint due after that step was handed over."""
    from utils.training.loop import Trainer

    save = Trainer.save_if_due

    def patched(trainer: Trainer) -> None:
        save(trainer)
        if trainer.step == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "save_if_due", patched)
        yield
