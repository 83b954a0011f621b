"""
Several processes, one decision: rank 0 locks, hashes, decides and writes; the others hear what it decided
(P30).

    build = ranks.first_decides(lambda: begin_build(...))
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from utils.pipeline.errors import LockstepError, exit_code_of

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


class _Elsewhere(LockstepError):
    """Rank 0 refused and has printed why; this rank leaves with the same code in silence."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("rank 0 refused")
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """This process among those of one launch."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As `accelerate launch` and torchrun tell it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def first_decides(self, decide: Callable[[], T]) -> T:
        """Rank 0's result of `decide` on every rank; its refusal becomes the same exit code everywhere."""
        if self.world_size == 1:
            return decide()
        from accelerate.utils import broadcast_object_list

        join_processes()
        if not self.is_main:
            box: list = [None]
            broadcast_object_list(box)
            result, exit_code = box[0]
            if exit_code:
                raise _Elsewhere(exit_code)
            return result
        try:
            result = decide()
        except BaseException as error:
            broadcast_object_list([(None, exit_code_of(error))])
            raise
        broadcast_object_list([(result, 0)])
        return result

    def leave(self, code: int) -> None:
        """
        End the process. With several ranks the interpreter's own exit can abort gloo after correct work, so
        they meet, flush and leave at once.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        if self.world_size == 1:
            sys.exit(code)
        if code == 0:
            join_processes().wait_for_everyone()
        os._exit(code)


def join_processes() -> "PartialState":
    """
    accelerate's view of this launch. It must be told when there is no GPU: two CPU processes would otherwise
    each believe to be alone.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
