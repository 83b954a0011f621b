"""
Docstrings of installed Python code: real English that needs no network.

One document per module: the docstrings of module, classes and functions in source order. The files differ
between machines, so the source is identified by the Python version and the RECORD of each distribution
(utils/config/corpus.py).

    >>> files = installed_files(["json"])                # standard library first, then distributions, by path
    >>> docstrings_of(Path(json.__file__).read_bytes())
    'JSON (JavaScript Object Notation) <https://json.org> is a subset of ...'
"""

import ast
import csv
import importlib.metadata
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from utils.corpus.readers import SourceFile

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def installed_files(packages: list[str]) -> list[SourceFile]:
    """Return the .py files of these top-level packages ([] = all), in an order that depends on names only."""
    found = [("", relative, path) for relative, path in _standard_library(packages)]
    if not packages or not set(packages) <= sys.stdlib_module_names:
        found += _distributions(packages)
    return [
        SourceFile(relative, partial(open, path, "rb"))
        for _, relative, path in sorted(found)
        if path.is_file()
    ]


def _standard_library(packages: list[str]) -> Iterator[tuple[str, Path]]:
    standard = Path(sysconfig.get_paths()["stdlib"])
    for top in sorted(standard.iterdir()):
        if top.name in ("site-packages", "dist-packages") or (packages and top.stem not in packages):
            continue
        for path in [top] if top.suffix == ".py" else top.rglob("*.py"):
            yield path.relative_to(standard).as_posix(), path


def _distributions(packages: list[str]) -> Iterator[tuple[str, str, Path]]:
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]  # parsed anew whenever it is asked for
        # read here, because Distribution.files looks for every file of any kind on the disk
        record = csv.reader((distribution.read_text("RECORD") or "").splitlines())
        for relative in (row[0] for row in record if row and row[0].endswith(".py")):
            top_level = relative.split("/")[0].removesuffix(".py")
            if top_level != ".." and (not packages or top_level in packages):
                place = Path(str(distribution.locate_file(relative)))
                yield name, relative, place


def docstrings_of(code: bytes) -> str:
    """
    Return the docstrings of a module, in source order, a blank line between. ValueError if it does not parse.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(code)
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(str(error)) from None
    nodes = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for text in map(ast.get_docstring, nodes) if text)
