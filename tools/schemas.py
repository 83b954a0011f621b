"""
What the configs are, told twice from the code: JSON Schemas for editors, and tables of keys in the guides.

    python tools/schemas.py            # writes config/schema/*.schema.json and the tables in docs/*.md
    python tools/schemas.py --check    # exit 4 when a file there is not what the code says

A guide says where its tables go with `<!-- keys of 10_generate -->` and `<!-- end of keys -->`.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.pipeline.errors import ConfigError
from utils.pipeline.manifest import Manifest
from utils.pipeline.workspace import REPOSITORY, Workspace

_TABLES = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)


def schemas(workspace: Workspace) -> dict[str, str]:
    """Path -> text of every schema."""
    classes = {stage: workspace.config_class(stage) for stage in workspace.stages} | {"manifest": Manifest}
    return {
        f"config/schema/{name}.schema.json": json.dumps(
            found.model_json_schema(), indent=1, ensure_ascii=True
        )
        + "\n"
        for name, found in classes.items()
    }


def guides(workspace: Workspace) -> dict[str, str]:
    """Path -> text of every guide with its tables as they should be."""
    found = {}
    for path in sorted(workspace.path("docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if _TABLES.search(text):
            found[workspace.relative(path)] = _TABLES.sub(lambda match: _tables(match, workspace), text)
    return found


def _tables(match: re.Match[str], workspace: Workspace) -> str:
    if match[2] not in workspace.stages:
        raise ConfigError(f"a guide asks for the keys of {match[2]}, which is no stage")
    schema = workspace.config_class(match[2]).model_json_schema()
    return match[1] + "\n".join(key_tables(schema)) + "\n" + match[3]


def key_tables(schema: dict) -> Iterator[str]:
    """Markdown lines: a table for the config itself, then one for each kind of object inside it."""
    sections = schema.get("$defs", {})
    yield from _table("The config itself", schema)
    for name in _reached_from(schema, sections):
        if "properties" in sections[name]:
            yield from _table(f"`{name}`: {_one_line(sections[name].get('description', ''))}", sections[name])


def _reached_from(schema: dict, sections: dict) -> list[str]:
    """Names of sections in the order in which a reader meets them."""
    names: list[str] = []
    waiting = [schema]
    while waiting:
        properties = waiting.pop(0).get("properties", {})
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps(properties)):
            if name not in names:
                names.append(name)
                waiting.append(sections[name])
    return names


def _table(title: str, section: dict) -> Iterator[str]:
    yield from ("", f"**{title}**", "", "| key | value | meaning |", "|---|---|---|")
    required = section.get("required", [])
    for key, field in section["properties"].items():
        default = "required" if key in required else _shown(field.get("default", ""))
        meaning = _one_line(field.get("description", "")).replace("|", "\\|")
        yield f"| `{key}` | {_kind(field)}, {default} | {meaning} |"


def _kind(field: dict) -> str:
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return " \\| ".join(f"`{value}`" for value in field["enum"])
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(dict.fromkeys(_kind(choice) for choice in field[union]))
    if "$ref" in field or "allOf" in field:
        name = (field.get("$ref") or field["allOf"][0]["$ref"]).rsplit("/", 1)[1]
        return "any JSON" if name == "JsonValue" else f"`{name}`"
    if field.get("type") == "array":
        return f"list of {_kind(field['items'])}" if "items" in field else "list"
    if values := list(field.get("patternProperties", {}).values()) or field.get("additionalProperties"):
        return f"object of {_kind(values[0] if isinstance(values, list) else values)}"
    return {"string": "text", "number": "number", "integer": "whole number", "boolean": "true or false"}.get(
        field.get("type", ""), "any JSON"
    )


def _shown(default: object) -> str:
    if isinstance(default, dict) and default:
        return "as below"
    return f"`{json.dumps(default)}`"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/schemas.py", description=__doc__.splitlines()[1])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 4 if a file is out of date")
    check = parser.parse_args().check
    texts = schemas(REPOSITORY) | guides(REPOSITORY)
    old = [path for path, text in texts.items() if not _is(REPOSITORY.path(path), text)]
    if check and old:
        print(f"error: out of date: {', '.join(old)}\n  fix       make schemas", file=sys.stderr)
        return 4
    REPOSITORY.path("config/schema").mkdir(parents=True, exist_ok=True)
    for path in old:
        REPOSITORY.path(path).write_text(texts[path], encoding="utf-8")
        print(f"wrote {path}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
