"""
Looking back: why an artifact is stale, whether a chain or a lone GGUF proves itself, which builds were
abandoned.

    for line in explain(Path("checkpoints/demo/base"), REPOSITORY):
        print(line)
"""

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.pipeline.environment import changed_modules
from utils.pipeline.lineage import GGUFProof, archived_manifest, prove_gguf
from utils.pipeline.manifest import Manifest
from utils.pipeline.plan import Node, with_inherited
from utils.pipeline.refusal import build_command, run_command
from utils.pipeline.seal import partial_of, read_state
from utils.pipeline.verdict import Verdict, shown, worst
from utils.pipeline.verify import Link, Verifier, apply_waivers, changes_since, display_roles, stored_currency
from utils.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Row:
    """One line of `verify`: a file or an artifact with its verdict."""

    name: str
    depth: int
    verdict: Verdict
    note: str = ""
    checked: bool = True  # False for an ancestor that is not on disk

    def __str__(self) -> str:
        return f"{self.verdict}   {self.note}".rstrip() if self.checked else self.note

    def as_dict(self) -> dict:
        return asdict(self) | {"verdict": str(self.verdict)}


@dataclass(frozen=True)
class Report:
    """All rows of one verification, and how much was hashed for it."""

    rows: list[Row]
    files: int
    bytes: int
    seconds: float


def verify_chain_rows(folder: Path, verifier: Verifier) -> Report:
    """A folder and everything below it."""
    started = time.time()
    links = verifier.chain(folder)
    return _report([_row(link, links, verifier.workspace) for link in links], links, 0, 0, started)


def verify_gguf_rows(path: Path, verifier: Verifier) -> Report:
    """A GGUF by its own header, then the folder that lists it, or the folders that its lineage names."""
    started = time.time()
    verdict, proof = prove_gguf(path)
    folder = path.parent
    links = verifier.chain(folder) if verifier.manifest(folder) else []
    if links:
        listed = [output.path for output in links[0].manifest.outputs]
        verdict = worst([verdict, links[0].verdict if path.name in listed else verdict])
    elif proof and verdict.good:
        links, verdict = _links_of_lineage(proof, verifier)
    note = _gguf_note(proof) if proof else ""
    rows = [Row(path.name, 0, verdict, note)]
    rows += [_row(link, links, verifier.workspace, deeper=1) for link in links]
    return _report(rows, links, 1, proof.bytes if proof else 0, started)


def _gguf_note(proof: GGUFProof) -> str:
    size, tensors = f"{proof.bytes:,} bytes", proof.tensors_sha256[:12]
    return f"{size}, tensors {tensors}, lineage of {len(proof.lineage)} artifacts"


def _links_of_lineage(proof: GGUFProof, verifier: Verifier) -> tuple[list[Link], Verdict]:
    """
    The folders that a lone file names, as far as they are on disk, and whether its model is still the one
    there.
    """
    model = proof.lineage[0]
    folder = verifier.workspace.path(model["path"])
    manifest = verifier.manifest(folder)
    if manifest is None:
        return [], Verdict("ok", "its ancestors are not on disk, not checked")
    if manifest.output_digest != model["output_digest"]:
        change = ("input.model", model["output_digest"], manifest.output_digest)
        return verifier.chain(folder), Verdict.changed("stale", [change])
    return verifier.chain(folder), Verdict("ok")


def _row(link: Link, links: list[Link], workspace: Workspace, deeper: int = 0) -> Row:
    path = workspace.relative(link.folder)
    if not link.on_disk:
        note = f"not on disk, not checked (archived manifest {link.archived[:12]})"
        return Row(link.stage, link.depth + deeper, link.verdict, note, checked=False)
    waivers = [waiver for other in links if other.manifest for waiver in other.manifest.waivers]
    verdict = apply_waivers(link, waivers).verdict
    verdict = with_inherited(verdict, link.manifest) if link.manifest else verdict
    return Row(link.stage or path, link.depth + deeper, verdict, path)


def _report(rows: list[Row], links: list[Link], files: int, size: int, started: float) -> Report:
    manifests = [link.manifest for link in links if link.manifest]
    files += sum(len(manifest.outputs) for manifest in manifests)
    size += sum(manifest.total_bytes for manifest in manifests)
    return Report(rows, files, size, time.time() - started)


def explain(folder: Path, workspace: Workspace) -> Iterable[str]:
    """The verdict on an artifact, what became of each of its inputs, and the command that mends it."""
    verifier = Verifier(workspace, "cached")
    links = verifier.chain(folder)
    own = links[0]
    if own.manifest is None:
        yield f"{workspace.relative(folder)}  {own.verdict}"
        return
    manifest = own.manifest
    verdict = with_inherited(apply_waivers(own, manifest.waivers).verdict, manifest)
    yield f"{manifest.stage}  {manifest.output_digest[:12]}  {verdict}"
    names = display_roles({record.role for record in manifest.inputs})
    rows = [(names[record.role], f"{record.path} {_became(record, verifier)}") for record in manifest.inputs]
    rows += [("source", f"{one.name}: {one.id}, {len(one.files)} files") for one in manifest.sources]
    name, text = rows.pop() if rows else ("inputs", "none")
    rows.append((name, f"{text}; code: {_code_line(manifest, workspace)}"))
    yield from (f"  {name:<10} {text}" for name, text in rows)
    for waiver in manifest.waivers:
        what = f"{waiver['verdict']} {waiver['component']} of {waiver['stage']}"
        yield f"  {'allowed':<10} {what}: {waiver['reason']}"
    if not verdict.good:
        tampered = verdict.kind == "tampered"
        command = build_command(manifest.stage, manifest.config.path, force=True) if tampered else ""
        yield f"  {'fix':<10} {command or run_command(manifest.stage, manifest.config.path)}"


def _became(record: object, verifier: Verifier) -> str:
    """What happened to an input since it was read."""
    now = verifier.manifest(verifier.workspace.path(record.path))
    if now is None:
        return "is not on disk"
    if now.output_digest == record.output_digest:
        return "unchanged" if now.run.id == record.run_id else "was rebuilt to the same bytes"
    before = archived_manifest(record.manifest_sha256, verifier.workspace)
    if before is None:
        return f"was rebuilt after this: {shown(record.output_digest)} -> {shown(now.output_digest)}"
    changes = changes_since(stored_currency(before), stored_currency(now))
    told = ", ".join(f"{name} {shown(old)} -> {shown(new)}" for name, old, new in changes[:3])
    return f"was rebuilt after this: {told or 'same settings, other bytes'}"


def _code_line(manifest: Manifest, workspace: Workspace) -> str:
    script = workspace.root / "scripts" / f"{manifest.stage}.py"
    if not script.is_file():
        return "no script here to compare with"
    changed = changed_modules(manifest.code, script, workspace.root)
    return f"changed {', '.join(changed)}" if changed else "same modules"


@dataclass(frozen=True)
class Abandoned:
    """A build folder that nobody will continue."""

    folder: Path
    bytes: int
    note: str


def abandoned_builds(nodes: Iterable[Node], verifier: Verifier) -> list[Abandoned]:
    """Build folders of a profile whose key is not the one that their stage would build now."""
    found = []
    for node in nodes:
        partial = partial_of(node.output)
        if not partial.is_dir():
            continue
        key = (read_state(partial) or {"key": ""})["key"]
        current = verifier.current(node.loaded).key(node.stage)
        if key != current:
            size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
            found.append(Abandoned(partial, size, f"key {shown(key) or 'unknown'}, current {current[:12]}"))
    return found
