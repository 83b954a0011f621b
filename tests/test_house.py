"""
The house rules that a machine can check: floors, one definition of things, nothing that kills or listens by
accident.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"utils.pipeline": 1, "utils.config": 2, "kernels": 3, "utils": 4, "scripts": 5, "tools": 6}
MODULES = sorted(
    path for room in ("utils", "kernels", "scripts", "tools") for path in (ROOT / room).rglob("*.py")
)
NAMES = [str(path.relative_to(ROOT)) for path in MODULES]


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "utils" else parts[0]


def floor_of(room: str) -> int:
    return FLOORS.get(room) or FLOORS[room.split(".")[0]]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in ("utils", "kernels", "scripts", "tools")}


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_room_imports_only_from_floors_below_it(path: Path) -> None:
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for imported in imports_of(path):
        other = room_of(imported)
        allowed = other == room or floor_of(other) < floor_of(room)
        assert allowed, f"{path.relative_to(ROOT)} ({room}) imports {imported}"


def test_the_floor_rule_can_fail() -> None:
    assert floor_of(room_of("utils.pipeline.stage")) < floor_of(room_of("utils.config.pack"))
    assert floor_of(room_of("utils.chat.masks")) == floor_of(room_of("utils.packing.format"))
    assert floor_of(room_of("scripts.x")) < floor_of(room_of("tools.chat"))


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring and len(docstring) > 60, (
        f"{path.relative_to(ROOT)} has no module docstring worth reading"
    )


def test_no_program_kills_by_name_or_listens_on_all_hosts() -> None:
    for path in MODULES:
        text = path.read_text()
        assert not re.search(r"\b(pkill|killall)\b", text), path
        assert "0.0.0.0" not in text, path
        assert not re.search(r"trust_remote_code\s*=\s*True", text), path


def test_files_are_hashed_in_one_place() -> None:
    for path in MODULES:
        if "utils/pipeline" in path.as_posix():
            continue
        assert "hashlib.file_digest" not in path.read_text(), path


def test_configs_are_loaded_by_one_function() -> None:
    definitions = [
        path.relative_to(ROOT).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "load_config"
    ]
    assert definitions == ["utils/pipeline/config.py"]


def test_schemas_are_what_the_code_says() -> None:
    done = subprocess.run(
        [sys.executable, "tools/schemas.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_status_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from utils.pipeline.plan import read_profile, status\n"
        "from utils.pipeline.verify import Verifier\n"
        "from utils.pipeline.workspace import REPOSITORY\n"
        "rows = status(read_profile('demo', REPOSITORY), Verifier(REPOSITORY))\n"
        "assert len(rows) == 12\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_profile_config_is_valid_and_named_after_its_stage() -> None:
    from utils.pipeline.plan import read_profile
    from utils.pipeline.workspace import REPOSITORY

    for profile in ("smoke", "demo", "local"):
        nodes = read_profile(profile, REPOSITORY)
        assert [node.stage for node in nodes if node.stage not in REPOSITORY.stages] == []
        assert len(nodes) == 12, profile


def test_every_config_field_is_documented() -> None:
    """A field without a docstring cannot be understood in an editor, and so is not finished."""
    from utils.pipeline.workspace import REPOSITORY

    undocumented = []
    for stage in REPOSITORY.stages:
        schema = REPOSITORY.config_class(stage).model_json_schema()
        sections = {stage: schema, **schema.get("$defs", {})}
        for section, body in sections.items():
            for name, field in body.get("properties", {}).items():
                if "description" not in field:
                    undocumented.append(f"{section}.{name}")
    assert not undocumented, sorted(set(undocumented))


def test_makefile_recipes_parse() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z0-9-]+):.*## ", makefile, flags=re.MULTILINE)
    assert len(targets) > 20
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{target}: {done.stderr}"
        parsed = subprocess.run(["sh", "-n"], input=done.stdout, capture_output=True, text=True)
        assert parsed.returncode == 0, f"{target}: {parsed.stderr}"


def test_every_file_that_a_config_names_by_its_stem_exists() -> None:
    """Architectures and templates enter the key by their content, so a missing one is found here."""
    from utils.pipeline.plan import read_profile
    from utils.pipeline.workspace import REPOSITORY

    digests = []
    for profile in ("smoke", "demo", "local"):
        for node in read_profile(profile, REPOSITORY):
            view = node.loaded.semantic
            digests += [view[name] for name in ("model", "template") if isinstance(view.get(name), str)]
    assert len(digests) == 9 and all(len(found) == 64 for found in digests)
