"""
Installed Python code as a source of text: what identifies it, so that an upgrade makes a corpus stale.

    >>> installed_code(["json"])                 # of the standard library: the version of Python says it all
    ['3.11.7', []]
"""

import importlib.metadata
import sys

from utils.pipeline.hashing import sha256_hex


def installed_code(packages: list[str]) -> list:
    """
    Return what identifies installed code: the Python version, and name, version, RECORD digest per
    distribution.
    """
    if packages and set(packages) <= sys.stdlib_module_names:
        return [sys.version.split()[0], []]
    owners = importlib.metadata.packages_distributions()
    wanted = {name for package in packages for name in owners.get(package, [])}
    versions = []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if not packages or name in wanted:
            versions.append(
                [name, distribution.version, sha256_hex((distribution.read_text("RECORD") or "").encode())]
            )
    return [sys.version.split()[0], sorted(versions)]
