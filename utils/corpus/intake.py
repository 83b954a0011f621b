"""
Intake: a source of the config -> its files, its settings, and all its blocks committed to the segments.

    >>> for number, source in enumerate(config.sources):
    ...     read_source(number, source, config, stage, executor, segments, permutations)
"""

from concurrent.futures import Executor
from functools import partial

import numpy as np

from utils.config.corpus import AnySource, CorpusConfig
from utils.corpus.blocks import BlockSettings, Mapping, process_block
from utils.corpus.docstrings import installed_files
from utils.corpus.executor import ordered_map
from utils.corpus.quality import resolve_rules
from utils.corpus.segments import Segments
from utils.corpus.sources import Cursor, ReadSettings, SourceFile, check_fields, format_of, read_blocks
from utils.pipeline.errors import ConfigError, DataError
from utils.pipeline.stage import Stage


def read_source(
    number: int,
    source: AnySource,
    config: CorpusConfig,
    stage: Stage,
    executor: Executor,
    segments: Segments,
    permutations: np.ndarray | None,
) -> None:
    """Process the blocks of a source that are not committed yet, in order."""
    files, reading = open_files(source, stage), read_settings(source)
    start = segments.cursor(number)
    if start != Cursor():
        stage.log("resuming", source=source.name, file=start.file, row=start.row)
    else:
        _check_mapping(source, files, reading)
    task = partial(process_block, block_settings(source, config, permutations))
    for result in ordered_map(executor, task, read_blocks(source.name, files, reading, start)):
        segments.commit(number, result)
    _check_losses(number, source, segments)


def open_files(source: AnySource, stage: Stage) -> list[SourceFile]:
    """
    Return the files of a source; those of other artifacts and of local folders through verified readers.
    """
    if source.kind == "docstrings":
        return installed_files(source.packages)
    if source.kind == "generated":
        generated, name = stage.input("generated"), f"{source.dataset}/dataset.jsonl"
        return [SourceFile(generated.file(name).name, partial(generated.open, name))]
    opened = stage.source(source.name)
    files = [SourceFile(stage.workspace.relative(path), partial(opened.open, path)) for path in opened.files]
    for file in files:
        if format_of(file.name)[0] == "py":
            raise ConfigError(
                f"{file.name}: unknown kind of file", fix="take it out of the globs of the source"
            )
    return files


def read_settings(source: AnySource) -> ReadSettings:
    if source.kind != "local":
        return ReadSettings()
    names = [*_text_fields(source), source.fields.group, source.fields.id]
    return ReadSettings(sorted({name.split(".")[0] for name in names if name}), source.split_on)


def block_settings(source: AnySource, config: CorpusConfig, permutations: np.ndarray | None) -> BlockSettings:
    """Return the frozen settings that travel to the workers with each block."""
    mapping = Mapping(id="id")
    if source.kind == "local":
        mapping = Mapping(tuple(_text_fields(source)), source.fields.group, source.fields.id)
    rules = resolve_rules(source.preset, source.rules)
    return BlockSettings(
        mapping, rules, config.seed, config.split.by, config.deduplicate.ngram_words, permutations
    )


def _text_fields(source: AnySource) -> list[str]:
    return [source.fields.text] if isinstance(source.fields.text, str) else list(source.fields.text)


def _check_mapping(source: AnySource, files: list[SourceFile], reading: ReadSettings) -> None:
    """Look for the mapped fields of a local source in the first rows of its first structured file."""
    structured = [file for file in files if format_of(file.name)[0] not in ("txt", "md", "py")]
    if source.kind != "local" or not structured:
        return
    mapped = {"text": _text_fields(source)}
    for key in ("group", "id"):
        name = getattr(source.fields, key)
        if name and key not in source.fields.optional:
            mapped[key] = [name]
    first = next(read_blocks(source.name, structured, reading, Cursor()), None)
    if first:
        check_fields(first, mapped)


def _check_losses(number: int, source: AnySource, segments: Segments) -> None:
    read, removed = segments.rows_read(number), segments.removed(number)
    if not read:
        raise DataError(f'source "{source.name}" has no rows', fix="check that its files are not empty")
    lost = sum(removed.values())
    if lost > source.max_removed_fraction * read:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in removed.most_common(3))
        raise DataError(
            f'source "{source.name}" loses {lost:,} of {read:,} rows (max_removed_fraction '
            f"{source.max_removed_fraction}): {reasons}",
            fix="check the field mapping and the preset, or raise max_removed_fraction",
        )
