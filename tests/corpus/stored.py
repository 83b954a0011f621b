"""
Documents as reading leaves them on disk, made from plain texts.

    documents = stored(tmp_path, {"books": ["some text ...", "another ..."], "web": [...]})
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.config.corpus_sources import FieldMapping
from utils.corpus.blocks import BlockSettings
from utils.corpus.dedup import permutations
from utils.corpus.documents import Documents
from utils.corpus.fields import Mapping as Fields
from utils.corpus.fields import mapping_of
from utils.corpus.packed import BlockTask, PackedBlock, pack_block
from utils.corpus.segments import Segments
from utils.corpus.sources import Cursor, RawBlock

PERMUTATIONS = permutations(120, seed=1)


@dataclass
class Records:
    """A journal that only remembers."""

    records: list[dict] = field(default_factory=list)

    def commit(self, record: dict) -> None:
        self.records.append(json.loads(json.dumps(record)))


class NeverStopped:
    """A stage that nobody asks to stop."""

    stopping = False

    def stop_point(self) -> None:
        pass


def settings(mapping: Fields | None = None, **changes: object) -> BlockSettings:
    """Settings that keep every text as it is."""
    fields = {"rules": [], "seed": 0, "split_by": "group", "ngram_words": 5, "permutations": PERMUTATIONS}
    return BlockSettings(mapping=mapping or mapping_of(FieldMapping()), **(fields | changes))


def packed(source: str, texts: Sequence[str], first: int = 0, **changes: object) -> PackedBlock:
    """A block of these texts, packed."""
    rows = [json.dumps({"text": text}).encode() for text in texts]
    start, end = Cursor(row=first, total=first), Cursor(row=first + len(rows), total=first + len(rows))
    return pack_block(BlockTask(settings(**changes), RawBlock(source, "json", start, end, rows), True))


def stored(
    folder: Path, texts: Mapping[str, Sequence[str]], per_block: int = 1_000, **changes: object
) -> Documents:
    """Commit the texts of each source in blocks, the sources taking turns, and number the documents."""
    segments = Segments(folder, Records(), len(texts))
    longest = max((len(rows) for rows in texts.values()), default=0)
    for first in range(0, longest, per_block):
        for number, (source, rows) in enumerate(texts.items()):
            if first < len(rows):
                block = packed(source, rows[first : first + per_block], first, **changes)
                segments.commit(number, block)
    segments.close()
    return Documents.of(segments)
