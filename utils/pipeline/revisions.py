"""
Revisions of the Hugging Face Hub: a branch or tag is resolved to a commit once, and kept while nobody asks
for another one.

The commit, not the branch, is what enters a key. So a push to the Hub makes nothing stale by itself; `status
--online` resolves again and says so, and a forced build takes the new commit.

    source = pin(ExternalSource.of_dataset("web", "allenai/c4", "en", "train", "main"), manifest.sources)
    source.resolved_revision        # "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.pipeline.errors import ConfigError, StageError
from utils.pipeline.external import ExternalSource
from utils.pipeline.manifest import Manifest
from utils.pipeline.seal import partial_of, read_state

KEPT = ("name", "kind", "id", "requested_revision", "resolved_revision")


def known_revisions(output: Path, manifest: Manifest | None) -> list[dict]:
    """What an unfinished build of `output`, then its artifact, resolved; newest first."""
    unfinished = (read_state(partial_of(output)) or {}).get("revisions", [])
    sources = manifest.sources if manifest else []
    return [*unfinished, *({key: getattr(source, key) for key in KEPT} for source in sources)]


def revision_of(record: Mapping) -> dict:
    """The part of an entry of `manifest.sources` that says what was asked for and what it stood for."""
    return {key: record[key] for key in KEPT}


def pin(source: ExternalSource, known: Iterable[Mapping]) -> ExternalSource:
    """
    The source at a commit: the one that an earlier build resolved for the same request (`known` are entries
    of `manifest.sources`), else the one that the Hub names now.
    """
    return (kept(source, known) or resolve(source)) if source.is_floating else source


def resolve(source: ExternalSource) -> ExternalSource:
    """The source at the commit that the Hub names now."""
    return source.at(resolve_revision(source.name, source.parts[0], source.requested_revision))


def kept(source: ExternalSource, known: Iterable[Mapping]) -> ExternalSource | None:
    """The source at the commit that an earlier build resolved for the same request, if there was one."""
    request = (source.name, source.kind, source.id, source.requested_revision)
    for record in known:
        if tuple(record[key] for key in KEPT[:4]) == request and record["resolved_revision"]:
            return source.at(record["resolved_revision"])
    return None


def resolve_revision(name: str, dataset: str, revision: str) -> str:
    """The commit that a branch or tag of a dataset stands for now. Asks the Hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().dataset_info(dataset, revision=revision).sha
    except HFValidationError:
        raise ConfigError(
            f'source "{name}": "{dataset}" cannot be the name of a dataset of the Hub', fix="write owner/name"
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(
            f'source "{name}": dataset {dataset} has no revision "{revision}"',
            fix="check its branches on the Hub",
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f'source "{name}": there is no dataset {dataset} on the Hub, or you may not read it',
            fix="check the id; for a gated dataset ask for access and set HF_TOKEN",
        ) from None
    except OfflineModeIsEnabled:
        raise StageError(
            f'source "{name}": revision "{revision}" must be asked from the Hub, and HF_HUB_OFFLINE is set',
            fix="unset HF_HUB_OFFLINE",
        ) from None
    except (OSError, HTTPError) as error:
        raise StageError(
            f'source "{name}": the Hub did not say what {dataset} {revision} is: {_one_line(error)}',
            fix="rerun when it can be reached",
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
