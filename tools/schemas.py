"""
What the configs are, told twice from the code: JSON Schemas for editors, and tables of keys and of model
sizes in the guides.

    python tools/schemas.py            # writes config/schema/*.schema.json and the tables in docs/*.md
    python tools/schemas.py --check    # exit 4 when a file there is not what the code says

A guide says where its tables go with `<!-- keys of 10_generate -->` and `<!-- end of keys -->`, or
`<!-- sizes -->` and `<!-- end of sizes -->`. The keys of an architecture file are those of `architecture`.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config.architecture import Architecture
from utils.models.presets import count_parameters, flops_per_token, load_architecture, quantizes_to_k
from utils.pipeline.errors import ConfigError
from utils.pipeline.manifest import Manifest
from utils.pipeline.workspace import REPOSITORY, Workspace

ARCHITECTURE = "architecture"
_TABLES = re.compile(r"(<!-- keys of (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_SIZES = re.compile(r"(<!-- sizes -->\n).*?(<!-- end of sizes -->)", re.DOTALL)
SIZE_COLUMNS = (
    "name",
    "layers x width",
    "heads",
    "FFN",
    "experts",
    "vocabulary",
    "parameters",
    "without embeddings",
    "of them per token",
    "GFLOP/token (context)",
    "K-quants",
)


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
        if _TABLES.search(text) or _SIZES.search(text):
            text = _TABLES.sub(lambda match: _tables(match, workspace), text)
            found[workspace.relative(path)] = _SIZES.sub(lambda match: _sizes(match, workspace), text)
    return found


def _sizes(match: re.Match[str], workspace: Workspace) -> str:
    return match[1] + "\n".join(size_table(workspace)) + "\n" + match[2]


def size_table(workspace: Workspace) -> Iterator[str]:
    """Markdown lines: what every architecture file counts with the vocabulary that it refers to."""
    yield f"| {' | '.join(SIZE_COLUMNS)} |"
    yield "|---" * len(SIZE_COLUMNS) + "|"
    paths = workspace.path("config/architectures").glob("*.json")
    shapes = {path.stem: load_architecture(path.stem, workspace) for path in paths}
    for name, shape in sorted(shapes.items(), key=lambda item: (item[1].family, item[1].declared_parameters)):
        vocabulary, context = shape.reference_vocab_size, shape.context_length_tokens
        count = count_parameters(shape, vocabulary)
        experts = f"{shape.moe.experts_per_token} of {shape.moe.num_experts}" if shape.moe else ""
        flops = flops_per_token(shape, vocabulary, context) / 1e9
        columns = [
            f"`{name}`",
            f"{shape.num_layers} x {shape.hidden_size:,}",
            f"{shape.num_heads} x {shape.head_dim}",
            f"{shape.ffn_size:,}",
            experts,
            f"{vocabulary:,}, {'tied' if shape.tie_embeddings else 'untied'}",
            f"**{count.total:,}**",
            f"{count.body:,}",
            f"{count.active:,}" if shape.moe else "",
            f"{flops:.3g} ({context:,})",
            "yes" if quantizes_to_k(shape) else "no",
        ]
        yield f"| {' | '.join(columns)} |"


def _tables(match: re.Match[str], workspace: Workspace) -> str:
    if match[2] != ARCHITECTURE and match[2] not in workspace.stages:
        raise ConfigError(f"a guide asks for the keys of {match[2]}, which is no stage")
    described = Architecture if match[2] == ARCHITECTURE else workspace.config_class(match[2])
    schema = described.model_json_schema()
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
            choices = [choice for choice in field[union] if choice.get("type") != "null"]
            return " or ".join(dict.fromkeys(map(_kind, choices)))
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
