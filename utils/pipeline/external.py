"""
External sources: the data at the upper end of the chain, which no stage wrote.

    source = ExternalSource.local("books", ["data/raw/corpus/*.txt"], workspace)
    source.record(workspace)["digest"]        # enters the key of the stage that reads it
"""

import glob
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import DigestCache, digest, hash_files
from utils.pipeline.workspace import Workspace

EVALUATION = "evaluation"


@dataclass(frozen=True)
class ExternalSource:
    """
    Data from outside the chain: files below the root, or `parts` that say what stands for it (a revision,
    versions).
    """

    name: str
    kind: str
    id: str
    files: tuple[Path, ...] = ()
    parts: tuple = ()
    requested_revision: str = ""
    resolved_revision: str = ""

    @classmethod
    def local(
        cls, name: str, patterns: list[str], workspace: Workspace, supported: str = ""
    ) -> "ExternalSource":
        """
        Files matching `patterns` (relative to the root, `**` allowed), in byte order. ConfigError
        when one matches nothing, naming the `supported` kinds of files where they are given.
        """
        files: set[Path] = set()
        for pattern in patterns:
            found = [Path(match) for match in glob.glob(str(workspace.path(pattern)), recursive=True)]
            found = [path for path in found if path.is_file() and not path.name.startswith(".")]
            if not found:
                fix = f"put files there: {pattern}" + (f"; supported are {supported}" if supported else "")
                raise ConfigError(f'source "{name}": no file matches {pattern}', fix=fix)
            files.update(found)
        ordered = sorted(files, key=lambda path: os.fsencode(path))
        return cls(name, "local", ", ".join(patterns), tuple(ordered))

    @classmethod
    def evaluation_set(
        cls, name: str, patterns: list[str], workspace: Workspace, supported: str = ""
    ) -> "ExternalSource":
        """Files of an evaluation set that a corpus is kept clean of, told from what it is made of."""
        found = cls.local(f"{EVALUATION}.{name}", patterns, workspace, supported)
        return replace(found, kind=EVALUATION)

    @classmethod
    def of_parts(cls, name: str, kind: str, id: str, parts: list) -> "ExternalSource":
        """A source without files of its own; `parts` is canonical JSON that changes when the source does."""
        return cls(name, kind, id, parts=tuple(parts))

    @classmethod
    def of_hub(cls, name: str, id: str, commit: str, parts: list) -> "ExternalSource":
        """Something of the Hugging Face Hub at a commit; `parts` are the source digest's (P24)."""
        return cls(name, "hub", id, (), tuple(parts), commit, commit)

    @classmethod
    def of_dataset(cls, name: str, id: str, subset: str, split: str, revision: str) -> "ExternalSource":
        """A dataset of the Hub; a branch or tag is floating until `at` says which commit it stands for."""
        label = ", ".join(part for part in (id, subset, split) if part)
        source = cls(name, "hub", label, (), (id, subset, split), revision)
        return source.at(revision) if re.fullmatch("[0-9a-f]{40}", revision) else source

    @property
    def is_floating(self) -> bool:
        """Whether it is not known yet which commit a branch or tag stands for."""
        return self.kind == "hub" and not self.resolved_revision

    def at(self, commit: str) -> "ExternalSource":
        """The dataset at a commit; the source digest is over id, subset, split and commit (P24)."""
        return replace(self, parts=(*self.parts[:3], commit), resolved_revision=commit)

    def record(self, workspace: Workspace, cache: DigestCache | None = None) -> dict:
        """The entry for `manifest.sources`, hashed now: `digest` enters the key."""
        hashes = hash_files(self.files, cache)
        rows = [[workspace.relative(path), hashes[path].bytes, hashes[path].sha256] for path in self.files]
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, size, sha256 in rows]
        revision = {
            "requested_revision": self.requested_revision,
            "resolved_revision": self.resolved_revision,
        }
        source_digest = digest("source", rows if self.files else list(self.parts))
        identity = {"name": self.name, "kind": self.kind, "id": self.id}
        return identity | revision | {"files": files, "digest": source_digest, "rows_read": 0, "rows_kept": 0}
