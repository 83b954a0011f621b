"""
Step -> learning rate, as a pure function of the config; processes and micro-batches never enter it.

    schedule = Schedule.of(config.schedule, peak=1.1e-3, steps=195, beta2=0.95)
    schedule(0), schedule(194)              # first and last optimizer step

Warm-up P (s + 1) / w for s < w: the first step is not zero and s = w - 1 is the peak. Then, with x = (s - w)
/ (S - w):

    cosine    m + (P - m) (1 + cos pi x) / 2          linear    P + (m - P) x
    wsd       P until S - D, then m + (P - m) (1 - sqrt((s - S + D) / D))
    constant  P
"""

import math
from dataclasses import dataclass

from utils.config.training import ScheduleConfig
from utils.pipeline.errors import ConfigError

LONGEST_AUTO_WARMUP = 2000


def auto_warmup_steps(steps: int, beta2: float) -> int:
    """2 / (1 - beta2) steps (Ma and Yarats 2019) or 2 % of the run, at most 2,000 and a tenth of the run."""
    wanted = max(math.ceil(round(2 / (1 - beta2), 9)), math.ceil(0.02 * steps))
    return max(1, min(wanted, LONGEST_AUTO_WARMUP, math.ceil(0.1 * steps)))


@dataclass(frozen=True)
class Schedule:
    """A learning rate for each of `steps` optimizer steps; `floor` is the value that the decay ends in."""

    kind: str
    peak: float
    floor: float
    steps: int
    warmup_steps: int
    decay_steps: int

    @classmethod
    def of(
        cls, config: ScheduleConfig, peak: float, steps: int, beta2: float, warm: bool = False
    ) -> "Schedule":
        """
        Resolve a config for a run of `steps`; one that starts `warm`, with another's moments, has no warm-up
        unless asked. ConfigError when the warm-up does not fit into it.
        """
        auto = 0 if warm else auto_warmup_steps(steps, beta2)
        warmup = auto if config.warmup_steps == "auto" else config.warmup_steps
        decay = round(config.decay_fraction * steps) if config.kind == "wsd" else 0
        if warmup + decay > steps:
            raise ConfigError(
                f'"schedule": a warm-up of {warmup} and a decay of {decay} do not fit into {steps} steps',
                fix='lower "warmup_steps" or "decay_fraction"',
            )
        return cls(config.kind, peak, config.final_fraction * peak, steps, warmup, decay)

    def __call__(self, step: int) -> float:
        """Learning rate of the optimizer step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        if self.kind == "wsd":
            fallen = step - self.steps + self.decay_steps
            share = 1 - math.sqrt(fallen / self.decay_steps) if fallen > 0 else 1.0
        else:
            done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
            share = (1 + math.cos(math.pi * done)) / 2 if self.kind == "cosine" else 1 - done
        return self.floor + (self.peak - self.floor) * share

    def describe(self) -> str:
        """One phrase for the log."""
        return f"warm-up {self.warmup_steps}; peak lr {self.peak:.2e}, {self.kind}"
