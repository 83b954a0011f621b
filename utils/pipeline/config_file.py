"""
Config files: strict JSON with comments (keys that start with `_`), built on other files with `extends`.

    files = []
    document = read_merged(workspace.path("config/demo/40_pack_dataset.json"), workspace, [], files)
"""

import json
from pathlib import Path
from typing import Any

from utils.pipeline.errors import ConfigError
from utils.pipeline.workspace import Workspace


def read_merged(path: Path, workspace: Workspace, seen: list[Path], files: list[bytes]) -> dict:
    """
    The object in a config file on top of the files that it extends, whose bytes are appended to `files`.
    ConfigError for a file that cannot be read, is no JSON object, or extends itself.
    """
    label = workspace.relative(path)
    if path.resolve() in seen:
        chain = " -> ".join(workspace.relative(step) for step in [*seen, path.resolve()])
        raise ConfigError(f"{label}: extends itself: {chain}")
    try:
        data = path.read_bytes()
    except OSError as error:
        where = f'"extends" in {workspace.relative(seen[-1])}' if seen else "the path after --config"
        raise ConfigError(f"{label}: cannot be read ({error.strerror})", fix=f"check {where}") from None
    files.append(data)
    document = _strip_comments(_parse(data, label))
    parent = document.pop("extends", "")
    if not parent:
        return document
    base = read_merged(path.parent / parent, workspace, [*seen, path.resolve()], files)
    return merge(base, document)


def _parse(data: bytes, label: str) -> dict:
    try:
        document = json.loads(data, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{label}: not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{label}: a config is a JSON object, this is a {type(document).__name__}")
    return document


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    names = [name for name, _ in pairs]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f'key "{doubled[0]}" occurs twice')
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _strip_comments(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strip_comments(item) for key, item in value.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [_strip_comments(item) for item in value]
    return value


def merge(base: dict, over: dict) -> dict:
    """`over` on top of `base`: objects deeply, everything else replaced."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged
