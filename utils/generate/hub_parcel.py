"""
What may leave the house: the files that a manifest lists, after they were proven and searched for secrets.

    parcel = pack(Path("data/demo/generated"), REPOSITORY)
    parcel.kind, parcel.files, parcel.left_out        # "dataset", [SentFile(...), ...], ["log/"]
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from utils.generate.hub_secrets import find_secrets, opened_as_plain
from utils.generate.keys import read_env_file
from utils.pipeline.errors import ConfigError, StageError, UpstreamError
from utils.pipeline.guards import MANIFEST
from utils.pipeline.hashing import hash_files
from utils.pipeline.lineage import archived_manifest, lineage_of
from utils.pipeline.manifest import Manifest
from utils.pipeline.refusal import build_command
from utils.pipeline.verify import Verifier
from utils.pipeline.workspace import Workspace

Kind = Literal["dataset", "model"]
MODEL_STAGES = ("30_", "50_", "70_", "90_", "110_", "120_")
LISTED_FINDINGS = 10


@dataclass(frozen=True)
class SentFile:
    """One file below the folder, with its size in bytes and its SHA-256; `rows` of JSON lines, else 0."""

    path: str
    bytes: int
    sha256: str
    rows: int = 0


@dataclass(frozen=True)
class Parcel:
    """A proven folder, ready to be sent."""

    folder: Path
    kind: Kind
    manifest: Manifest
    lineage: list[dict]
    files: list[SentFile]
    left_out: list[str]
    keys: frozenset[str]

    @property
    def total_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def text(self, name: str) -> str:
        """A listed text file, "" when the artifact has none of this name."""
        listed = any(file.path == name for file in self.files)
        return (self.folder / name).read_text(encoding="utf-8") if listed else ""


def pack(folder: Path, workspace: Workspace, kind: Kind | None = None, keys: Iterable[str] = ()) -> Parcel:
    """
    Prove and search a folder. UpstreamError (exit 3) if it is not what its manifest says, StageError for a
    secret. `kind` None takes what its stage makes; `keys` are texts that may occur nowhere.
    """
    folder = workspace.path(folder.absolute())
    if not folder.is_dir():
        raise ConfigError(f"{workspace.relative(folder)} is not a folder", fix="name an artifact folder")
    manifest, verdict = Verifier(workspace).artifact(folder)
    if manifest is None or not verdict.good:
        raise _not_proven(workspace.relative(folder), str(verdict), manifest)
    paths = [MANIFEST, *sorted(output.path for output in manifest.outputs)]
    digests = hash_files([folder / MANIFEST])
    listed = {output.path: (output.bytes, output.sha256) for output in manifest.outputs}
    listed[MANIFEST] = (digests[folder / MANIFEST].bytes, digests[folder / MANIFEST].sha256)
    known = frozenset([*keys, *_values_of(key_variables(_ancestors(manifest, workspace)), workspace)])
    _refuse_secrets(folder, paths, known)
    made = "model" if manifest.stage.startswith(MODEL_STAGES) else "dataset"
    return Parcel(
        folder=folder,
        kind=kind or made,
        manifest=manifest,
        lineage=lineage_of(folder, workspace),
        files=[SentFile(path, *listed[path], rows=count_rows(folder / path)) for path in paths],
        left_out=_left_out(folder, listed),
        keys=known,
    )


def _not_proven(relative: str, verdict: str, manifest: Manifest | None) -> UpstreamError:
    fix = "take out what the manifest does not list, restore what it does, or build the folder again"
    if manifest is not None:
        fix += f": {build_command(manifest.stage, manifest.config.path, force=True)}"
    elif verdict.startswith("incomplete"):
        fix = "finish it first: only an artifact with a manifest.json that holds is uploaded"
    return UpstreamError(f"{relative} is not uploaded: {verdict}", fix=fix, verdict=verdict)


def _ancestors(manifest: Manifest, workspace: Workspace) -> Iterator[Manifest]:
    """The manifests of the chain, as far as they are on disk or in the archive."""
    verifier, waiting, seen = Verifier(workspace), [manifest], set()
    while waiting:
        current = waiting.pop()
        yield current
        for record in current.inputs:
            found = archived_manifest(record.manifest_sha256, workspace)
            found = found or verifier.manifest(workspace.path(record.path))
            if found is not None and found.manifest_sha256 not in seen:
                seen.add(found.manifest_sha256)
                waiting.append(found)


def key_variables(manifests: Iterable[Manifest]) -> set[str]:
    """The environment variables that hold a key, by the configs of the chain."""
    return {name for manifest in manifests for name in _named_keys(manifest.config.resolved)}


def _named_keys(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "api_key_env" and isinstance(inner, str) and inner:
                yield inner
            yield from _named_keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named_keys(inner)


def _values_of(names: set[str], workspace: Workspace) -> list[str]:
    """What the named variables hold, in the environment or in `.env`."""
    known = {**read_env_file(workspace.root / ".env"), **os.environ} if names else {}
    return [known[name] for name in names if known.get(name)]


def _refuse_secrets(folder: Path, paths: Iterable[str], keys: frozenset[str]) -> None:
    found = [
        f"{path}, line {finding.line:,}: {finding.kind}"
        for path in paths
        for finding in find_secrets(folder / path, keys)
    ]
    if found:
        more = f"\n  and {len(found) - LISTED_FINDINGS} more" if len(found) > LISTED_FINDINGS else ""
        shown = "\n  ".join(found[:LISTED_FINDINGS])
        raise StageError(
            f"nothing was uploaded: what looks like a secret is in\n  {shown}{more}",
            fix="revoke it if it is one, take it out of the source, and build the folder again",
        )


def _left_out(folder: Path, listed: Mapping[str, object]) -> list[str]:
    """What lies in the folder and stays here: logs, checkpoints, the litter of desktops."""
    names = {path.split("/")[0] for path in listed}
    return sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir() if path.name not in names
    )


def count_rows(path: Path) -> int:
    """Lines of a .jsonl file, plain, .gz or .zst; 0 for any other file."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if not name.endswith(".jsonl"):
        return 0
    with opened_as_plain(path) as stream:
        return sum(1 for line in stream if line.strip())
