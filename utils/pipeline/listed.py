"""
The files of an artifact against the list in its manifest, cheapest questions first (P19): is one missing, is
one no plain file, is there one too many, has one another size, has one another digest. So a truncated file
costs no hashing.

    judge_files(folder, manifest, cache=None)
"""

import os
from pathlib import Path

from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import DigestCache, hash_files
from utils.pipeline.manifest import Manifest, files_in
from utils.pipeline.verdict import OK, Verdict


def judge_files(folder: Path, manifest: Manifest, cache: DigestCache | None) -> Verdict:
    """
    Whether the files below `folder` are those that its manifest lists; `cache` remembers the digests of files
    that have not changed since.
    """
    listed = {output.path: output for output in manifest.outputs}
    present = list(files_in(folder))
    missing = [path for path in listed if not os.path.lexists(folder / path)]
    irregular = [path for path in present if not _is_regular(folder, path)]
    early = (
        GUARDS["G4"](missing, len(listed))
        or GUARDS["G9"](irregular)
        or GUARDS["G7"]([path for path in present if path not in listed])
    )
    if early:
        return early
    sizes = [(path, output.bytes, (folder / path).stat().st_size) for path, output in listed.items()]
    if wrong := GUARDS["G5"](sizes):
        return wrong
    found = hash_files([folder / path for path in listed], cache)
    rows = [(path, output.sha256, found[folder / path].sha256) for path, output in listed.items()]
    return GUARDS["G6"](rows) or OK


def _is_regular(folder: Path, path: str) -> bool:
    """A plain file, not a link, whose real place is inside the folder."""
    place = folder / path
    return place.is_file() and not place.is_symlink() and place.resolve().is_relative_to(folder.resolve())
