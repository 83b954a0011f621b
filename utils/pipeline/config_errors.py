"""
What is wrong with a config, in words: where in the file, what was found, and the nearest thing that is right.

    config/demo/20_prepare_corpus.json: unknown key "sources[0].feilds" (did you mean "fields"?)
"""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel

from utils.pipeline.errors import ConfigError

MOST_LISTED = 8  # values of a choice that are named beside the nearest one
Location = tuple[str | int, ...]


def unknown_key(location: Location, config_class: type[BaseModel], document: dict, label: str) -> ConfigError:
    """The error for a key that no section has."""
    valid = list(_section_at(config_class, location[:-1]).model_fields)
    near = get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
    hint = f'did you mean "{near[0]}"?' if near else f"valid keys: {', '.join(valid)}"
    return ConfigError(f'{label}: unknown key "{_dotted(_in_file(location, document))}" ({hint})')


def readable(errors: list, document: dict, label: str) -> ConfigError:
    """The error for the first place at which something is wrong, and how many more places there are."""
    places = [_in_file(error["loc"], document, error["type"]) for error in errors]
    first = [error for error, place in zip(errors, places, strict=True) if place == places[0]]
    where = f'"{_dotted(places[0])}": ' if places[0] else ""
    more = f" (and {len(set(places)) - 1} more)" if len(set(places)) > 1 else ""
    return ConfigError(f"{label}: {where}{_messages(first)}{more}")


def _messages(errors: list[dict]) -> str:
    """What is wrong at one place; a value that fits no branch of a union is told what each would take."""
    message, *others = dict.fromkeys(map(_message, errors))
    message += "".join(f" or {other.removeprefix('input should be ')}" for other in others)
    if errors[0]["type"].endswith("_type") and isinstance(errors[0]["input"], (str, int, float, bool)):
        message += f", this is {json.dumps(errors[0]['input'])}"
    return message


def _message(error: dict) -> str:
    if error["type"] == "literal_error" and (near := _nearest(error)):
        valid = _possible(error)
        known = f"; known: {', '.join(valid)}" if len(valid) <= MOST_LISTED else ""
        return f'"{error["input"]}" is unknown (did you mean "{near}"?){known}'
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _nearest(error: dict) -> str:
    return next(iter(get_close_matches(str(error["input"]), _possible(error), n=1)), "")


def _possible(error: dict) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"])


def _in_file(location: Location, document: object, kind: str = "") -> Location:
    """A location as the file has it: without the names of union branches, which only the program knows."""
    found: list[str | int] = []
    for i, part in enumerate(location):
        absent = kind == "missing" and i == len(location) - 1
        if absent or _has(document, part):
            found.append(part)
            document = None if absent else document[part]
    return tuple(found)


def _has(document: object, part: str | int) -> bool:
    if isinstance(document, list):
        return isinstance(part, int) and part < len(document)
    return isinstance(document, dict) and part in document


def _dotted(location: Location) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _section_at(section: type[BaseModel], location: Location) -> type[BaseModel]:
    """The section class that `location` leads to; containers are looked through, union branches taken."""
    found = [section]
    for part in location:
        if part in found[0].model_fields:
            found = list(sections_in(found[0].model_fields[part].annotation)) or found
        else:
            found = [one for one in found if _is_branch(one, part)] or found
    return found[0]


def _is_branch(section: type[BaseModel], name: str | int) -> bool:
    """Whether a section is what its union calls by this name: one of its fields may only have this value."""
    return any(get_args(field.annotation) == (name,) for field in section.model_fields.values())


def sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from sections_in(argument)
