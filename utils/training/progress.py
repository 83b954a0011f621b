"""
What people see of a run while it runs: a line now and then, curves, the time that is left.

Clocks live here, in log/ and in the manifest's `run`, never in an output.

    progress = Progress(stage, config, due, unit="tokens", epochs=rows.epochs, device=machine.device)
    progress.open(from_step=0)                # sinks, on rank 0
    progress.report(StepReport(...))
    progress.pause(step, seconds)             # what came between this step and the next
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.config.training import TrainingConfig
from utils.pipeline.stage import Stage
from utils.training.memory import peak_bytes
from utils.training.speed import Speed
from utils.training.timing import Due, Timing
from utils.training.trackers import Trackers, check_trackers

SHARES = ("gemm_fraction", "mfu")
LARGEST_EXPONENT = 50  # of a perplexity


@dataclass(frozen=True)
class StepReport:
    """One optimizer step: `row` is its clock-free record, `weight` the scored targets."""

    step: int
    loss: float
    row: dict
    weight: float
    seconds: float


class Progress:
    """
    Turns reports into log lines and rows of the trackers. ConfigError for a tracker that cannot be.
    """

    def __init__(
        self,
        stage: Stage,
        config: TrainingConfig,
        due: Due,
        unit: str,
        epochs: Callable[[int], float | None],
        device: torch.device,
    ) -> None:
        check_trackers(config.trackers)
        self._stage, self._config, self._steps, self._unit = stage, config, due.steps, unit
        self._epochs, self._device = epochs, device
        self._trackers: Trackers | None = None
        self._timing = Timing(due)
        self.pause = self._timing.pause
        self.speed: Speed | None = None

    def open(self, from_step: int) -> None:
        """Open the sinks; rows that an earlier process wrote after `from_step` are dropped."""

        def warn(text: str) -> None:
            self._stage.log("tracker", text)

        settings = self._config.model_dump(mode="json")
        folder = self._stage.partial / "log"
        self._trackers = Trackers(folder, self._config.trackers, from_step, settings, warn)

    def report(self, report: StepReport) -> None:
        """Take note of a step, and say so when it is time for a line."""
        self._timing.step(report.weight, report.seconds)
        rates = self._rates(self._timing.rate())
        if self._trackers:
            self._trackers.write(report.step, self._numbers(report) | rates)
        if report.step % self._config.log_every_steps == 0 or report.step == self._steps:
            self._line(report, rates)

    @property
    def _rate_name(self) -> str:
        return f"{self._unit}_per_second"

    def _rates(self, units_per_second: float) -> dict[str, float]:
        shares = self.speed.shares(units_per_second) if self.speed else {}
        return {self._rate_name: units_per_second} | shares

    def _numbers(self, report: StepReport) -> dict[str, float]:
        """The clock-free row without what is not finite, what follows from it, and what the step took."""
        numbers = {name: value for name, value in report.row.items() if value is not None}
        if self._unit == "tokens" and "loss" in numbers:
            numbers["perplexity"] = _perplexity(report.loss)
        numbers["clipped"] = numbers.get("grad_norm", 0.0) > self._config.optimizer.max_gradient_norm
        epochs = self._epochs(report.step)
        numbers |= {} if epochs is None else {"epochs": epochs}
        return numbers | {"step_ms": 1000 * report.seconds, "memory_bytes": peak_bytes(self._device)}

    def report_evaluation(self, step: int, numbers: dict[str, float], is_best: bool) -> None:
        if self._trackers:
            self._trackers.write(step, {f"eval/{name}": value for name, value in numbers.items()})
        loss = numbers["val_loss"]
        parts = [f"{step:,}  val loss {loss:.4f}"]
        parts += [f"(ppl {_shown_perplexity(loss)})"] if self._unit == "tokens" else []
        parts += [
            f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items() if name != "val_loss"
        ]
        self._stage.log("eval", "  ".join([*parts, *(["best"] if is_best else [])]), step=step, **numbers)

    def close(self) -> None:
        """Close the sinks and hand the speed to the manifest."""
        if self._timing.training_seconds:
            rates = self._rates(self._timing.overall_rate())
            rounded = {name: round(rate, 4 if name in SHARES else None) for name, rate in rates.items()}
            self._stage.run_info(training_seconds=round(self._timing.training_seconds, 1), **rounded)
        if self._trackers:
            self._trackers.close()

    def _line(self, report: StepReport, rates: dict[str, float]) -> None:
        norm = report.row["grad_norm"]
        parts = [f"{report.step:,}/{self._steps:,}", f"loss {report.loss:.4f}", f"lr {report.row['lr']:.2e}"]
        parts += [
            *(f"{name} {report.row[name]:.3f}" for name in ("s", "b") if report.row.get(name) is not None),
            f"|g| {norm:.2f}" if norm is not None else "|g| not finite",
            f"{rates[self._rate_name]:,.0f} {self._unit}/s",
            *(f"{name} {share:.2f}" for name, share in rates.items() if name in SHARES),
            f"eta {_span(self._timing.seconds_left(report.step))}",
        ]
        said = {"loss": report.loss, self._rate_name: round(rates[self._rate_name])}
        live = report.step < self._steps  # the last line stays
        self._stage.log("step", "  ".join(parts), live=live, step=report.step, **said)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, LARGEST_EXPONENT))


def _shown_perplexity(loss: float) -> str:
    """For people, to whom more than a billion says nothing."""
    return ">1e9" if loss > math.log(1e9) else f"{math.exp(loss):,.1f}"


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"
