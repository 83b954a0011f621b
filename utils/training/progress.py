"""
What people see of a run while it runs: a line now and then, curves, the time that is left.

Clocks live here, in log/ and in the manifest's `run`, never in an output.

    progress = Progress(stage, config, steps=195, unit="tokens")
    progress.open(from_step=0)                # sinks, on rank 0
    progress.report(StepReport(...))
"""

import math
import time
from collections import deque
from dataclasses import dataclass

from utils.config.training import TrainingConfig
from utils.pipeline.stage import Stage
from utils.training.speed import Speed
from utils.training.trackers import Trackers

TIMED_STEPS = 20
SHARES = ("gemm_fraction", "mfu")


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: `row` is its clock-free record, `weight` the scored targets."""

    step: int
    loss: float
    row: dict
    weight: float
    seconds: float


class Progress:
    """Turns reports into log lines and rows of the trackers."""

    def __init__(self, stage: Stage, config: TrainingConfig, steps: int, unit: str) -> None:
        self._stage, self._config, self._steps, self._unit = stage, config, steps, unit
        self._recent: deque[StepReport] = deque(maxlen=TIMED_STEPS)
        self._trackers: Trackers | None = None
        self.speed: Speed | None = None
        self._started, self._first, self._weight, self._busy = 0.0, 0, 0.0, 0.0

    def open(self, from_step: int) -> None:
        """Open the sinks; rows that an earlier process wrote after `from_step` are dropped."""

        def warn(text: str) -> None:
            self._stage.log("tracker", text)

        self._trackers = Trackers(self._stage.partial / "log", self._config.trackers, from_step, warn)

    def start(self, step: int) -> None:
        self._started, self._first = time.monotonic(), step

    def report(self, report: StepReport) -> None:
        self._recent.append(report)
        self._weight, self._busy = self._weight + report.weight, self._busy + report.seconds
        speed = sum(each.weight for each in self._recent) / max(
            sum(each.seconds for each in self._recent), 1e-9
        )
        if self._trackers:
            self._trackers.write(report.step, self._numbers(report) | self._rates(speed))
        if report.step % self._config.log_every_steps == 0 or report.step == self._steps:
            self._line(report, speed)

    def _rates(self, tokens_per_second: float) -> dict[str, float]:
        shares = self.speed.shares(tokens_per_second) if self.speed else {}
        return {"tokens_per_second": tokens_per_second} | shares

    def _numbers(self, report: StepReport) -> dict[str, float]:
        """The clock-free row without what is not finite, and what follows from it."""
        numbers = {name: value for name, value in report.row.items() if value is not None}
        if self._unit == "tokens" and "loss" in numbers:
            numbers["perplexity"] = math.exp(min(report.loss, 50))
        clipped = numbers.get("grad_norm", 0.0) > self._config.optimizer.max_gradient_norm
        return numbers | {"clipped": clipped, "step_ms": 1000 * report.seconds}

    def report_evaluation(self, step: int, numbers: dict[str, float], is_best: bool) -> None:
        if self._trackers:
            self._trackers.write(step, {f"eval/{name}": value for name, value in numbers.items()})
        loss = numbers["val_loss"]
        parts = [f"{step:,}  val loss {loss:.4f}"]
        parts += [f"(ppl {math.exp(min(loss, 50)):,.1f})"] if self._unit == "tokens" else []
        parts += [
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items() if name != "val_loss"
        ]
        self._stage.log("eval", "  ".join([*parts, *(["best"] if is_best else [])]), step=step, **numbers)

    def close(self) -> None:
        """Close the sinks and hand the speed to the manifest."""
        if self._busy:
            rates = self._rates(self._weight / self._busy)
            rounded = {name: round(rate, 4 if name in SHARES else None) for name, rate in rates.items()}
            self._stage.run_info(training_seconds=round(self._busy, 1), **rounded)
        if self._trackers:
            self._trackers.close()

    def _line(self, report: StepReport, speed: float) -> None:
        done = report.step - self._first
        left = (time.monotonic() - self._started) / max(done, 1) * (self._steps - report.step)
        norm = report.row["grad_norm"]
        parts = [f"{report.step:,}/{self._steps:,}", f"loss {report.loss:.4f}", f"lr {report.row['lr']:.2e}"]
        parts += [
            *(f"{name} {report.row[name]:.3f}" for name in ("s", "b") if report.row.get(name) is not None),
            f"|g| {norm:.2f}" if norm is not None else "|g| not finite",
            f"{speed:,.0f} {self._unit}/s",
            *(f"{name} {share:.2f}" for name, share in self._rates(speed).items() if name in SHARES),
            f"eta {_span(left)}",
        ]
        self._stage.log(
            "step", "  ".join(parts), step=report.step, loss=report.loss, tokens_per_second=round(speed)
        )


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"
