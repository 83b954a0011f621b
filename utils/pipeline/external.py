"""
External sources: the data at the upper end of the chain, which no stage wrote.

    source = ExternalSource.local("books", ["data/raw/corpus/*.txt"], workspace)
    source.record(workspace)["digest"]        # enters the key of the stage that reads it
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import DigestCache, digest, hash_files
from utils.pipeline.workspace import Workspace


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

    @classmethod
    def local(cls, name: str, patterns: list[str], workspace: Workspace) -> "ExternalSource":
        """
        Files matching `patterns` (relative to the root, `**` allowed), in byte order. ConfigError
        when one matches nothing.
        """
        files: set[Path] = set()
        for pattern in patterns:
            found = [Path(match) for match in glob.glob(str(workspace.path(pattern)), recursive=True)]
            found = [path for path in found if path.is_file() and not path.name.startswith(".")]
            if not found:
                raise ConfigError(
                    f'source "{name}": no file matches {pattern}', fix=f"put files there: {pattern}"
                )
            files.update(found)
        ordered = sorted(files, key=lambda path: os.fsencode(path))
        return cls(name, "local", ", ".join(patterns), tuple(ordered))

    @classmethod
    def of_parts(cls, name: str, kind: str, id: str, parts: list) -> "ExternalSource":
        """A source without files of its own; `parts` is canonical JSON that changes when the source does."""
        return cls(name, kind, id, parts=tuple(parts))

    def record(self, workspace: Workspace, cache: DigestCache | None = None) -> dict:
        """The entry for `manifest.sources`, hashed now: `digest` enters the key."""
        hashes = hash_files(self.files, cache)
        rows = [[workspace.relative(path), hashes[path].bytes, hashes[path].sha256] for path in self.files]
        files = [{"path": path, "bytes": size, "sha256": sha256} for path, size, sha256 in rows]
        revision = {"requested_revision": "", "resolved_revision": ""}
        source_digest = digest("source", rows if self.files else list(self.parts))
        identity = {"name": self.name, "kind": self.kind, "id": self.id}
        return identity | revision | {"files": files, "digest": source_digest, "rows_read": 0, "rows_kept": 0}
