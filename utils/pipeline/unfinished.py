"""
The build folder `<output>.partial`: continue what lies there, refuse it, or clear it away (P26).

A leftover of the same key is continued. So is one of a config that now only asks for more. Any other is
discarded, or refused where it holds work that costs money or hours. What a stage `carries` (replies that were
paid for) outlives both: a build starts with the file of the leftover, or of the artifact that it replaces.

    run_id, resumed = BuildFolder("50_pretrain", loaded, output, proof, fresh=False, log=log).open()
"""

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.config import LoadedConfig
from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.log import Log, utc_now
from utils.pipeline.proof import Proof
from utils.pipeline.refusal import build_command
from utils.pipeline.revisions import revision_of
from utils.pipeline.seal import STATE, partial_of, read_state, write_state
from utils.pipeline.verdict import Verdict, shown
from utils.pipeline.verify import Currency, changes_since


@dataclass(frozen=True)
class BuildFolder:
    """The build folder of one output; `fresh` (--resume never) keeps nothing of what is there."""

    stage: str
    loaded: LoadedConfig
    output: Path
    proof: Proof
    fresh: bool
    log: Log

    @property
    def partial(self) -> Path:
        return partial_of(self.output)

    @property
    def carried(self) -> str:
        """Path, in the folder, of the file that outlives a build; "" for none, and with `fresh`."""
        return "" if self.fresh else type(self.loaded.config).carried

    def open(self, force: bool = False, may_carry: bool = True) -> tuple[str, bool]:
        """
        The run id, and whether an unfinished build is continued. `force` clears a leftover that would be
        refused, if what it paid for can be carried; `may_carry` lets the present artifact's file be carried.
        """
        state, problem = self.judge(force)
        if state and (problem is None or self._only_adds(state)):
            return self._continue(state, problem), True
        if self.partial.is_dir():
            self._clear(problem)
        return self._start(may_carry), False

    def judge(self, force: bool = False) -> tuple[dict | None, Verdict | None]:
        """
        What the leftover says of itself, and why it cannot simply go on. UpstreamError where it may not be
        discarded. Touches nothing.
        """
        state = None if self.fresh else read_state(self.partial)
        problem = self._problem(state) if state else None
        if problem and not self._only_adds(state) and self._holds_work() and not (force and self.carried):
            raise self._refusal(state, problem)
        return state, problem

    def _holds_work(self) -> bool:
        config_class = type(self.loaded.config)
        return config_class.keeps_partial and any(self.partial.glob(config_class.work))

    def _problem(self, state: Mapping) -> Verdict | None:
        changes = changes_since(_currency_of(state), self.proof.currency)
        return GUARDS["G15"](state["key"], self.proof.key, changes)

    def _only_adds(self, state: Mapping) -> bool:
        then, now = _currency_of(state), self.proof.currency
        same = (then.inputs, then.sources, then.stage_version) == (now.inputs, now.sources, now.stage_version)
        return same and type(self.loaded.config).only_adds(then.semantic, now.semantic)

    def _continue(self, state: Mapping, problem: Verdict | None) -> str:
        more = f", which now asks for more: {problem}" if problem else ""
        self.log.event("resuming", f"an unfinished build of {state['started']}{more}")
        if problem:
            write_state(self.partial, dict(state) | self._identity())
        return state["run_id"]

    def _clear(self, problem: Verdict | None) -> None:
        """Remove all but the carried file; the state first, so that a kill leaves nothing to resume."""
        reason = str(problem or f"that does not say what it is of ({_describe(self.partial)})")
        if self.fresh:
            reason = f"({_describe(self.partial)}), as --resume never asks"
        self.log.event("discarding", f"an unfinished build{': ' if problem else ' '}{reason}")
        (self.partial / STATE).unlink(missing_ok=True)
        keep = self.partial / self.carried if self.carried else None
        for path in self.partial.iterdir():
            if keep is None or not keep.is_relative_to(path):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if keep is None or not keep.is_file():
            shutil.rmtree(self.partial)

    def _start(self, may_carry: bool) -> str:
        self.partial.mkdir(parents=True, exist_ok=True)
        if self.carried and may_carry:
            self._carry_over()
        run_id = secrets.token_hex(16)
        write_state(self.partial, {"run_id": run_id, "started": utc_now()} | self._identity())
        return run_id

    def _carry_over(self) -> None:
        """Start from what the artifact that is about to be replaced has paid for."""
        source, target = self.output / self.carried, self.partial / self.carried
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target.with_name(target.name + ".new"))
            os.replace(target.with_name(target.name + ".new"), target)
        if target.is_file():
            self.log.event("carrying over", f"{self.carried}: what it holds is not paid for again")

    def _identity(self) -> dict:
        """What the build folder is of."""
        now = self.proof.currency
        facts = {"semantic": now.semantic, "inputs": now.inputs, "sources": now.sources}
        records = [source.record for source in self.proof.sources.values()]
        facts["revisions"] = [revision_of(record) for record in records if record["resolved_revision"]]
        named = {"key": self.proof.key, "stage": self.stage, "config": self.loaded.path}
        return named | {"stage_version": now.stage_version} | facts

    def _refusal(self, state: Mapping, problem: Verdict) -> UpstreamError:
        command = build_command(self.stage, self.loaded.path)
        fix = f"put the old value back to continue it, or: {command} --resume never   (throws it away)"
        if self.carried:
            fix += f"\n  or        {command} --force   (a new build that asks again only what has changed)"
        changes = changes_since(_currency_of(state), self.proof.currency)
        listed = "".join(f"\n  changed   {what}: {shown(old)} -> {shown(new)}" for what, old, new in changes)
        return UpstreamError(
            f"{self.stage} cannot start: the unfinished build {self.partial.name} "
            f"({_describe(self.partial)}) is {problem}{listed if len(changes) > 1 else ''}",
            fix=fix,
            verdict=str(problem),
            component=problem.component,
            expected=problem.before,
            actual=problem.after,
        )


def _currency_of(state: Mapping) -> Currency:
    return Currency(state["semantic"], state["inputs"], state["sources"], state["stage_version"])


def _describe(partial: Path) -> str:
    sizes = [path.stat().st_size for path in partial.rglob("*") if path.is_file()]
    return f"{len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
