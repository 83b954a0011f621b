"""
How the steps of a run are computed: attention, recomputation, compilation, threads, rows per forward pass.

    execution = Execution(loss_model, rows, config, machine, stage, steps=195)
    execution.recall(state["execution"])         # of a checkpoint
    execution.settle()                           # finds what "auto" leaves open; logs one line
    execution.micro_rows
    raise execution.out_of_memory(error, step=12)

None of it changes what is computed beyond the last bits, so all of it may change from one start of a run to
the next. What was found by timing is kept beside the unfinished build and in every checkpoint: a run that is
continued goes on with it, and ends in the same bytes as one that was never stopped.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from utils.config.training import TrainingConfig
from utils.pipeline.errors import StageError
from utils.pipeline.stage import Stage
from utils.training.advice import Situation, out_of_memory
from utils.training.attention import resolve_attention, whole_rows
from utils.training.choice import Choice
from utils.training.determinism import make_deterministic
from utils.training.layers import compile_layers, recompute_layers, restore_layers
from utils.training.loss import LossModel
from utils.training.machine import Machine
from utils.training.memory import ran_out
from utils.training.precision import usable_cores
from utils.training.rehearsal import Rehearsal, best_rows, best_threads
from utils.training.rows import Rows, divisors, micro_batch_rows

FILE = ".journal/execution.json"  # never an output; an unfinished build is only continued under its own key
FEWEST_COMPILED_STEPS = 500
THREADS_TRIAL_ROWS = 2
LONGEST_REASON = 200
COMPARED = ("attention", "activation_checkpointing", "kernels")
NOTHING_FITS = "no micro-batch of one row fits"


class Execution:
    """Settles once, before the first step, how this run is executed; `choices` says what and why."""

    def __init__(
        self,
        loss_model: LossModel,
        rows: Rows,
        config: TrainingConfig,
        machine: Machine,
        stage: Stage,
        steps: int,
    ) -> None:
        self._config, self._machine, self._stage, self._steps = config, machine, stage, steps
        self._rows_of_rank = rows.batch_rows // machine.num_ranks
        self.micro_rows = micro_batch_rows(config.micro_batch_rows, rows.batch_rows, machine.num_ranks)
        self._rehearsal = Rehearsal(loss_model, rows, machine)
        self._model, self._settled, self._recalled = loss_model.model, False, {}
        if config.activation_checkpointing:
            recompute_layers(self._model)
        self.choices = {
            "precision": Choice(config.precision, machine.precision.name, machine.precision.reason),
            "deterministic": make_deterministic(config),
            "attention": resolve_attention(config, machine.device, machine.precision),
            "document_attention": Choice(config.document_attention, config.document_attention),
            "activation_checkpointing": Choice(
                config.activation_checkpointing, config.activation_checkpointing
            ),
        }

    # settling -----------------------------------------------------------------------------------------------

    def recall(self, stamp: dict[str, Any]) -> None:
        """Go on as the run that wrote this stamp, as far as the config says "auto"; name what differs."""
        self._recalled, now = stamp, self.stamp()
        for name in (each for each in COMPARED if stamp[each] != now[each]):
            self._stage.log("execution", f"{name} was {stamp[name]}, is {now[name]}: other last bits")

    def settle(self) -> None:
        """Find what "auto" leaves open, compile, and log one line; leaves no trace in the run."""
        if self._settled:
            return
        self._settled = True
        known = self._known()
        with self._rehearsal.without_trace(), self.memory_watched(step=0):
            self.choices["cpu_threads"] = self._threads(known)
            self.choices["micro_batch_rows"] = self._rows(known)
            self.micro_rows = self.choices["micro_batch_rows"].resolved
            self._tell_other_bits(known)
            if self._machine.rank == 0:
                self._remember(self.micro_rows)
            self.choices["compile"] = self._compile()
        self._stage.log("device", self.describe())

    def _known(self) -> dict[str, int]:
        """Threads and rows that an earlier start of this run found, for as many processes."""
        file = self._stage.partial / FILE
        found = json.loads(file.read_text()) if file.is_file() else self._recalled
        return found if found.get("ranks") == self._machine.num_ranks else {}

    def _tell_other_bits(self, known: dict[str, int]) -> None:
        """Name what an earlier start of this run had otherwise."""
        now = {"threads": self.threads, "micro_rows": self.micro_rows}
        for name in (each for each in now if known.get(each, now[each]) != now[each]):
            self._stage.log("execution", f"{name} was {known[name]}, is {now[name]}: other last bits")

    def _remember(self, micro_rows: int) -> None:
        """Keep rows and threads for the next start of this run."""
        file = self._stage.partial / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = {"ranks": self._machine.num_ranks, "micro_rows": micro_rows, "threads": self.threads}
        writing = file.with_suffix(f".{os.getpid()}.tmp")
        writing.write_text(json.dumps(kept))
        os.replace(writing, file)

    def _threads(self, known: dict[str, int]) -> Choice:
        asked, most = self._config.cpu_threads, self._machine.threads
        if asked != "auto":
            if asked > usable_cores():
                cores = f"this process may use {usable_cores()} cores: slower than those"
                self._stage.log("warning", f'"cpu_threads": {asked}, and {cores}')
            return Choice(asked, most)
        if self._machine.device.type != "cpu" or most == 1:
            return Choice(asked, most, "all usable cores")
        if known.get("threads", most + 1) <= most:
            torch.set_num_threads(known["threads"])
            return Choice(asked, known["threads"], "found when the run began")
        size = max(each for each in divisors(self._rows_of_rank) if each <= THREADS_TRIAL_ROWS)
        found = best_threads(self._rehearsal, [1, most], min(size, self.micro_rows))
        torch.set_num_threads(found)
        return Choice(
            asked, found, f"clearly faster than {most}" if found == 1 else "1 is not clearly faster"
        )

    def _rows(self, known: dict[str, int]) -> Choice:
        asked, sizes = self._config.micro_batch_rows, divisors(self._rows_of_rank)
        if asked != "auto":
            return Choice(asked, self.micro_rows)
        if known.get("micro_rows") in sizes:
            return Choice(asked, known["micro_rows"], "found when the run began")
        if len(sizes) == 1:
            return Choice(asked, 1, "a process has one row")
        if self._machine.sharded:  # where memory ran out in one process, the others would wait for its part
            return Choice(asked, 1, "not tried out with sharded weights")
        found, tried = best_rows(self._rehearsal, sizes, self._rehearsal.footprint(sizes[-1]))
        if not found:
            self.micro_rows = 1
            raise self.out_of_memory(MemoryError(NOTHING_FITS), step=0)
        word = "the largest that fits" if self._machine.device.type == "cuda" else "the fastest"
        return Choice(asked, found, f"{word} of {', '.join(map(str, tried))}")

    def _compile(self) -> Choice:
        asked, device = self._config.compile, self._machine.device.type
        if asked == "off":
            return Choice(asked, "off")
        if asked == "auto" and not worth_compiling(device):
            return Choice(asked, "off", f"a {device} run seldom earns back the time it takes")
        if asked == "auto" and self._steps < FEWEST_COMPILED_STEPS:
            return Choice(asked, "off", f"fewer than {FEWEST_COMPILED_STEPS} steps")
        compile_layers(self._model)
        problem = self._warm_up()
        if not problem:
            return Choice(asked, "on", "asked for" if asked == "on" else "the compiler works")
        restore_layers(self._model)
        if asked == "on":
            raise StageError(f'"compile": "on" failed: {problem}', fix='set "compile": "off"')
        self._stage.log("warning", f"compile: off, since the compiler failed ({problem})")
        return Choice(asked, "off", problem)

    def _warm_up(self) -> str:
        """Compile for rows of one document and of several; what went wrong, on any process."""
        batch, problem = self._rehearsal.batch(self.micro_rows), ""
        try:
            self._rehearsal.once(batch)
            self._rehearsal.once(whole_rows(batch))
        except Exception as error:  # a compiler may raise anything, and the reason is recorded
            if ran_out(error):
                raise self.out_of_memory(error, step=0) from error
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]
        return next(filter(None, self._machine.gather(problem)), "")

    # what was settled ---------------------------------------------------------------------------------------

    @property
    def threads(self) -> int:
        """Threads of this process."""
        return self.choices["cpu_threads"].resolved

    def describe(self) -> str:
        """One phrase for the log."""
        resolved = {name: choice.resolved for name, choice in self.choices.items()}
        parts = [self._machine.describe(), resolved["attention"], f"compile {resolved['compile']}"]
        parts += ["activation checkpointing"] if resolved["activation_checkpointing"] else []
        parts += ["documents see each other"] if resolved["document_attention"] == "full" else []
        parts += ["deterministic"] if self._config.deterministic else []
        return ", ".join([*parts, f"micro-batch {self.micro_rows} rows"])

    def stamp(self) -> dict[str, Any]:
        """What a checkpoint says of it: resolved values only."""
        resolved = {name: choice.resolved for name, choice in self.choices.items()}
        kernels = {each.kernel: each.implementation for each in self._machine.kernels}
        sizes = {"ranks": self._machine.num_ranks, "micro_rows": self.micro_rows}
        sizes |= {"threads": self.threads} if "cpu_threads" in self.choices else {}
        return resolved | sizes | {"kernels": kernels}

    def record(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of it: asked for, resolved, and why."""
        return {name: choice.record() for name, choice in self.choices.items()}

    # running out of memory ----------------------------------------------------------------------------------

    @contextmanager
    def memory_watched(self, step: int) -> Iterator[None]:
        """The region of a step; StageError that says what to do when an allocation fails in it."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise self.out_of_memory(error, step) from error

    @contextmanager
    def examination_watched(self, step: int) -> Iterator[None]:
        """The region in which the model of a step is examined; there the config does not set the rows."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            reason = next(iter(str(error).splitlines()), "")
            raise StageError(
                f"out of memory while the model of step {step} was examined ({reason})",
                fix="shorter rows (row_tokens, sequence_length_tokens of stage 40) or a smaller model; "
                "a rerun continues from the newest checkpoint",
            ) from error

    def out_of_memory(self, error: BaseException, step: int) -> StageError:
        """The error that ends the run; with rows on "auto" the next start takes half as many."""
        smaller = max((each for each in divisors(self._rows_of_rank) if each < self.micro_rows), default=0)
        stored = self._config.micro_batch_rows == "auto" and smaller > 0
        if stored:
            self._remember(smaller)
        situation = Situation(self._config, self._stage.workspace, self._rehearsal, self.micro_rows, smaller)
        try:
            if not self._machine.sharded:  # else no process has the whole model to measure on
                return out_of_memory(situation, error, step, stored)
        except (RuntimeError, MemoryError) as again:
            if not ran_out(again):
                raise
        fix = f'"micro_batch_rows": {smaller or 1}, "activation_checkpointing": true, or a smaller model'
        return StageError(f"out of memory in step {step}, with no room to measure: {error}", fix=fix)


def worth_compiling(device_type: str) -> bool:
    """Whether compiled layers are much faster there: 1.1 times on a CPU, for half a minute of compiling."""
    return device_type == "cuda"
