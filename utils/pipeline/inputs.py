"""
Inputs as a stage sees them: folders that were proven, files that are listed, readers that check what they
hand out.

    corpus = stage.input("corpus")
    with corpus.open("train/00000.jsonl.zst") as file:
        ...
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from utils.pipeline.errors import UpstreamError
from utils.pipeline.external import ExternalSource
from utils.pipeline.hashing import open_verified
from utils.pipeline.manifest import Manifest
from utils.pipeline.workspace import Workspace


@dataclass(frozen=True)
class Input:
    """One verified artifact; only files that its manifest lists can be opened (P11)."""

    role: str
    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a listed file; UpstreamError if the manifest does not list it."""
        self._sha256(name)
        return self.path / name

    def files(self, prefix: str = "") -> list[Path]:
        """Paths of all listed files below `prefix`, in order."""
        return [self.path / output.path for output in self.manifest.outputs if output.path.startswith(prefix)]

    def lists(self, name: str) -> bool:
        """Whether the manifest lists this file."""
        return any(output.path == name for output in self.manifest.outputs)

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """One sequential read of a listed file that fails when the bytes are not the listed ones (P22)."""
        return open_verified(self.path / name, self._sha256(name))

    def _sha256(self, name: str) -> str:
        for output in self.manifest.outputs:
            if output.path == name:
                return output.sha256
        raise UpstreamError(f'input "{self.role}" ({self.path.name}) has no file {name}')


@dataclass
class Source:
    """External files of a stage, frozen at its start; the stage counts what it read and kept."""

    external: ExternalSource
    record: dict
    workspace: Workspace = field(repr=False)

    @property
    def files(self) -> list[Path]:
        return list(self.external.files)

    def open(self, path: Path) -> AbstractContextManager[BinaryIO]:
        """One sequential read that fails when the file is not what it was when the stage started."""
        relative = self.workspace.relative(path)
        sha256 = next(row["sha256"] for row in self.record["files"] if row["path"] == relative)
        return open_verified(path, sha256)

    def digest_now(self) -> str:
        """The digest of the same files as they are now, or what became of them."""
        try:
            return self.external.record(self.workspace)["digest"]
        except OSError as error:
            return f"{self.workspace.relative(error.filename)}: {error.strerror}"

    def count(self, rows_read: int, rows_kept: int) -> None:
        self.record.update(rows_read=rows_read, rows_kept=rows_kept)
