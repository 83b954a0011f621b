"""
What became of a setting that the machine has a say in: asked for, resolved, and why.

    Choice("auto", "sdpa", "flash attention needs CUDA, this is cpu").record()

The manifest keeps all three, so that nobody has to guess what "auto" meant on another machine.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """A setting as the config has it, as this run uses it, and the reason where the two differ."""

    asked: Any
    resolved: Any
    reason: str = "asked for"

    def record(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"asked": self.asked, "resolved": self.resolved, "reason": self.reason}
