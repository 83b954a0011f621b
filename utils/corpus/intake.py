"""
Intake: a source of the config -> the settings of its blocks, and the blocks themselves from any row on.

    >>> intake = Intake(config, stage, tokenizer)         # builds the index of the evaluation sets, once
    >>> settings, blocks = intake.open(source, cursor)
    >>> for block in blocks:
    ...     process_block(settings, block)
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from glob import glob

from utils.config.corpus import CorpusConfig, EvaluationSet
from utils.config.corpus_sources import SUPPORTED, AnySource
from utils.corpus.blocks import BlockSettings, Tokenizer
from utils.corpus.clean import clean
from utils.corpus.decontaminate import IndexReference, SetCounts, build_index
from utils.corpus.dedup import permutations
from utils.corpus.docstrings import installed_files
from utils.corpus.evaluation import texts_of_set
from utils.corpus.fields import Mapping, checked, mapping_of, required_fields
from utils.corpus.hub import pinned_blocks
from utils.corpus.language import LanguageSettings
from utils.corpus.pii import MaskSettings, mask
from utils.corpus.quality import resolve_rules
from utils.corpus.readers import SourceFile, format_of
from utils.corpus.sources import Cursor, RawBlock, ReadSettings, read_blocks
from utils.pipeline.errors import ConfigError, DataError
from utils.pipeline.stage import Stage

INDEX_FOLDER = ".journal/evaluation"


class Intake:
    """What the sources of a run share, and the way to open each of them."""

    def __init__(self, config: CorpusConfig, stage: Stage, tokenizer: Tokenizer | None = None) -> None:
        self._config, self._stage, self._tokenizer = config, stage, tokenizer
        dedup = config.deduplicate
        self._permutations = permutations(dedup.bands * dedup.rows, dedup.seed) if dedup.near else None
        self._masks = MaskSettings(config.clean.urls, config.clean.pii)
        language = config.language
        self._language = LanguageSettings(
            tuple(language.keep), language.min_confidence, language.on_unknown == "keep"
        )
        self.evaluation_sets: dict[str, SetCounts] = {}
        """Name of each evaluation set -> what became of its texts."""
        self._index = self._build_index() if config.decontaminate.against else None

    def open(self, source: AnySource, start: Cursor) -> tuple[BlockSettings, Iterator[RawBlock]]:
        """
        Return the frozen settings that travel to the workers with each block, and the blocks from `start` on.
        ConfigError when a mapped field occurs nowhere in the first rows.
        """
        mapping = _mapping(source)
        blocks = self._blocks(source, mapping, start)
        if start == Cursor() and source.kind == "hub":
            blocks = checked(blocks, required_fields(source.fields))
        if start == Cursor() and source.kind == "local":
            with_all_columns = ReadSettings(split_on=source.split_on)
            first = read_blocks(source.name, self._files(source), with_all_columns, start)
            next(checked(first, required_fields(source.fields)), None)
        return self._settings(source, mapping), blocks

    def _settings(self, source: AnySource, mapping: Mapping) -> BlockSettings:
        config = self._config
        return BlockSettings(
            mapping=mapping,
            rules=resolve_rules(source.preset, source.rules, config.language.keep),
            seed=config.seed,
            split_by=config.split.by,
            ngram_words=config.deduplicate.ngram_words,
            permutations=self._permutations,
            masks=self._masks,
            language=self._language,
            evaluation_sets=self._index,
            cut_passages=config.decontaminate.action == "passage",
            tokenizer=self._tokenizer,
        )

    def _blocks(self, source: AnySource, mapping: Mapping, start: Cursor) -> Iterator[RawBlock]:
        columns = sorted({name.split(".")[0] for name in mapping.names} | set(mapping.names))
        if source.kind == "hub":
            return pinned_blocks(self._stage, source, columns, start)
        reading = ReadSettings(columns, source.split_on) if source.kind == "local" else ReadSettings()
        return read_blocks(source.name, self._files(source), reading, start)

    def _files(self, source: AnySource) -> list[SourceFile]:
        """
        Return the files of a source; those of other artifacts and of local folders through verified readers.
        """
        if source.kind == "docstrings":
            return installed_files(source.packages)
        if source.kind == "generated":
            generated, name = self._stage.input("generated"), f"{source.dataset}/dataset.jsonl"
            return [SourceFile(generated.file(name).name, partial(generated.open, name))]
        return _local_files(source.name, source.paths, self._stage)

    def _build_index(self) -> IndexReference:
        config = self._config.decontaminate
        sets = [(one.name, self._texts(one)) for one in config.against]
        folder = self._stage.partial / INDEX_FOLDER
        reference, self.evaluation_sets = build_index(sets, config.ngram_words, folder)
        for name, found in self.evaluation_sets.items():
            self._stage.source(f"evaluation.{name}").count(found.items, found.items - found.ignored)
            if not found.ngrams:
                raise DataError(
                    f'evaluation set "{name}" has no text of 8 words or more in its fields',
                    fix=f'set "fields" of decontaminate.against "{name}"',
                )
        return reference

    def _texts(self, evaluation: EvaluationSet) -> Iterator[str]:
        """The texts of an evaluation set, cleaned and masked as documents are, so that both read alike."""
        files = _local_files(f"evaluation.{evaluation.name}", evaluation.paths, self._stage)
        for text in texts_of_set(evaluation.name, evaluation.fields, files):
            yield mask(clean(text), self._masks).text


def _local_files(name: str, patterns: list[str], stage: Stage) -> list[SourceFile]:
    opened = stage.source(name)
    files = [
        SourceFile(stage.workspace.relative(path), partial(opened.open, path), path) for path in opened.files
    ]
    for file in files:
        try:
            form = format_of(file.name)[0]
        except ConfigError:
            form = "py"
        if form == "py":
            pattern = _pattern_of(file, patterns, stage)
            raise ConfigError(
                f'{file.name}, which {pattern} of "{name}" matches, is an unknown kind of file',
                fix=f"supported are {SUPPORTED}; move other files away or narrow the pattern",
            )
    return files


def _pattern_of(file: SourceFile, patterns: list[str], stage: Stage) -> str:
    for pattern in patterns:
        if str(file.path) in glob(str(stage.workspace.path(pattern)), recursive=True):
            return pattern
    return patterns[0]


def _mapping(source: AnySource) -> Mapping:
    if source.kind in ("local", "hub"):
        return mapping_of(source.fields)
    return Mapping(meta=(("id", "id"),))


def check_losses(source: AnySource, read: int, removed: Counter[str]) -> None:
    """DataError for a source without rows, or one that lost more of them than its config allows."""
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
