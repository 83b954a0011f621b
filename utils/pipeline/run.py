"""
Running a profile: start each stage that is not up to date in its own process, in order, until one fails.

    code = run_profile(arguments, REPOSITORY)

Up-to-date stages start no process. A stage that a launcher hides behind another exit code is asked through
its build folder.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.pipeline.ending import ending_of, forget_ending
from utils.pipeline.errors import ConfigError, StageError
from utils.pipeline.locks import exclusive
from utils.pipeline.manifest import Manifest
from utils.pipeline.plan import Judged, Node, judge, known_to, read_profile
from utils.pipeline.signals import INTERRUPTED, PREEMPTED, handled
from utils.pipeline.verdict import Verdict
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace, program_of

Launcher = Callable[[Sequence[str], Path], int]
TRAINING_STAGES = ("50_pretrain", "70_train_sft", "90_train_preferences")
NAME_COLUMN, WORD_COLUMN = 23, 13
LEAVING_SECONDS = 60.0


def run_profile(arguments: argparse.Namespace, workspace: Workspace, launch: Launcher | None = None) -> int:
    """
    Bring the stages between --from and --to up to date; returns the first failing stage's exit code, or
    0.
    """
    profile = arguments.profile
    nodes = read_profile(profile, workspace)
    chosen = _chosen(nodes, arguments.first, arguments.last, arguments.force)
    counts = {"up to date": 0, "built": 0, "failed": 0}
    started, code = time.time(), 0
    for node in chosen:  # a profile that lacks its raw files says so now, not after the hours before them
        node.loaded.config.external_sources(workspace)
    verifier = Verifier(workspace, arguments.mode)
    known_to(verifier, nodes)
    with exclusive(workspace, f"profile-{profile}", f"another run of profile {profile} is active"):
        for node in chosen:
            code, word = _bring_up_to_date(node, arguments, verifier, launch or start_process)
            counts[word] += 1
            if code:
                break
    summary = ", ".join(f"{count} {word}" for word, count in counts.items())
    plural = "" if len(chosen) == 1 else "s"
    print(f"{len(chosen)} stage{plural}: {summary} in {time.time() - started:.1f} s", flush=True)
    return code


def _chosen(nodes: list[Node], first: str, last: str, forced: str) -> list[Node]:
    names = [node.stage for node in nodes]
    for name in (first, last, forced):
        if name and name not in names:
            raise ConfigError(f'this profile has no stage "{name}"', fix=f"stages: {', '.join(names)}")
    start = names.index(first) if first else 0
    stop = names.index(last) + 1 if last else len(nodes)
    if start >= stop:
        raise ConfigError(f"--from {first} comes after --to {last}", fix="swap them")
    return nodes[start:stop]


def _bring_up_to_date(
    node: Node, arguments: argparse.Namespace, verifier: Verifier, launch: Launcher
) -> tuple[int, str]:
    before = judge(node, verifier)
    forced = arguments.force == node.stage
    if before.verdict.good and not forced:
        _say(node, "up to date", before.manifest.output_digest[:12])
        return 0, "up to date"
    started = time.time()
    command = _command(node, forced, arguments.accelerate, arguments.mode)
    forget_ending(verifier.workspace, node.output)
    code = launch(command, verifier.workspace.root)
    if code:
        code = ending_of(verifier.workspace, node.output) or code  # launchers turn every code into 1
        stopped = code in (PREEMPTED, INTERRUPTED)
        _say(node, "stopped" if stopped else "failed", f"exit {code}")
        return code, "failed"
    verifier.forget(node.output)
    _say(node, "built", _built(verifier.manifest(node.output), before, time.time() - started))
    return 0, "built"


def _command(node: Node, forced: bool, accelerate: str, mode: str) -> list[str]:
    script = [*program_of(node.stage), "--config", node.loaded.path, "--verify", mode]
    script += ["--force"] if forced else []
    if accelerate and node.stage in TRAINING_STAGES:
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", accelerate]
        return [*launcher, *script]
    return [sys.executable, *script]


def _built(manifest: Manifest | None, before: Judged, seconds: float) -> str:
    if manifest is None:
        raise StageError(f"{before.node.stage} said it was done and left no manifest")
    text = f"{manifest.output_digest[:12]}   {seconds:.1f} s"
    if before.manifest is None or before.manifest.output_digest == manifest.output_digest:
        return text
    return f"{text}   was {before.manifest.output_digest[:12]}: {_cause(before.verdict)}"


def _cause(verdict: Verdict) -> str:
    return verdict.detail.replace(": ", " ", 1) if verdict.detail else verdict.kind


def start_process(command: Sequence[str], root: Path) -> int:
    """
    Run one stage and wait; SIGTERM and Ctrl-C are passed on to all of its processes, which decide how to
    leave.

    The stage gets a process group of its own, so that nobody hears a Ctrl-C twice.
    """
    process: subprocess.Popen | None = None
    waiting: list[int] = []  # signals that came before there was a process to pass them to

    def forward(number: int, _frame: object) -> None:
        if process is None:
            waiting.append(number)
        elif process.poll() is None:
            os.killpg(process.pid, number)

    with handled(forward):
        process = subprocess.Popen(command, cwd=root, start_new_session=True)
        for number in waiting:
            forward(number, None)
        code = process.wait()
        if code:
            _wait_for_group(process.pid)
    return code if code >= 0 else 128 - code


def _wait_for_group(leader: int) -> None:
    """
    A launcher of one process dies of the signal that the stage is still answering to; what the stage notes of
    its end is only there when that is over.
    """
    deadline = time.monotonic() + LEAVING_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def _say(node: Node, word: str, text: str) -> None:
    print(f"{node.stage:<{NAME_COLUMN}}{word:<{WORD_COLUMN}}{text}", flush=True)
