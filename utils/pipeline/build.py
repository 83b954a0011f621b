"""
One build of one artifact: decide whether it is needed, find or make its build folder, seal it when it is
done.

    build = begin_build("40_pack_dataset", loaded, workspace, output, arguments, log)     # None: up to date
    ...
    finish_build(build, metrics, tokenizer, rates, started, log)
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from utils.pipeline.config import LoadedConfig, StageConfig
from utils.pipeline.environment import code_record, environment_record, host_class
from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import GUARDS
from utils.pipeline.inputs import Input
from utils.pipeline.log import Log, utc_now
from utils.pipeline.manifest import Manifest
from utils.pipeline.placement import holds_unknown_files
from utils.pipeline.proof import Proof, prove_inputs
from utils.pipeline.refusal import build_command
from utils.pipeline.seal import (
    SCRATCH,
    TAMPERED,
    partial_of,
    publish,
    remove_scratch,
    write_manifest,
)
from utils.pipeline.unfinished import BuildFolder
from utils.pipeline.verdict import OK, Change, Verdict, shown
from utils.pipeline.verify import Mode, Verifier, changes_since, stored_currency
from utils.pipeline.workspace import Workspace, program_of

Forecast = Callable[[StageConfig, Workspace], str]


@dataclass(frozen=True)
class Build:
    """A build folder and everything its manifest will say about where it came from."""

    stage: str
    loaded: LoadedConfig
    workspace: Workspace
    output: Path
    proof: Proof
    run_id: str
    resumed: bool
    verify: Mode
    argv: list[str]
    keep_tampered: bool
    was: str  # output digest of the artifact that is replaced, or ""

    @property
    def partial(self) -> Path:
        return partial_of(self.output)

    @property
    def key(self) -> str:
        return self.proof.key

    def seal_checkpoint(self, folder: Path, checkpoint: dict, tokenizer: dict) -> str:
        """Seal a folder below `checkpoints/` as an artifact of its own (P41); returns its output digest."""
        fields = self.fields({}, tokenizer, {}, time.time()) | {"checkpoint": checkpoint}
        return write_manifest(folder, fields, self.workspace).output_digest

    def fields(self, metrics: dict, tokenizer: dict, rates: dict, started: float) -> dict:
        """The manifest but for its outputs and digests."""
        loaded, config_class = self.loaded, type(self.loaded.config)
        script = self.workspace.root / program_of(self.stage)[0]
        return {
            "stage": self.stage,
            "stage_version": config_class.stage_version,
            "determinism": config_class.determinism,
            "key": self.key,
            "config": {
                "path": loaded.path,
                "sha256": loaded.sha256,
                "semantic": self.proof.currency.semantic,
                "resolved": loaded.resolved,
            },
            "inputs": [self._input_record(role) for role in sorted(self.proof.inputs)],
            "tokenizer": tokenizer,
            "sources": [source.record for source in self.proof.sources.values()],
            "metrics": metrics,
            "code": code_record(script, self.workspace.root),
            "environment": environment_record(self.workspace.root),
            "mismatches_allowed": self.proof.waivers,
            "run": self._run_record(rates, started),
        }

    def _input_record(self, role: str) -> dict:
        found = self.proof.inputs[role]
        manifest = found.manifest
        return {
            "role": role,
            "path": self.workspace.relative(found.path),
            "stage": manifest.stage,
            "run_id": manifest.run.id,
            "output_digest": manifest.output_digest,
            "manifest_sha256": manifest.manifest_sha256,
        }

    def _run_record(self, rates: dict, started: float) -> dict:
        now = time.time()
        return {
            "id": self.run_id,
            "started": datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "finished": utc_now(),
            "seconds": round(now - started, 1),
            "rates": rates,
            "argv": [program_of(self.stage)[0], *self.argv],
            "host_class": host_class(),
        }


def begin_build(
    stage: str,
    loaded: LoadedConfig,
    workspace: Workspace,
    output: Path,
    arguments: argparse.Namespace,
    log: Log,
    forecast: Forecast | None = None,
) -> Build | None:
    """
    Verify what the stage stands on and prepare its build folder; None when there is nothing to do (P25,
    P26). What a dry run would cost is told by `forecast`.
    """
    verifier = Verifier(workspace, arguments.verify)
    own, verdict = verifier.artifact(output)
    whole = own if verdict.good else None
    proof = prove_inputs(stage, loaded, verifier, arguments.allow_mismatch, whole, arguments.force)
    verdict = _own_verdict(own, verdict, proof)
    altered = verdict.kind in ("tampered", "mismatched") or holds_unknown_files(output)
    if altered and not arguments.force:
        raise _altered(stage, workspace.relative(output), verdict, loaded.path)
    relative, was = workspace.relative(output), own.output_digest if own else ""
    if verdict.good and not arguments.force:
        log.event("up to date", f"{relative} {was[:12]}", output_digest=was)
        return None
    reason = _why_build(verdict, arguments.force)
    for corpus, found in proof.corpora.items():
        log.event("held-out", f"{corpus}: {found}", corpus=corpus, found=found)
    folder = BuildFolder(stage, loaded, output, proof, fresh=arguments.resume == "never", log=log)
    if arguments.dry_run:
        folder.judge(arguments.force)
        told = forecast(loaded.config, workspace) if forecast else ""
        log.event("would build", f"{relative}: {reason}; key {proof.key[:12]}", key=proof.key)
        if told:
            log.event("forecast", "\n" + told)
        return None
    run_id, resumed = folder.open(force=arguments.force, may_carry=not altered)
    log.event("build", f"{relative}: {reason}", key=proof.key, reason=reason)
    return Build(
        stage=stage,
        loaded=loaded,
        workspace=workspace,
        output=output,
        proof=proof,
        run_id=run_id,
        resumed=resumed,
        verify=arguments.verify,
        argv=_arguments_as_typed(arguments),
        keep_tampered=altered,
        was=was,
    )


def _arguments_as_typed(arguments: argparse.Namespace) -> list[str]:
    typed = sys.argv[1:]
    return typed if str(arguments.config) in typed else ["--config", str(arguments.config)]


def _own_verdict(own: Manifest | None, verdict: Verdict, proof: Proof) -> Verdict:
    """The present artifact against its own manifest, then against what would be built now."""
    if own is None or not verdict.good:
        return verdict
    changes = changes_since(stored_currency(own), proof.currency)
    return Verdict.changed("stale", changes) if changes else verdict


def _altered(stage: str, relative: str, verdict: Verdict, config_path: str) -> UpstreamError:
    return UpstreamError(
        f"{stage} will not build over altered files: {relative} is {verdict}\n"
        "  a rebuild would destroy the edit; with --force the altered folder is kept beside the new one",
        fix=build_command(stage, config_path, force=True),
        verdict=str(verdict),
        component=verdict.component,
        expected=verdict.before,
        actual=verdict.after,
    )


def _why_build(verdict: Verdict, force: bool) -> str:
    return "forced" if force and verdict.good else str(verdict)


# the end


def finish_build(build: Build, metrics: dict, tokenizer: dict, rates: dict, started: float, log: Log) -> None:
    """Look at the inputs once more, write the manifest last, move the folder into place (P22, P28)."""
    _second_look(build)
    fields = build.fields(metrics, tokenizer or build.proof.tokenizer, rates, started)
    manifest = write_manifest(build.partial, fields, build.workspace, SCRATCH)
    remove_scratch(build.partial)
    publish(build.output, TAMPERED if build.keep_tampered else "")
    log.path = build.output / "log" / "events.jsonl"
    relative = build.workspace.relative(build.output)
    replaced = f", was {build.was[:12]}" if build.was and build.was != manifest.output_digest else ""
    kept = f"; what was altered is kept as {build.output.name}{TAMPERED}" if build.keep_tampered else ""
    seconds = f"{_speed(rates)}{manifest.run.seconds:.1f} s"
    text = f"{relative} {manifest.output_digest[:12]}, {seconds}{replaced}{kept}"
    log.event("done", text, output_digest=manifest.output_digest)


def _speed(rates: dict) -> str:
    """`612,000 tokens/s, ` for tokens_per_second, also for pairs; other rates are for the manifest only."""
    speeds = {unit: rates.get(f"{unit}_per_second") for unit in ("tokens", "pairs")}
    return "".join(f"{speed:,.0f} {unit}/s, " for unit, speed in speeds.items() if speed)


def _second_look(build: Build) -> None:
    """Refuse to seal when an input or a source is no longer what was proven before the work."""
    verifier = Verifier(build.workspace, build.verify)
    before, after, verdicts = {}, {}, {}
    for found in build.proof.inputs.values():
        manifest, verdict = verifier.artifact(found.path)
        what = f'input "{found.role}"'
        before[what] = found.manifest.manifest_sha256
        after[what] = manifest.manifest_sha256 if manifest and verdict.good else str(verdict)
        verdicts[what] = (found, verdict)
    for name, source in build.proof.sources.items():
        before[f'source "{name}"'] = source.record["digest"]
        after[f'source "{name}"'] = source.digest_now()
    if changed := GUARDS["G14"](before, after):
        raise _changed_meanwhile(build, changed[0], *verdicts.get(changed[0][0], (None, OK)))


def _changed_meanwhile(build: Build, change: Change, found: Input | None, verdict: Verdict) -> UpstreamError:
    what, before, after = change
    component = verdict.component or verdict.kind if not verdict.good else "it is another one now"
    happened = f"changed while {build.stage} was running"
    rerun = build_command(build.stage, build.loaded.path)
    if type(build.loaded.config).keeps_partial and verdict.good:
        rerun += " --resume never"  # what was built belongs to an input that is gone
    fix = f"rerun: {rerun}"
    if found and not verdict.good:
        rebuild = build_command(found.manifest.stage, found.manifest.config.path, force=True)
        fix = f"{rebuild}\n  then      {rerun}"
    return UpstreamError(
        f"{what} {happened}: {component}\n"
        f"  proven    {shown(before)}   when the stage started\n"
        f"  found     {shown(after)}   now; nothing was sealed, {build.partial.name} keeps the work",
        fix=fix,
        input=what,
        verdict=f"{'stale' if verdict.good else verdict.kind} ({what}: {happened})",
        component=component,
        expected=str(before),
        actual=str(after),
    )
