"""
Under what a result was made: code, library versions, class of machine. Recorded in every manifest, never in a
key.

A commit to the README must not cost a day of training, so code is compared as syntax trees without
docstrings, comments and positions, and a difference is a note, not a refusal (P37).
"""

import ast
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from utils.pipeline.hashing import digest, sha256_hex, usable_cores
from utils.pipeline.manifest import CodeRecord

ROOMS = ("utils", "kernels", "scripts", "tools")


def code_record(script: Path, root: Path) -> dict:
    """
    The `code` block for a stage script: git state and the digest of every project module that it can
    import.
    """
    modules = code_modules(script, root)
    return {
        "git_commit": _git(root, "rev-parse", "HEAD") or "0" * 40,
        "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        "python": _python_minor(),
        "digest": digest("code", modules),
        "modules": modules,
    }


def code_modules(script: Path, root: Path) -> dict[str, str]:
    """Name -> digest of the script and of every project module that it can import."""
    return dict(sorted(_closure(script, root).items()))


def changed_modules(before: CodeRecord, script: Path, root: Path) -> list[str]:
    """
    Modules whose syntax tree is not the recorded one; none under another Python minor version, because
    trees then are not comparable.
    """
    if before.python != _python_minor() or not script.is_file():
        return []
    now = code_modules(script, root)
    names = {*before.modules, *now}
    return sorted(name for name in names if before.modules.get(name) != now.get(name))


def _python_minor() -> str:
    return ".".join(platform.python_version_tuple()[:2])


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _closure(script: Path, root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        name = _module_name(path, root)
        if name in found or not path.is_file():
            continue
        found[name], imports = _read_module(path, path.stat().st_mtime_ns)
        waiting += [module for imported in imports for module in _module_files(imported, root)]
    return found


def _module_name(path: Path, root: Path) -> str:
    inside = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return ".".join(inside.with_suffix("").parts)


def _module_files(name: str, root: Path) -> Iterator[Path]:
    if name.split(".")[0] in ROOMS:
        candidate = root.joinpath(*name.split("."))
        yield from (
            path for path in (candidate.with_suffix(".py"), candidate / "__init__.py") if path.is_file()
        )


@lru_cache(maxsize=1024)
def _read_module(path: Path, _mtime_ns: int) -> tuple[str, tuple[str, ...]]:
    """SHA-256 of the bare syntax tree, and the names of everything it imports."""
    tree = ast.parse(path.read_bytes())
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        _drop_docstring(node)
    return sha256_hex(ast.dump(tree).encode()), tuple(imports)


def _drop_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and body:
        node.body = [item for item in body if not _is_text(item)]


def _is_text(item: ast.stmt) -> bool:
    return (
        isinstance(item, ast.Expr)
        and isinstance(item.value, ast.Constant)
        and isinstance(item.value.value, str)
    )


def environment_record(root: Path) -> dict[str, str]:
    """
    Python, platform and the version of every distribution in requirements.txt; `device` is refined by
    training stages.
    """
    versions = {name: _version(name) for name in required_distributions(root)}
    machine = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}".lower(),
    }
    return machine | versions | {"device": "cuda" if shutil.which("nvidia-smi") else "cpu"}


def required_distributions(root: Path) -> list[str]:
    """Names in requirements.txt, in file order; [] when there is no such file."""
    path = root / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [re.match(r"[A-Za-z0-9_.-]+", line.strip()) for line in lines if not line.startswith(("#", "-"))]
    return [match[0] for match in names if match]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def host_class() -> str:
    """The machine without its name: `linux x86_64, 2 cores, 24 GiB, no GPU`."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = "GPU" if shutil.which("nvidia-smi") else "no GPU"
    return (
        f"{platform.system().lower()} {platform.machine()}, {usable_cores()} cores, {memory:.0f} GiB, {gpu}"
    )
