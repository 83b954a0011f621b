"""
Refusals: one message that says what differs, both values, where each came from, and the command that mends it
(P18).

    raise refuse_input("50_pretrain", "data", link, verifier, config_path)
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from utils.pipeline.errors import UpstreamError
from utils.pipeline.guards import MANIFEST
from utils.pipeline.inputs import Input
from utils.pipeline.manifest import Manifest
from utils.pipeline.tokenizer_files import carries_tokenizer
from utils.pipeline.tokenizer_identity import (
    changed_probe,
    describe_difference,
    tokenizer_block,
)
from utils.pipeline.verdict import Verdict, shown
from utils.pipeline.verify import Link, Verifier
from utils.pipeline.workspace import Workspace, program_of

ALLOW_LINE = '\n  or        --allow-mismatch "why this is fine" (recorded in everything built from it)'

FIELD_NAMES = {
    "model_sha256": "model bytes",
    "pieces_sha256": "pieces",
    "vocab_size": "vocabulary size",
    "special_ids": "special ids",
    "chat_template_sha256": "chat template",
    "probe_sha256": "probes",
}


def profile_of(config_path: str) -> str:
    """`demo` for config/demo/50_pretrain.json, "" for a config that belongs to no profile."""
    parts = Path(config_path).parts
    return parts[1] if len(parts) == 3 and parts[0] == "config" else ""


def build_command(stage: str, config_path: str, force: bool = False) -> str:
    return f"python {' '.join(program_of(stage))} --config {config_path}" + (" --force" if force else "")


def run_command(stage: str, config_path: str) -> str:
    """The command that brings `stage` and all below it up to date."""
    profile = profile_of(config_path)
    return (
        f"python tools/pipeline.py run {profile} --to {stage}"
        if profile
        else build_command(stage, config_path)
    )


def producer_of(folder: Path, config_path: str, workspace: Workspace) -> tuple[str, str]:
    """
    (stage, config path) of whoever writes `folder`: by its manifest's neighbours, the configs of the same
    profile.
    """
    from utils.pipeline.plan import outputs_of_profile

    profile = profile_of(config_path)
    outputs = outputs_of_profile(profile, workspace) if profile else {}
    return outputs.get(workspace.relative(folder), ("", ""))


def refuse_input(
    stage: str,
    role: str,
    links: Sequence[Link],
    problem: Link,
    verifier: Verifier,
    config_path: str,
    note: str = "",
) -> UpstreamError:
    """
    The error for an input that cannot be used; `links` is its chain, `problem` the link of it that is
    wrong.
    """
    workspace, verdict = verifier.workspace, problem.verdict
    direct = links[0]
    direct_path, path = workspace.relative(direct.folder), workspace.relative(problem.folder)
    below = "" if problem is direct else f", which stands on {path}: it"
    lines = [f'{stage} cannot start: input "{role}" ({direct_path}){below} is {verdict.kind}']
    lines += [*_facts(problem, path), *([f"  note      {note}"] if note else [])]
    fix = _fix(direct, problem, config_path, workspace)
    if verdict.waivable and fix:
        fix += ALLOW_LINE
    return UpstreamError("\n".join(lines), fix=fix, **verdict_fields(verdict, role))


def verdict_fields(verdict: Verdict, role: str) -> dict:
    """The fields of the JSON log line of a refusal."""
    return {
        "input": role,
        "verdict": str(verdict),
        "component": verdict.component,
        "expected": verdict.before,
        "actual": verdict.after,
    }


def _facts(problem: Link, path: str) -> list[str]:
    verdict, manifest = problem.verdict, problem.manifest
    listed = {output.path: output for output in manifest.outputs} if manifest else {}
    output = listed.get(verdict.component)
    file = problem.folder / verdict.component if output else None
    if verdict.kind == "tampered" and output and file.is_file() and not file.is_symlink() and verdict.after:
        where = f"{path}/{MANIFEST}"
        actual = verdict.after if len(verdict.after) == 64 else ""
        expected_text = f"sha256 {output.sha256[:12]}, {output.bytes:,} bytes"
        size = f"{file.stat().st_size:,} bytes"
        return [
            f"  file      {verdict.component}",
            f"  expected  {expected_text}   {where}",
            f"  actual    {f'sha256 {actual[:12]}, ' if actual else ''}{size}   on disk",
        ]
    if verdict.kind == "stale" and verdict.before and manifest and ", and " not in verdict.detail:
        source = manifest.config.path if verdict.component.startswith(("config", "source")) else "now"
        before, after = shown(verdict.before), shown(verdict.after)
        rest = verdict.detail.partition(", not covered")
        text = f"  changed   {verdict.component}: {before} ({path}/{MANIFEST}) -> {after} ({source})"
        return [text + (f"\n  waiver    not covered{rest[2]}" if rest[1] else "")]
    return [f"  found     {verdict.detail}"] if verdict.detail else []


def _fix(direct: Link, problem: Link, config_path: str, workspace: Workspace) -> str:
    """Rebuild what was altered by force; bring everything else up to date through the direct input."""
    stage, path = _origin(problem, config_path, workspace)
    if problem.verdict.component == "schema_version":
        rebuild = f", or: {build_command(stage, path, force=True)}" if stage else ""
        return f"update this program, a newer one wrote the artifact{rebuild}"
    if stage and needs_force(problem.verdict):
        return build_command(stage, path, force=True)
    stage, path = _origin(direct, config_path, workspace)
    return (
        run_command(stage, path)
        if stage
        else f"build {workspace.relative(direct.folder)} first, or name another folder"
    )


def needs_force(verdict: Verdict) -> bool:
    """
    Whether files lie where the rebuild goes that no manifest accounts for; they are replaced by force
    only.
    """
    return verdict.kind == "tampered" or (verdict.kind, verdict.component) == ("incomplete", MANIFEST)


def _origin(link: Link, config_path: str, workspace: Workspace) -> tuple[str, str]:
    stage, path = producer_of(link.folder, config_path, workspace)
    if not stage and link.manifest and workspace.path(link.manifest.config.path).is_file():
        return link.manifest.stage, link.manifest.config.path
    return stage, path


def refuse_tokenizers(
    stage: str,
    verdict: Verdict,
    blocks: Mapping[str, dict],
    inputs: Mapping[str, Input],
    config_path: str,
    workspace: Workspace,
) -> UpstreamError:
    """The error for inputs that were made with different tokenizers or chat templates."""
    what = "chat templates" if verdict.component == "chat_template" else "tokenizers"
    lines = [f"{stage} cannot start: inputs use different {what}"]
    roles = [role for role in blocks if blocks[role]]
    for role in roles:
        block, where = blocks[role], workspace.relative(inputs[role].path)
        fingerprint, size = block["fingerprint"][:12], block["vocab_size"]
        lines.append(f"  {role:<9} fingerprint {fingerprint}, vocabulary {size:,}   {where}/{MANIFEST}")
    places = [place for role in roles if (place := _tokenizer_files(inputs[role], blocks[role], workspace))]
    differs = _tokenizer_difference([blocks[role] for role in roles], places)
    lines.append(f"  differs   {differs}")
    fields = verdict_fields(verdict, "tokenizer")
    fix = run_command(stage, config_path) + (ALLOW_LINE if verdict.waivable else "")
    return UpstreamError("\n".join(lines), fix=fix, **fields)


def _tokenizer_files(found: Input, block: Mapping, workspace: Workspace) -> Path | None:
    """Where the tokenizer of an input lies: with it, or still in the folder that it was made from."""
    parents = [workspace.path(record.path) for record in found.manifest.inputs]
    for folder in [found.path, *parents]:
        if carries_tokenizer(folder) and tokenizer_block(folder)["model_sha256"] == block["model_sha256"]:
            return folder
    return None


def _tokenizer_difference(blocks: Sequence[Mapping], folders: Sequence[Path]) -> str:
    """What differs, as far down as the files still on disk show it, else by the fields of the blocks."""
    for first, second in pairwise(folders):
        if found := describe_difference((first, second)):
            return found
    different = [
        text for name, text in FIELD_NAMES.items() if any(block[name] != blocks[0][name] for block in blocks)
    ]
    return "; ".join(different)


def refuse_unclean(
    stage: str, verdict: Verdict, corpus: Manifest, missing: Sequence[Mapping], config_path: str
) -> UpstreamError:
    """The error for a corpus that was not kept clean of the texts that a model is measured on."""
    lines = [f"{stage} cannot start: {verdict}"]
    lines += [f"  missing   {file['path']}   sha256 {file['sha256'][:12]}" for file in missing[:3]]
    profile = profile_of(config_path)
    rebuild = f"python tools/pipeline.py run {profile}" if profile else run_command(stage, config_path)
    fix = f"add them to decontaminate.against of {corpus.config.path}, then: {rebuild}{ALLOW_LINE}"
    return UpstreamError("\n".join(lines), fix=fix, **verdict_fields(verdict, "decontamination"))


def refuse_library(
    stage: str,
    verdict: Verdict,
    found: Input,
    blocks: tuple[Mapping, Mapping],
    config_path: str,
    workspace: Workspace,
) -> UpstreamError:
    """The error for tokenizer files that are unaltered and are read otherwise than when they were written."""
    where = workspace.relative(found.path)
    recorded, now = (shown(block["fingerprint"]) for block in blocks)
    cause = changed_probe(found.path) or "the library reads the same files differently"
    origin = Link(found.path, found.manifest.stage, found.role, 0, verdict, found.manifest)
    producer, path = _origin(origin, config_path, workspace)
    rebuild = f", or: {build_command(producer, path, force=True)}" if producer else ""
    lines = [
        f'{stage} cannot start: input "{found.role}" ({where}) is mismatched',
        f"  recorded  fingerprint {recorded}   {where}/{MANIFEST}",
        f"  found     fingerprint {now}   computed now from the same files",
        f"  differs   {cause}",
    ]
    fix = f"install the library versions of its manifest{rebuild}"
    return UpstreamError("\n".join(lines), fix=fix, **verdict_fields(verdict, found.role))
