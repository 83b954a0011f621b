"""
Parts that several stage configs share.

    class PackConfig(StageConfig):
        executor: Runtime[ExecutorConfig] = ExecutorConfig()
"""

from typing import Literal

from pydantic import Field

from utils.pipeline.config import Section


class ExecutorConfig(Section):
    """Where tasks run. A runtime choice: it cannot change a byte of the result."""

    kind: Literal["local", "inline"] = "local"
    """
    `local`: processes of this machine. `inline`: inside the stage's own process, for tests and tiny data.
    """
    workers: int = Field(default=0, ge=0)
    """Number of worker processes; 0 means one per usable core."""
