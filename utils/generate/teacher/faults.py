"""
Faults by schedule, to test clients: a share of calls is refused, dropped or cut, in every run the same.

    >>> Faults.parse("429:0.1,drop:0.05").shares
    {'429': 0.1, 'drop': 0.05}

Whether the n-th attempt of a call fails depends on (seed, call, n) alone. At most `WORST_IN_A_ROW` attempts
of one call fail, so a client that retries always gets through.
"""

import hashlib
from dataclasses import dataclass, field

from utils.pipeline.errors import ConfigError

KINDS = ("429", "500", "503", "drop", "truncate", "empty")
WORST_IN_A_ROW = 3


@dataclass
class Faults:
    """Shares of calls per kind of fault, and how often each call was tried."""

    shares: dict[str, float]
    seed: int = 0
    attempts: dict[bytes, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> "Faults":
        """`KIND:SHARE,...`; ConfigError for an unknown kind or shares that exceed 1."""
        shares: dict[str, float] = {}
        for entry in filter(None, text.split(",")):
            kind, _, share = entry.partition(":")
            try:
                shares[kind] = float(share)
            except ValueError:
                raise ConfigError(
                    f'fault "{entry}" is not KIND:SHARE', fix="--faults 429:0.1,drop:0.05"
                ) from None
        unknown = sorted(set(shares) - set(KINDS))
        if unknown:
            raise ConfigError(f'unknown fault "{unknown[0]}"', fix=f"one of {', '.join(KINDS)}")
        if not 0 <= sum(shares.values()) <= 1:
            raise ConfigError("the shares of faults add up to more than 1")
        return cls(shares, seed)

    def next_for(self, call: bytes) -> str:
        """The fault that this attempt of a call suffers, or `""`; counts the attempt."""
        attempt = self.attempts.get(call, 0)
        self.attempts[call] = attempt + 1
        if attempt >= WORST_IN_A_ROW:
            return ""
        head = hashlib.sha256(b"%d %d " % (self.seed, attempt) + call).digest()[:8]
        luck = int.from_bytes(head, "big") / 2**64
        for kind, share in self.shares.items():
            if luck < share:
                return kind
            luck -= share
        return ""
