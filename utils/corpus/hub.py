"""
Datasets of the Hugging Face Hub, streamed at a commit, from any row on.

The cursor of a block is the stream's own state, which survives JSON. A network error throws away the block in
hand and rebuilds the stream from the cursor behind the last one, so that nothing is lost or read twice. Code
of the dataset's repository is never run.

    >>> for block in pinned_blocks(stage, source, columns=["text"], start=Cursor()):
    ...     block.rows, block.next.place
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from utils.corpus.fields import CHECKED_ROWS
from utils.corpus.readers import as_json
from utils.corpus.sources import BlockCutter, Cursor, RawBlock
from utils.pipeline.errors import ConfigError, DataError, LockstepError, StageError
from utils.pipeline.stage import Stage

if TYPE_CHECKING:
    from datasets import IterableDataset

TRIES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 6, 4.0, 60.0
PAUSE_STEP_SECONDS = 0.5


class HubRequest(Protocol):
    """A source of a config that names a dataset of the Hub."""

    name: str
    id: str
    subset: str
    split: str


@dataclass(frozen=True)
class HubDataset:
    """What is streamed: name of the source, id, subset ("" = default) and split, at a commit."""

    source: str
    id: str
    subset: str
    split: str
    commit: str


def pinned_blocks(
    stage: Stage, source: HubRequest, columns: Sequence[str], start: Cursor
) -> Iterator[RawBlock]:
    """The blocks of a source from `start` on, at the commit that the stage resolved for it."""
    commit = stage.source(source.name).external.resolved_revision
    dataset = HubDataset(source.name, source.id, source.subset, source.split, commit)
    return hub_blocks(dataset, columns, start, partial(_pause, stage), stage.log)


def _pause(stage: Stage, seconds: float) -> None:
    """Wait, and leave at once when somebody asks the stage to stop."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        stage.stop_point()
        time.sleep(min(left, PAUSE_STEP_SECONDS))


def hub_blocks(
    dataset: HubDataset,
    columns: Sequence[str],
    start: Cursor,
    pause: Callable[[float], None],
    log: Callable[..., None],
) -> Iterator[RawBlock]:
    """
    Yield the blocks of a dataset from `start` on, top-level fields `columns` only ([] = all).

    StageError (resumable) when six tries in a row brought no block; `pause` waits between them.
    """
    cutter, failures = BlockCutter(dataset.source, start), 0
    while True:
        try:
            for block in _read_on(dataset, columns, cutter):
                failures = 0
                yield block
            return
        except LockstepError:
            raise
        except network_errors() as error:
            failures += 1
            _give_up_or_wait(dataset, error, failures, pause, log)
            cutter = BlockCutter(dataset.source, cutter.first)


def _read_on(dataset: HubDataset, columns: Sequence[str], cutter: BlockCutter) -> Iterator[RawBlock]:
    stream, at = open_stream(dataset), cutter.first
    if at.place is not None:
        stream.load_state_dict(at.place)
    wanted = set(columns)
    for row in _readable(dataset, stream):
        if (
            wanted and at.total >= CHECKED_ROWS
        ):  # up to there a message may have to name the fields that there are
            row = {name: value for name, value in row.items() if name in wanted}
        at = Cursor(0, at.row + 1, None, at.total + 1)
        if cutter.add(as_json(row), at):
            at = cutter.next = replace(at, place=stream.state_dict())
            yield cutter.cut()
    if cutter.rows:
        cutter.next = replace(at, place=stream.state_dict())
        yield cutter.cut()


def _readable(dataset: HubDataset, stream: "IterableDataset") -> Iterator[dict]:
    """The rows; what is neither a network error nor ours is damage of the files."""
    from datasets.exceptions import DatasetsError

    try:
        yield from stream
    except FileNotFoundError as error:
        raise DataError(
            f"{_name(dataset)} lacks a file: {_short(error)}", fix="choose another revision"
        ) from None
    except (DatasetsError, ValueError) as error:
        raise DataError(
            f"{_name(dataset)} cannot be read: {_short(error)}", fix="choose another revision"
        ) from None


def open_stream(dataset: HubDataset) -> "IterableDataset":
    """Open the stream at its first row. ConfigError for a subset or split that is not there."""
    import datasets
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise StageError(
            f"{_name(dataset)} is read from the Hub, and HF_HUB_OFFLINE is set",
            fix="unset HF_HUB_OFFLINE, then rerun to continue",
        )
    try:
        stream = datasets.load_dataset(
            dataset.id, dataset.subset or None, split=dataset.split, revision=dataset.commit, streaming=True
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{_name(dataset)}: {_short(error)}", fix="check id and revision of the source"
        ) from None
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{_name(dataset)}: {_short(error)}", fix="check subset and split of the source"
        ) from None
    return stream.decode(False) if stream.features else stream


def network_errors() -> tuple[type[Exception], ...]:
    """What a connection that breaks, or a server in trouble, is seen as."""
    import aiohttp
    from huggingface_hub.errors import HTTPError

    return (OSError, EOFError, aiohttp.ClientError, HTTPError)


def _give_up_or_wait(
    dataset: HubDataset,
    error: Exception,
    failures: int,
    pause: Callable[[float], None],
    log: Callable[..., None],
) -> None:
    if failures >= TRIES:
        raise StageError(
            f"{_name(dataset)}: the Hub could not be read, {TRIES} tries in a row: {_short(error)}",
            fix="look whether there is a network, then rerun to continue where reading stopped",
        ) from None
    seconds = min(FIRST_PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS)
    log("waiting", f"{_name(dataset)}: {_short(error)}; try {failures + 1} of {TRIES} in {seconds:.0f} s")
    pause(seconds)


def _name(dataset: HubDataset) -> str:
    return f'source "{dataset.source}" ({dataset.id})'


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
