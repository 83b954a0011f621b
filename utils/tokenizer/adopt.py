"""
Adopting a tokenizer: its files copied byte for byte, from a folder or a commit of the Hugging Face Hub.

Only the files named in ADOPTED_FILES are ever asked for, nothing is re-saved, and code in the repository is
neither fetched nor run.

    >>> fetch_from_hub("Qwen/Qwen2.5-0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987", folder)
    ['tokenizer.json', 'tokenizer_config.json']
"""

import json
import shutil
from pathlib import Path

from utils.pipeline.errors import ConfigError, DataError, StageError
from utils.pipeline.inputs import Source
from utils.pipeline.tokenizer_files import (
    ADOPTED_FILES,
    CONFIG_FILE,
    JSON_FILE,
    MODEL_FILE,
    TEMPLATE_FILE,
    carries_tokenizer,
    open_json,
    open_model,
)


def copy_local(source: Source, target: Path) -> list[str]:
    """Copy the frozen files of a local folder and return their names."""
    for path in source.files:
        with source.open(path) as file:
            (target / path.name).write_bytes(file.read())
    return [path.name for path in source.files]


def fetch_from_hub(id: str, commit: str, target: Path) -> list[str]:
    """
    Fetch the tokenizer files of a commit, from the local cache where they are there, and return their names.

    ConfigError for a repository, commit or permission that is not there; StageError without a network.
    """
    found = {name: path for name in ADOPTED_FILES if (path := _cached_or_fetched(id, commit, name))}
    for name, path in found.items():
        shutil.copyfile(path, target / name)
    return list(found)


def _cached_or_fetched(id: str, commit: str, name: str) -> str:
    """The path of one file in the cache of the Hub's library; "" if the commit has no such file."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(id, name, revision=commit)
    if known is not None:
        return known if isinstance(known, str) else ""  # a marker: known not to exist
    try:
        return hf_hub_download(id, name, revision=commit)
    except errors.HFValidationError:
        raise ConfigError(
            f'"{id}" cannot be the name of a model of the Hub', fix="write owner/name"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise StageError(
            f"{name} of {id} at {commit[:12]} is not in the cache and the Hub cannot be reached: {error}",
            fix="rerun with a network, or name a local folder in source.path",
        ) from None
    except errors.EntryNotFoundError:
        return ""
    except errors.GatedRepoError:
        raise ConfigError(
            f"{id} asks for its licence to be accepted", fix="accept it on the Hub, then export HF_TOKEN=..."
        ) from None
    except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError) as error:
        what = (
            "no commit" if isinstance(error, errors.RevisionNotFoundError) else "no model, or none for you,"
        )
        raise ConfigError(
            f"the Hub has {what} {id} at {commit}", fix="check source.id and revision"
        ) from None


def check_files(folder: Path) -> None:
    """DataError unless the files are one whole tokenizer."""
    if not carries_tokenizer(folder):
        raise DataError(
            f"the source has no {JSON_FILE} and no {MODEL_FILE}; a tokenizer that is only code is not run",
            fix="adopt a repository that has one of them",
        )
    if not ((folder / MODEL_FILE).is_file() and (folder / JSON_FILE).is_file()):
        return
    sizes = [
        open_model((folder / MODEL_FILE).read_bytes()).get_piece_size(),
        open_json((folder / JSON_FILE).read_bytes(), "", "").get_piece_size(),
    ]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{MODEL_FILE} has {sizes[0]:,} pieces and {JSON_FILE} {sizes[1]:,}: they are two tokenizers",
            fix="adopt a local copy without the one that the model was not trained with",
        )


def remote_code(folder: Path) -> list[str]:
    """The classes that the files would have loaded from the repository's own code; never done here."""
    config = _config(folder)
    named = (config.get("auto_map") or {}).get("AutoTokenizer") or []
    return [name for name in ([named] if isinstance(named, str) else named) if name]


def write_own_template(folder: Path) -> bool:
    """Whether there is a chat template; one inside tokenizer_config.json also gets its usual file."""
    path, template = folder / TEMPLATE_FILE, _config(folder).get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry["name"] == "default"), None)
    if template and not path.is_file():
        path.write_bytes(template.encode())
    return path.is_file()


def _config(folder: Path) -> dict:
    path = folder / CONFIG_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
