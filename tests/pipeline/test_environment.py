"""What is recorded of code and machine, and what counts as a change of code (P37)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from utils.pipeline.environment import (
    changed_modules,
    code_modules,
    code_record,
    environment_record,
    required_distributions,
)
from utils.pipeline.hashing import digest
from utils.pipeline.manifest import CodeRecord

PACK = '''"""Packs rows."""
import os


class Packer:
    """Packs."""

    def pack(self, rows):
        """Pack rows."""
        from utils.deep import inner
        return [row + 1 for row in rows]  # one more
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {
        "scripts/40_pack.py": "from utils.packing.pack import Packer\nimport json\nfrom utils.no import x\n",
        "utils/packing/pack.py": PACK,
        "utils/deep.py": "import utils.packing.pack\ninner = 1\n",
        "utils/unused.py": "x = 1\n",
        "requirements.txt": "# comment\nnumpy>=2\nnot-a-real-distribution==1.0\n-e .\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def record(project: Path) -> CodeRecord:
    return CodeRecord.model_validate(code_record(project / "scripts/40_pack.py", project))


def test_the_closure_follows_imports_inside_functions(project: Path) -> None:
    modules = code_modules(project / "scripts/40_pack.py", project)
    assert list(modules) == ["scripts.40_pack", "utils.deep", "utils.packing.pack"]
    found = record(project)
    assert found.digest == digest("code", modules) and found.modules == modules
    assert found.git_commit == "0" * 40 and not found.dirty  # a folder that git does not know


@pytest.mark.parametrize(
    ("edit", "noticed"),
    [
        (lambda text: text.replace("Packs rows.", "Says more."), False),
        (lambda text: text.replace('        """Pack rows."""\n', ""), False),
        (lambda text: text.replace("# one more", "# another comment"), False),
        (lambda text: text.replace("row + 1 for row in rows", "\n    row  +  1\n    for row in rows"), False),
        (lambda text: "\n\n" + text, False),
        (lambda text: text.replace("row + 1", "row + 2"), True),
        (lambda text: text.replace("def pack", "def packed"), True),
        (lambda text: text.replace("import os\n", ""), True),
        (lambda text: text + "\n'a text that nobody reads'\n", False),
    ],
)
def test_what_counts_as_a_change(project: Path, edit: Callable[[str], str], noticed: bool) -> None:
    before = record(project)
    path = project / "utils/packing/pack.py"
    path.write_text(edit(path.read_text()))
    os.utime(path, ns=(1, 1))  # the parse is remembered by modification time
    changed = changed_modules(before, project / "scripts/40_pack.py", project)
    assert changed == (["utils.packing.pack"] if noticed else [])


def test_trees_of_another_python_are_not_compared(project: Path) -> None:
    before = record(project).model_copy(update={"python": "3.9", "modules": {}})
    assert changed_modules(before, project / "scripts/40_pack.py", project) == []


def test_the_environment_names_versions_and_no_host(project: Path) -> None:
    found = environment_record(project)
    assert required_distributions(project) == ["numpy", "not-a-real-distribution"]
    assert found["not-a-real-distribution"] == "absent" and found["numpy"][0].isdigit()
    assert os.uname().nodename not in str(found)
