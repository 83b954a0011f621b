"""
Configs: strict JSON in, a frozen typed object out, and the view of it that decides whether a result would be
the same.

Every field is semantic (it changes the result) unless it carries a tag. Paths, secrets and runtime switches
never enter a key; a `SourceFile` enters it as the SHA-256 of its content.

    class PackConfig(StageConfig):
        stage: ClassVar[str] = "40_pack_dataset"
        sequence_length_tokens: int
        inputs: PackInputs
        executor: Runtime[ExecutorConfig] = ExecutorConfig()

    loaded = load_config(Path("config/demo/40_pack_dataset.json"), PackConfig, workspace)
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from utils.pipeline.config_errors import readable, unknown_key
from utils.pipeline.config_file import read_merged
from utils.pipeline.errors import ConfigError
from utils.pipeline.external import ExternalSource
from utils.pipeline.guards import GUARDS
from utils.pipeline.hashing import sha256_hex
from utils.pipeline.workspace import Workspace

T = TypeVar("T")
_ENVIRONMENT_NAME = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Tag:
    """What a field is to the chain; `pattern` turns the value of a source file field into its path."""

    kind: Literal["runtime", "secret", "input", "output", "source"]
    pattern: str = "{}"


@dataclass(frozen=True)
class Neutral:
    """
    For a field added after a release: at this value the stage behaves as before, so the key leaves the
    field out (P14).
    """

    value: object


Runtime = Annotated[T, Tag("runtime")]
Secret = Annotated[str, Tag("secret")]
InputFolder = Annotated[str, Tag("input")]
OutputFolder = Annotated[str, Tag("output")]
SourceFile = Annotated[str, Tag("source")]


def source_file(pattern: str) -> Tag:
    """
    The tag of a field that names a file of the repository by its stem:
    `source_file("config/templates/{}.jinja")`.
    """
    return Tag("source", pattern)


class Section(BaseModel):
    """A part of a config: frozen, every key known, every field documented by the docstring below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class StageConfig(Section):
    """
    Base of the twelve configs. The class constants say what the stage promises; `output` is the
    artifact's folder.
    """

    stage: ClassVar[str]
    stage_version: ClassVar[int] = 1
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "bitwise"
    keeps_partial: ClassVar[bool] = False
    # work that costs money or hours: a leftover of another key is a refusal, not a leftover to discard
    work: ClassVar[str] = "*"
    # what of a leftover is such work, as a glob in its folder; without any it is discarded all the same
    carried: ClassVar[str] = ""
    # a file below `log/` that a later build of the same output starts from: what was paid for is kept

    held_out_sources: ClassVar[tuple[str, ...]] = ()
    # external sources that models are measured on: no corpus behind an input may have been made without them

    output: OutputFolder
    """Folder of the artifact, relative to the repository root."""

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """External data that the stage reads; stages that read any override this."""
        return []

    @classmethod
    def only_adds(cls, before: Mapping, after: Mapping) -> bool:
        """
        Whether everything built under the semantic view `before` still stands under `after`, which asks for
        more of it.
        """
        return False


@dataclass(frozen=True)
class LoadedConfig:
    """A validated config, where it came from, and the SHA-256 over its file and every file it extends."""

    config: StageConfig
    path: str
    sha256: str
    workspace: Workspace = field(repr=False)

    @property
    def semantic(self) -> dict:
        return semantic_view(self.config, self.workspace)

    @property
    def resolved(self) -> dict:
        return _without_secrets(self.config)


def load_config(path: Path, config_class: type[StageConfig], workspace: Workspace) -> LoadedConfig:
    """
    Read, merge and validate one config file. ConfigError names the file, the key and the nearest valid
    name (P13).
    """
    label = workspace.relative(path)
    files: list[bytes] = []
    document = read_merged(workspace.path(path), workspace, [], files)
    try:
        text = json.dumps(document)  # as JSON, where a list may be a tuple; "20" is no number, 1 is not true
        config, errors = config_class.model_validate_json(text, strict=True), []
    except ValidationError as error:
        config, errors = None, error.errors(include_url=False)
    unknown = [item["loc"] for item in errors if item["type"] == "extra_forbidden"]
    if surplus := GUARDS["G26"](unknown):
        raise unknown_key(surplus[0], config_class, document, label)
    if config is None:
        raise readable(errors, document, label)
    _refuse_environment_names(config, label)
    return LoadedConfig(config, label, sha256_hex(b"\n".join(files)), workspace)


def _tag(annotation: object, metadata: tuple | list = ()) -> Tag | None:
    """The tag on a field, or on the items of a list field."""
    for item in metadata:
        if isinstance(item, Tag):
            return item
    for argument in get_args(annotation):
        if found := _tag(argument, getattr(argument, "__metadata__", ())):
            return found
    return None


def tagged_fields(section: Section, path: str = "") -> Iterator[tuple[str, Tag | None, Any]]:
    """
    Every leaf of a config with its tag: (`inputs.data[0].path`, Tag, value). Runtime sections come whole.
    """
    for name, info in type(section).model_fields.items():
        here = f"{path}.{name}" if path else name
        yield from _leaves(getattr(section, name), _tag(info.annotation, info.metadata), here)


def _leaves(value: Any, tag: Tag | None, path: str) -> Iterator[tuple[str, Tag | None, Any]]:
    if isinstance(value, Section) and not (tag and tag.kind == "runtime"):
        yield from tagged_fields(value, path)
    elif isinstance(value, Mapping) and any(isinstance(item, Section) for item in value.values()):
        for key, item in value.items():
            yield from _leaves(item, None, f"{path}.{key}")
    elif isinstance(value, (list, tuple)) and (tag or any(isinstance(item, Section) for item in value)):
        for index, item in enumerate(value):
            yield from _leaves(item, tag, f"{path}[{index}]")
    else:
        yield path, tag, value


def input_folders(config: StageConfig) -> dict[str, str]:
    """
    Role -> folder of every input that is named (not ""): `corpus`, or `data.0`, `data.1` for lists (P4).
    """
    roles = {}
    for path, tag, value in tagged_fields(config):
        if tag and tag.kind == "input" and value:
            match = re.match(r"(?:inputs\.)?([A-Za-z0-9_]+)(?:\[(\d+)\])?", path)
            role = match[1] if match[2] is None else f"{match[1]}.{match[2]}"
            roles[role] = value
    return roles


def semantic_view(config: StageConfig, workspace: Workspace) -> dict:
    """The part of a config that changes the result (P14). ConfigError if a source file is missing."""
    return _semantic_section(config, workspace)


def _semantic_section(section: Section, workspace: Workspace) -> dict:
    view = {}
    for name, info in type(section).model_fields.items():
        value, neutral = getattr(section, name), [item for item in info.metadata if isinstance(item, Neutral)]
        if neutral and neutral[0].value == value:
            continue
        kept = _semantic_value(value, _tag(info.annotation, info.metadata), workspace)
        if kept is not None:
            view[name] = kept
    return view


def _semantic_value(value: Any, tag: Tag | None, workspace: Workspace) -> Any:
    """What enters the key, or None for nothing."""
    if tag and tag.kind != "source":
        return None
    if isinstance(value, Section):
        return _semantic_section(value, workspace) or None
    if isinstance(value, (list, tuple)):
        kept = [
            item for item in (_semantic_value(item, tag, workspace) for item in value) if item is not None
        ]
        return kept if kept or not value else None
    if isinstance(value, Mapping):
        kept = {key: _semantic_value(item, None, workspace) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None}
    if tag:
        return _file_digest(tag.pattern.format(value), workspace) if value else ""
    return value


def _file_digest(relative: str, workspace: Workspace) -> str:
    try:
        return sha256_hex(workspace.path(relative).read_bytes())
    except OSError as error:
        nearby = sorted(
            path.stem for path in workspace.path(relative).parent.glob(f"*{Path(relative).suffix}")
        )
        hint = f"there are: {', '.join(nearby)}" if nearby else "check the path"
        raise ConfigError(f"{relative}: cannot be read ({error.strerror})", fix=hint) from None


def _without_secrets(config: StageConfig) -> dict:
    resolved = config.model_dump(mode="json")
    for path, tag, value in tagged_fields(config):
        if tag and tag.kind == "secret" and value and not _ENVIRONMENT_NAME.fullmatch(value):
            _set(resolved, path, "<secret>")
    return resolved


def _set(document: dict, path: str, value: object) -> None:
    parts = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]
    for part in parts[:-1]:
        document = document[part]
    document[parts[-1]] = value


def _refuse_environment_names(config: StageConfig, label: str) -> None:
    for path, tag, value in tagged_fields(config):
        if isinstance(value, str) and _ENVIRONMENT_NAME.search(value) and not (tag and tag.kind == "secret"):
            raise ConfigError(f'{label}: "{path}": environment names are allowed in secret fields only')


def reveal(secret: str) -> str:
    """
    The text of a secret field: `${NAME}` is read from the environment now, so that no config object ever
    holds it.
    """
    match = _ENVIRONMENT_NAME.fullmatch(secret)
    if match and match[1] not in os.environ:
        raise ConfigError(f"the environment variable {match[1]} is not set", fix=f"export {match[1]}=...")
    return os.environ[match[1]] if match else secret
