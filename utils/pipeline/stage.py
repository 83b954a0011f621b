"""
The stage runner: config -> verified inputs -> work -> manifest, the same way for all twelve.

    def main(config: PackConfig, stage: Stage) -> dict:
        corpus = stage.input("corpus")
        ...
        return {"documents": 1024}

    if __name__ == "__main__":
        run_stage("40_pack_dataset", PackConfig, main)

Exit codes: 0 done or up to date, 2 config, 3 upstream, 4 failed, 75 preempted (SIGTERM), 130 interrupted
(Ctrl-C).
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from utils.pipeline.build import Build, Forecast, begin_build, finish_build
from utils.pipeline.config import StageConfig, load_config
from utils.pipeline.ending import record_ending
from utils.pipeline.errors import (
    ConfigError,
    LockstepError,
    StageError,
    Stopped,
    lacking_resource,
)
from utils.pipeline.inputs import Input, Source
from utils.pipeline.journal import Journal
from utils.pipeline.locks import exclusive
from utils.pipeline.log import LEVELS, Log
from utils.pipeline.manifest import LOG_FOLDER
from utils.pipeline.peers import compare_ranks
from utils.pipeline.placement import check_placement
from utils.pipeline.ranks import WAITING, Elsewhere, Ranks
from utils.pipeline.seal import repair
from utils.pipeline.signals import StopRequest
from utils.pipeline.verify import verify_artifact
from utils.pipeline.workspace import REPOSITORY, Workspace, program_of

if TYPE_CHECKING:
    import numpy

Main = Callable[[StageConfig, "Stage"], dict]
MAX_REASON_CHARACTERS = 500


@dataclass
class Stage:
    """What a stage's `main` works with: proven inputs, a build folder, a log, and a place to stop."""

    name: str
    config: StageConfig
    workspace: Workspace
    partial: Path
    resumed: bool
    resume: str
    is_main: bool
    log_writer: Log
    stop_request: StopRequest
    build: Build
    leaving: ExitStack  # what must be over before the build folder is sealed or left, however `main` ends
    tokenizer: dict = field(default_factory=dict)
    rates: dict = field(default_factory=dict)

    def input(self, role: str) -> Input:
        """The verified artifact in this role. ConfigError if the config names none."""
        if role not in self.build.proof.inputs:
            raise ConfigError(f'{self.name} needs the input "{role}", and the config names none')
        return self.build.proof.inputs[role]

    def has_input(self, role: str) -> bool:
        return role in self.build.proof.inputs

    def inputs(self, role: str) -> list[Input]:
        """All artifacts of a list role, in config order: `data.0`, `data.1`, ..."""
        return [found for name, found in self.build.proof.inputs.items() if name.rsplit(".", 1)[0] == role]

    def source(self, name: str) -> Source:
        """The external source of this name, frozen when the stage started."""
        return self.build.proof.sources[name]

    @property
    def waivers(self) -> list[dict]:
        """Mismatches that were allowed here or below; cards must name them."""
        return self.build.proof.waivers

    @property
    def corpora(self) -> dict[str, str]:
        """
        Corpus behind the inputs -> `kept clean` of what the stage measures on, `allowed` though it was not,
        or `unknown`.
        """
        return self.build.proof.corpora

    def log(self, event: str, message: str = "", **fields: object) -> None:
        """One line for people, one JSON line in `log/`."""
        self.log_writer.event(event, message, **fields)

    def every(self, n: int, step: int) -> bool:
        """Whether `step` (1, 2, ...) is a multiple of n; never for n = 0."""
        return n > 0 and step % n == 0

    def generator(self, name: str) -> "numpy.random.Generator":
        """A random generator that depends on the config's seed and `name` alone."""
        import numpy

        seed = hashlib.sha256(f"{getattr(self.config, 'seed', 0)}\n{name}".encode()).digest()
        return numpy.random.default_rng(int.from_bytes(seed[:16], "big"))

    @property
    def stopping(self) -> bool:
        """Somebody asked the stage to stop; finish the unit in hand, then call `stop_point`."""
        return self.stop_request.exit_code != 0

    def stop_point(self) -> None:
        """Leave now if somebody asked for it: everything committed so far is safe. Raises Stopped."""
        if self.stopping:
            raise Stopped(self.stop_request.exit_code)

    def journal(self, name: str) -> Journal:
        """
        The append-only record of committed units. It never stops the stage, which may hold more finished
        units: call `stop_point` where all of them are committed.
        """
        return Journal(self.partial, name)

    def set_tokenizer(self, block: dict) -> None:
        """The tokenizer block of the manifest, where it is not simply that of the inputs."""
        self.tokenizer = block

    def run_info(self, **fields: object) -> None:
        """Times and rates: they go to `manifest.run`, which is in no digest."""
        self.rates.update(fields)

    def seal_checkpoint(self, folder: Path, checkpoint: dict) -> str:
        """Seal a checkpoint folder as an artifact of this run (P41) and return its output digest."""
        return self.build.seal_checkpoint(folder, checkpoint, self.tokenizer or self.build.proof.tokenizer)


def run_stage(
    name: str, config_class: type[StageConfig], main: Main, forecast: Forecast | None = None
) -> None:
    """
    Run a stage from the command line and leave the process with its exit code; `forecast` says what a dry
    run would cost.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update(WAITING)
    ranks = Ranks.from_environment()
    argv = sys.argv[1:]
    ranks.leave(
        ranks.code_of(lambda: execute(name, config_class, main, argv, ranks=ranks, forecast=forecast))
    )


def execute(
    name: str,
    config_class: type[StageConfig],
    main: Main,
    argv: list[str],
    workspace: Workspace = REPOSITORY,
    ranks: Ranks | None = None,
    forecast: Forecast | None = None,
) -> int:
    """
    Run a stage and return its exit code; every expected failure has been printed as one message by then.
    """
    ranks = ranks or Ranks()
    arguments = parse_arguments(name, argv)
    log = Log(name, arguments.log_level, quiet=not ranks.is_main)
    log.path = None if arguments.dry_run else workspace.records / "events.jsonl"
    started = time.time()
    try:
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            return _run(
                name, config_class, main, forecast, arguments, workspace, ranks, log, stop, stack, started
            )
    except Stopped as stopped:
        log.event("stopped", f"everything committed is kept; rerun to continue (exit {stopped.exit_code})")
        return stopped.exit_code
    except LockstepError as error:
        event = "refused" if error.exit_code == 3 else "failed"
        log.error(error.report(), event, fix=error.fix, exit_code=error.exit_code, **error.fields)
        ranks.unsaid = error.report()
        return error.exit_code
    except (OSError, MemoryError, RuntimeError) as error:  # a broken pool of processes is the last kind
        cause = lacking_resource(error)
        if not cause:
            raise
        log.path = None if isinstance(error, OSError) else log.path  # a full disk takes no log line
        message = f"{name} failed: {cause}; what was committed is kept"
        report = StageError(message, fix="make room or mend that, then rerun to continue").report()
        log.error(report, "failed", exit_code=StageError.exit_code)
        ranks.unsaid = report
        return StageError.exit_code


def parse_arguments(name: str, argv: list[str]) -> argparse.Namespace:
    """The command line that all stages share: paths and run-time switches, no hyperparameters."""
    program = " ".join(program_of(name))
    parser = argparse.ArgumentParser(prog=program, description=f"Lockstep stage {name}.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the stage's JSON config")
    parser.add_argument("--force", action="store_true", help="build again, even over altered files")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|DIR",
        help="continue an unfinished build (auto), start it again (never), or continue from a checkpoint",
    )
    parser.add_argument(
        "--verify", choices=["full", "cached"], default="full", help="trust unchanged files (cached)"
    )
    parser.add_argument(
        "--allow-mismatch", default="", metavar="REASON", help="use stale or mismatched inputs"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and why")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    arguments = parser.parse_args(argv)
    reason = "".join(character for character in arguments.allow_mismatch if character.isprintable()).strip()
    if len(reason) > MAX_REASON_CHARACTERS or (arguments.allow_mismatch and not reason):
        parser.error(f"--allow-mismatch needs a reason of 1 to {MAX_REASON_CHARACTERS} printable characters")
    arguments.allow_mismatch = reason
    return arguments


def _run(
    name: str,
    config_class: type[StageConfig],
    main: Main,
    forecast: Forecast | None,
    arguments: argparse.Namespace,
    workspace: Workspace,
    ranks: Ranks,
    log: Log,
    stop: StopRequest,
    stack: ExitStack,
    started: float,
) -> int:
    loaded = load_config(workspace.path(arguments.config.absolute()), config_class, workspace)
    check_placement(name, loaded, workspace)
    output = workspace.path(loaded.config.output)

    def begin() -> Build | None:
        if not arguments.dry_run:
            _take_output(output, workspace, log, stack)
        return begin_build(name, loaded, workspace, output, arguments, log, forecast)

    def farewell(error: Elsewhere) -> None:
        if str(error):
            with suppress(OSError):  # a full disk takes no log line
                log.error(str(error), "failed", exit_code=error.exit_code)
        if ranks.is_main and not arguments.dry_run:
            record_ending(workspace, output, error, building=build is not None)

    build = None
    try:
        with ranks.watched(farewell):
            build = ranks.first_decides(begin)
            if build is None:
                return 0
            compare_ranks(ranks, build, loaded, stop)
        log.path = build.partial / LOG_FOLDER / "events.jsonl"
        with ExitStack() as leaving:
            stage = Stage(
                name=name,
                config=loaded.config,
                workspace=workspace,
                partial=build.partial,
                resumed=build.resumed,
                resume=arguments.resume,
                is_main=ranks.is_main,
                log_writer=log,
                stop_request=stop,
                build=build,
                leaving=leaving,
            )
            if ranks.world_size == 1:  # several agree on it in the loop
                stage.stop_point()
            with ranks.watched(farewell):
                metrics = main(loaded.config, stage)
        with ranks.watched(farewell):
            ranks.first_decides(
                lambda: finish_build(build, metrics, stage.tokenizer, stage.rates, started, log)
            )
    except BaseException as error:
        if ranks.is_main and not arguments.dry_run:
            record_ending(workspace, output, error, building=build is not None)
        raise
    return 0


def _take_output(output: Path, workspace: Workspace, log: Log, stack: ExitStack) -> None:
    """Lock the output folder for this process and put right what a crash between two renames left."""
    relative = workspace.relative(output)
    stack.enter_context(exclusive(workspace, relative, f"{relative} is being built"))
    if repaired := repair(output, lambda: verify_artifact(output, workspace).kind == "tampered"):
        log.event("repaired", f"{relative}: {repaired}")
