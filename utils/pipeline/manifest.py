"""
manifest.json: what an artifact is, what it was made from, and the seal over both.

No manifest, no artifact. The file is written last, by `utils/pipeline/seal.py`, and read here; whether what
it says still holds is asked in `utils/pipeline/verify.py`.

    manifest, problem = read_manifest(Path("data/demo/packed"))
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, ValidationError

from utils.pipeline.guards import GUARDS, MANIFEST
from utils.pipeline.hashing import digest
from utils.pipeline.verdict import OK, Verdict

MAX_MANIFEST_BYTES = 64 << 20
MAX_DEPTH = 64
LOG_FOLDER, CHECKPOINT_FOLDER = "log", "checkpoints"
IGNORED_FOLDERS = (LOG_FOLDER, CHECKPOINT_FOLDER)
IGNORED_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
StageName = Annotated[str, StringConstraints(pattern=r"^\d{2,3}_[a-z_]+$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ConfigRecord(_Part):
    path: str
    sha256: Hex
    semantic: dict[str, Any]
    resolved: dict[str, Any]


class InputRecord(_Part):
    role: str
    path: str
    stage: StageName
    run_id: str
    output_digest: Hex
    manifest_sha256: Hex


class OutputRecord(_Part):
    path: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Hex


class SourceRecord(_Part):
    name: str
    kind: str
    id: str
    requested_revision: str
    resolved_revision: str
    files: list[OutputRecord]
    digest: Hex
    rows_read: int
    rows_kept: int


class WaiverRecord(_Part):
    stage: str
    role: str
    verdict: str
    component: str
    before: str
    after: str
    reason: str
    at: str


class CheckpointRecord(_Part):
    step: int
    parent: str
    tokens_seen: int
    cursor: dict[str, Any]
    best: dict[str, Any]


class CodeRecord(_Part):
    git_commit: str
    dirty: bool
    python: str
    digest: Hex
    modules: dict[str, Hex]


class RunRecord(_Part):
    id: str
    started: str
    finished: str
    seconds: float
    rates: dict[str, Any]
    argv: list[str]
    host_class: str


class Manifest(_Part):
    """One manifest as read; `raw` is the JSON object itself, over which the seal is taken."""

    schema_version: int
    stage: StageName
    stage_version: Annotated[int, Field(ge=1)]
    determinism: Literal["bitwise", "seeded", "stochastic"]
    key: Hex
    output_digest: Hex
    config: ConfigRecord
    inputs: list[InputRecord]
    tokenizer: dict[str, Any]
    sources: list[SourceRecord]
    outputs: list[OutputRecord]
    metrics: dict[str, Any]
    code: CodeRecord
    environment: dict[str, str]
    mismatches_allowed: list[WaiverRecord]
    checkpoint: CheckpointRecord | None = None
    run: RunRecord
    manifest_sha256: Hex

    _raw: dict = PrivateAttr(default_factory=dict)

    @classmethod
    def from_raw(cls, raw: dict) -> "Manifest":
        """Validate a JSON object; pydantic's ValidationError if it is not a manifest."""
        manifest = cls.model_validate(raw)
        manifest._raw = raw
        return manifest

    @property
    def raw(self) -> dict:
        return self._raw

    @property
    def semantic(self) -> dict:
        """The config view that entered the key."""
        return self.config.semantic

    @property
    def waivers(self) -> list[dict]:
        return [waiver.model_dump() for waiver in self.mismatches_allowed]

    @property
    def input_digests(self) -> dict[str, str]:
        return {record.role: record.output_digest for record in self.inputs}

    @property
    def source_digests(self) -> dict[str, str]:
        return {record.name: record.digest for record in self.sources}

    @property
    def total_bytes(self) -> int:
        return sum(output.bytes for output in self.outputs)


def compute_key(
    stage: str, stage_version: int, semantic: dict, inputs: Mapping[str, str], sources: Mapping[str, str]
) -> str:
    """Would I get this now? (P4) `inputs` and `sources` map roles and names to digests."""
    pairs = [*inputs.items(), *((f"source:{name}", found) for name, found in sources.items())]
    facts = {"stage": stage, "stage_version": stage_version, "config": semantic}
    return digest("key", facts | {"inputs": sorted([role, found] for role, found in pairs)})


def compute_output_digest(outputs: Iterable[Mapping]) -> str:
    """What the artifact is (P3)."""
    rows = [[output["path"], output["bytes"], output["sha256"]] for output in outputs]
    return digest("output", sorted(rows))


def compute_seal(raw: Mapping) -> str:
    """Digest of the whole manifest but the seal itself and `run` (P5)."""
    return digest(
        "manifest", {name: value for name, value in raw.items() if name not in ("manifest_sha256", "run")}
    )


def read_manifest(folder: Path) -> tuple[Manifest | None, Verdict]:
    """
    The manifest of a folder that has one, or None and what is wrong with it: unreadable, newer, broken
    seal, unsafe path.
    """
    raw, problem = _parse(folder / MANIFEST)
    if raw is None:
        return None, GUARDS["G1"](problem, "", "") or OK
    if newer := GUARDS["G19"](raw.get("schema_version")):
        return None, newer
    try:
        manifest = Manifest.from_raw(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return None, GUARDS["G1"](f"{where}: {first['msg'].lower()}", "", "") or OK
    checks = (
        GUARDS["G8"]([output.path for output in manifest.outputs])
        or GUARDS["G1"]("", manifest.manifest_sha256, compute_seal(raw))
        or GUARDS["G2"](manifest.output_digest, compute_output_digest(raw["outputs"]))
        or GUARDS["G3"](manifest.key, _stored_key(manifest))
    )
    return manifest, checks or OK


def _stored_key(manifest: Manifest) -> str:
    facts = manifest.stage, manifest.stage_version, manifest.semantic
    return compute_key(*facts, manifest.input_digests, manifest.source_digests)


def _parse(path: Path) -> tuple[dict | None, str]:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return None, f"larger than {MAX_MANIFEST_BYTES >> 20} MiB"
        raw = json.loads(path.read_bytes(), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return None, f"not valid JSON: {error}"
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if not isinstance(raw, dict):
        return None, "not valid JSON: not an object"
    return (None, f"more than {MAX_DEPTH} levels deep") if _deeper_than(raw, MAX_DEPTH) else (raw, "")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a key occurs twice")
    return document


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _deeper_than(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_deeper_than(item, levels - 1) for item in inner))


def files_in(folder: Path) -> Iterator[str]:
    """
    Relative POSIX paths of all that counts as output: every file (links included, not followed) outside
    `log/` and `checkpoints/`, without the manifest and the litter of desktops (P11).
    """
    for place, folders, files in os.walk(folder, followlinks=False):
        here = Path(place).relative_to(folder)
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        top = here == Path()
        folders[:] = sorted(
            name for name in folders if name not in linked and not (top and name in IGNORED_FOLDERS)
        )
        for name in sorted([*files, *linked]):
            if name not in IGNORED_FILES and not (top and name == MANIFEST):
                yield (here / name).as_posix()
