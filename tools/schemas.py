"""
JSON Schemas of all configs and of the manifest, so that an editor completes keys and shows what they mean.

    python tools/schemas.py            # writes config/schema/*.schema.json
    python tools/schemas.py --check    # exit 4 when a file there is not what the code says

Written from `utils/config` and never edited by hand.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.manifest import Manifest
from utils.pipeline.workspace import REPOSITORY, Workspace


def schemas(workspace: Workspace) -> dict[str, str]:
    """File name -> text of every schema."""
    classes = {stage: workspace.config_class(stage) for stage in workspace.stages} | {"manifest": Manifest}
    return {
        f"{name}.schema.json": json.dumps(found.model_json_schema(), indent=1, ensure_ascii=True) + "\n"
        for name, found in classes.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/schemas.py", description=__doc__.splitlines()[1])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 4 if a file is out of date")
    check = parser.parse_args().check
    folder = REPOSITORY.path("config/schema")
    folder.mkdir(parents=True, exist_ok=True)
    texts = schemas(REPOSITORY)
    old = [name for name, text in texts.items() if not _is(folder / name, text)]
    if check and old:
        print(f"error: out of date: {', '.join(old)}\n  fix       make schemas", file=sys.stderr)
        return 4
    for name in old:
        (folder / name).write_text(texts[name], encoding="ascii")
        print(f"wrote config/schema/{name}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="ascii") == text


if __name__ == "__main__":
    sys.exit(main())
