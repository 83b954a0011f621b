"""
Parts that several stage configs share.

    class PackConfig(StageConfig):
        executor: Runtime[ExecutorConfig] = ExecutorConfig()
"""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from utils.pipeline.config import Section


class ExecutorConfig(Section):
    """Where tasks run. A runtime choice: it cannot change a byte of the result."""

    kind: Literal["local", "inline", "dask"] = "local"
    """
    `local`: processes of this machine. `inline`: inside the stage's own process, for tests and tiny data.
    `dask`: the workers of a running Dask cluster that see the same folders.
    """
    workers: int = Field(default=0, ge=0)
    """Number of local worker processes; 0 means one per usable core."""
    address: str = ""
    """Address of the Dask scheduler, such as "tcp://10.0.0.1:8786"."""

    @model_validator(mode="after")
    def _address_fits_the_kind(self) -> Self:
        if (self.kind == "dask") != bool(self.address):
            raise ValueError('kind "dask" needs the address of its scheduler, and no other kind has one')
        if self.address and not re.fullmatch(r"\w+://.+:\d+", self.address):
            raise ValueError(f'"{self.address}" is no address such as "tcp://10.0.0.1:8786"')
        if self.kind != "local" and "workers" in self.model_fields_set:
            raise ValueError(f'"workers" is read by kind "local" only; leave it out with kind "{self.kind}"')
        return self
