"""
When a run evaluates and saves, how fast it is, and how long it will still take.

    due = Due.of(config, steps=2_000)             # due.evaluates(100), due.saves(100)
    timing = Timing(due)
    timing.step(weight=8_192, seconds=0.9)        # a step alone
    timing.pause(100, seconds=6.1)                # between step 100 and the next: evaluation, saving
    timing.rate(), timing.seconds_left(100)
    stage.run_info(schedule=resolved_schedule(config, schedule))    # what "auto" came to

The rate is that of the last 20 steps. The first 10 of a process (caches, compiling) count only until there
are others.
"""

from collections import deque
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple, Protocol

from utils.config.training import TrainingConfig
from utils.training.choice import Choice

AUTO_INTERVALS = 20
TIMED_STEPS = 20
WARMING_STEPS = 10


class Schedule(Protocol):
    """The number of optimizer steps, how many of them warm up, and the learning rate of each, from 0."""

    steps: int
    warmup_steps: int
    peak: float

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Due:
    """The steps, counted from 1, after which something is due; the last one has it all."""

    steps: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, config: TrainingConfig, steps: int) -> "Due":
        """As the config has it; "auto" is a twentieth of the run."""
        auto = max(1, round(steps / AUTO_INTERVALS))
        asked = (config.eval_every_steps, config.save_every_steps)
        return cls(steps, *(auto if every == "auto" else every for every in asked))

    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.steps

    def left(self, step: int) -> tuple[int, int]:
        """After `step`: evaluations that are still due, and times when only saving is."""
        if step >= self.steps:
            return 0, 0
        evaluations, savings, both = (
            (self.steps - 1) // every - step // every
            for every in (self.eval_every, self.save_every, lcm(self.eval_every, self.save_every))
        )
        return evaluations + 1, savings - both


def resolved_schedule(config: TrainingConfig, schedule: Schedule) -> dict[str, dict]:
    """What the manifest says of the run's intervals and rate: asked for, as they came out, and why."""
    due, of_run = Due.of(config, schedule.steps), f"a twentieth of {schedule.steps:,} steps"
    found = {
        "eval_every_steps": (config.eval_every_steps, due.eval_every, of_run),
        "save_every_steps": (config.save_every_steps, due.save_every, of_run),
        "warmup_steps": (config.schedule.warmup_steps, schedule.warmup_steps, "by steps and beta2"),
        "learning_rate": (config.optimizer.learning_rate, schedule.peak, "by what is trained"),
    }
    return {
        name: Choice(asked, resolved, why if asked == "auto" else "asked for").record()
        for name, (asked, resolved, why) in found.items()
    }


class Timed(NamedTuple):
    """A step: its scored targets, its seconds."""

    weight: float
    seconds: float


class Mean:
    """Of what was measured so far; 0 before anything was."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)


class Timing:
    """Of this process: steps by themselves, and the pauses between them by what they were for."""

    def __init__(self, due: Due) -> None:
        self._due, self._steps = due, 0
        self._recent: deque[Timed] = deque(maxlen=TIMED_STEPS)
        self._weight, self._seconds = Mean(), Mean()
        self._evaluation, self._saving = Mean(), Mean()
        self.training_seconds = 0.0

    def step(self, weight: float, seconds: float) -> None:
        self._steps, self.training_seconds = self._steps + 1, self.training_seconds + seconds
        if self._steps == WARMING_STEPS + 1:
            self._recent.clear()
            self._weight, self._seconds = Mean(), Mean()
        self._recent.append(Timed(weight, seconds))
        self._weight.add(weight)
        self._seconds.add(seconds)

    def pause(self, step: int, seconds: float) -> None:
        """What the caller of the loop did after a step: an evaluation with its saving, or a saving alone."""
        if self._due.evaluates(step):
            self._evaluation.add(seconds)
        elif self._due.saves(step):
            self._saving.add(seconds)

    def rate(self) -> float:
        """Scored targets per second of the last steps."""
        weight, seconds = map(sum, zip(*self._recent, strict=True))
        return weight / max(seconds, 1e-9)

    def overall_rate(self) -> float:
        """Scored targets per second of all steps but the first."""
        return self._weight.total / max(self._seconds.total, 1e-9)

    def seconds_left(self, step: int) -> float:
        """Until the end of the run, evaluations and savings included at what they cost so far."""
        evaluations, savings = self._due.left(step)
        recent = sum(each.seconds for each in self._recent) / max(len(self._recent), 1)
        steps = (self._due.steps - step) * recent
        return steps + evaluations * self._evaluation.value + savings * self._saving.value
