"""
Sealing: from a build folder to an artifact, in steps that a crash cannot leave half done (P28).

    outputs synced and hashed -> manifest.json.tmp -> manifest.json -> old folder aside -> new folder into
    place

At each of them a kill leaves either the old artifact, the new one, or a pair of names that `repair` puts
right.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from utils.pipeline.guards import GUARDS, MANIFEST
from utils.pipeline.hashing import hash_files
from utils.pipeline.journal import JOURNAL_FOLDER, sync_file
from utils.pipeline.manifest import Manifest, compute_output_digest, compute_seal, files_in, read_manifest
from utils.pipeline.workspace import Workspace

STATE = "state.json"
TAMPERED = ".tampered"
SCRATCH = (STATE, STATE + ".new", MANIFEST + ".tmp", JOURNAL_FOLDER)  # of a build folder


def partial_of(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def previous_of(output: Path) -> Path:
    return output.with_name(output.name + ".previous")


def read_state(partial: Path) -> dict | None:
    """What an unfinished build says of itself: its key, what that was made of, how it ended."""
    try:
        return json.loads((partial / STATE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def write_state(partial: Path, state: dict) -> None:
    """Replace what an unfinished build says of itself."""
    (partial / (STATE + ".new")).write_text(json.dumps(state), encoding="ascii")
    (partial / (STATE + ".new")).replace(partial / STATE)


def write_manifest(
    folder: Path, fields: dict, workspace: Workspace, scratch: Collection[str] = ()
) -> Manifest:
    """
    Hash what is in `folder` but for `scratch`, write its manifest last, keep a copy in the archive.
    `fields` is all but outputs and digests.
    """
    outputs = _hash_outputs(folder, scratch)
    raw = (
        {"schema_version": 1} | fields | {"outputs": outputs, "output_digest": compute_output_digest(outputs)}
    )
    raw["manifest_sha256"] = compute_seal(raw)
    text = json.dumps(raw, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
    _write_synced(folder / (MANIFEST + ".tmp"), text)
    os.replace(folder / (MANIFEST + ".tmp"), folder / MANIFEST)
    _sync_folder(folder)
    archive = workspace.records / "manifests" / f"{raw['manifest_sha256']}.json"
    archive.parent.mkdir(parents=True, exist_ok=True)
    archive.write_text(text, encoding="ascii")
    return Manifest.from_raw(raw)


def _hash_outputs(folder: Path, scratch: Collection[str]) -> list[dict]:
    paths = sorted(path for path in files_in(folder) if path.split("/")[0] not in scratch)
    for path in paths:
        sync_file(folder / path)
    found = hash_files(folder / path for path in paths)
    rows = [(path, found[folder / path]) for path in paths]
    return [{"path": path, "bytes": row.bytes, "sha256": row.sha256} for path, row in rows]


def remove_scratch(folder: Path) -> None:
    """Drop what only the build needed: its journal and its state."""
    shutil.rmtree(folder / JOURNAL_FOLDER, ignore_errors=True)
    for name in SCRATCH[:-1]:
        (folder / name).unlink(missing_ok=True)


def publish(output: Path, keep_previous_as: str = "") -> None:
    """
    Move the sealed build folder of `output` into place; the old artifact goes, or stays under
    `keep_previous_as`.
    """
    partial, previous = partial_of(output), previous_of(output)
    aside = output.with_name(output.name + keep_previous_as) if keep_previous_as else previous
    if output.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(output, aside)
    os.rename(partial, output)
    _sync_folder(output.parent)
    if previous.exists():
        shutil.rmtree(previous)


def repair(output: Path, was_tampered: Callable[[], bool]) -> str:
    """
    Finish what a crash between the renames left: a sealed build moves into place, a lone old artifact moves
    back.

    Returns what was done, or "". `was_tampered` is asked when a sealed build would replace what is there.
    """
    partial, previous = partial_of(output), previous_of(output)
    done = ""
    if partial.is_dir() and not GUARDS["G17"](partial) and read_manifest(partial)[1].good:
        remove_scratch(partial)
        publish(output, TAMPERED if output.exists() and was_tampered() else "")
        done = "finished an interrupted rename: the new build is in place"
    elif not output.exists() and previous.is_dir():
        os.rename(previous, output)
        done = "finished an interrupted rename: the old build is back in place"
    if output.exists() and previous.is_dir():
        shutil.rmtree(previous)
    return done


def _write_synced(path: Path, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
