"""
Virtual shards: raw text files cut at record boundaries, each part read as an endless stream of rows.

    >>> text = RawText("raw.0", digest, files, Encoder(tokenizer.encode_text, special, tokenizer.vocab_size))
    >>> shard = text.shards(8)[3]
    >>> piece = shard.next_piece(num_rows=128, row_tokens=256)    # 128 rows, or those left of the epoch
    >>> piece.block.rows([0, 1]).tokens.shape                     # (2, 257)

Documents become BOS + ids + EOS and are put end to end; row i of a shard's epoch is its ids [iT, iT + T], as
in a packed dataset of mode "concat", the last row filled up with padding. One document in 200 is validation
and in no row, told by a hash of its text.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from xxhash import xxh64_intdigest

from utils.packing.dataset import Batch, Split
from utils.packing.index import SpecialIds
from utils.packing.raw import RawFile, Record
from utils.pipeline.errors import ConfigError, DataError

Encode = Callable[[list[str]], list[np.ndarray]]
VALIDATION_OF_1000 = 5
ENCODED_CHARACTERS = 1 << 15
SAMPLED_PLACES = 64


def is_validation(text: str) -> bool:
    """Whether a document is kept for validation: xxHash64 of its UTF-8 bytes, mod 1,000, is below 5."""
    return xxh64_intdigest(text.encode()) % 1000 < VALIDATION_OF_1000


class Encoder(NamedTuple):
    """Text -> ids, with the ids that stand around a document."""

    encode: Encode
    special: SpecialIds
    vocab_size: int

    def documents(self, texts: list[str]) -> list[np.ndarray]:
        """BOS + ids + EOS of each text (without BOS where the tokenizer has none)."""
        bos, eos = [self.special.bos] if self.special.bos >= 0 else [], [self.special.eos]
        return [np.concatenate([bos, ids, eos]).astype(self.dtype) for ids in self.encode(texts)]

    @property
    def dtype(self) -> type:
        return np.uint16 if self.vocab_size <= 1 << 16 else np.uint32


class TokenBlock:
    """Whole or trimmed documents end to end, in memory, read as rows of T + 1 ids that overlap by one."""

    def __init__(self, documents: Sequence[np.ndarray], row_tokens: int, padding: int) -> None:
        self.sequence_length, self._padding = row_tokens, padding
        self._ids = np.concatenate([*documents, np.empty(0, np.uint16)])
        self.starts = np.cumsum([0, *map(len, documents)])[:-1]

    @property
    def num_ids(self) -> int:
        return len(self._ids)

    @property
    def num_rows(self) -> int:
        """Rows with something to predict; the last may end in padding."""
        return max(0, -(-(self.num_ids - 1) // self.sequence_length))

    def rows(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return these rows; position restarts with each document and each row."""
        begin = np.asarray(indices, np.int64)[:, None] * self.sequence_length
        place = begin + np.arange(self.sequence_length + 1)
        inside = place < self.num_ids
        place = np.minimum(place, self.num_ids - 1)
        document = np.searchsorted(self.starts, place, side="right") - 1
        tokens = np.where(inside, self._ids[place], self._padding).astype(np.int64)
        position = np.where(inside, place - np.maximum(self.starts[document], begin), 0)
        return Batch(tokens, np.where(inside, document, -1).astype(np.int32), position.astype(np.int32))


class Place(NamedTuple):
    """Where a row begins: an id of the document at `start` of a file, in an epoch of its shard."""

    epoch: int = 0
    file: int = 0
    start: int = 0
    offset: int = 0


class Document(NamedTuple):
    """Ids from `offset` on of the document at `start` of a file."""

    file: int
    start: int
    offset: int
    ids: np.ndarray


class Segment(NamedTuple):
    """Part of a file: from the record at `start` up to the one at `end`."""

    file: int
    start: int
    end: int


class RawText:
    """Files of one kind as one text; `name` is for messages, `digest` says which bytes they are."""

    def __init__(self, name: str, digest: str, files: Sequence[RawFile], encoder: Encoder) -> None:
        self.name, self.digest, self.files, self.encoder = name, digest, list(files), encoder
        kinds = sorted({file.path.suffix for file in files})
        if len(kinds) > 1:
            raise ConfigError(f"{name}: files of kind {' and '.join(kinds)}", fix="give each kind an entry")

    @property
    def size(self) -> int:
        """Bytes of all files; rows, when they are parquet."""
        return sum(file.size for file in self.files)

    def shards(self, count: int) -> list["Shard"]:
        """The text in `count` parts of about equal size, cut at record boundaries."""
        cuts = [self._cut(self.size * k // count) for k in range(count)] + [(len(self.files), 0)]
        return [Shard(self, number, self._between(*cut)) for number, cut in enumerate(pairwise(cuts))]

    def _cut(self, at: int) -> tuple[int, int]:
        """The first place at or behind `at` of the whole text where a record begins."""
        for number, file in enumerate(self.files):
            if at < file.size and (start := file.boundary(at)) < file.size:
                return number, start
            at = max(0, at - file.size)
        return len(self.files), 0

    def _between(self, first: tuple[int, int], last: tuple[int, int]) -> list[Segment]:
        found = []
        for number in range(first[0], min(last[0] + 1, len(self.files))):
            start = first[1] if number == first[0] else 0
            end = last[1] if number == last[0] else self.files[number].size
            found += [Segment(number, start, end)] if start < end else []
        return found

    def sample(self, split: Split, max_tokens: int, row_tokens: int) -> tuple[TokenBlock, float]:
        """
        Documents of a split from evenly spread places, about `max_tokens` ids or all there are, and ids per
        unit of `size` among them. DataError when there are none.
        """
        documents: list[np.ndarray] = []
        ids = read = 0
        for shard in self.shards(SAMPLED_PLACES):
            found = 0
            for record, document in shard.sampled(split == "val"):
                documents.append(document)
                found, read = found + len(document), read + record.end - record.start
                if found >= max_tokens / SAMPLED_PLACES:
                    break
            ids += found
        if not documents:
            kind = "validation, as 1 in 200 does" if split == "val" else "training"
            raise DataError(
                f"{self.name}: no document belongs to {kind}",
                fix="give more text, check split_on, or prepare and pack it (stages 20 and 40)",
            )
        return TokenBlock(documents, row_tokens, self.encoder.special.padding), ids / read


class Piece(NamedTuple):
    """Consecutive rows of a shard, and where the row after them begins."""

    block: TokenBlock
    num_rows: int
    after: Place


class Shard:
    """One part of a text, read from any place on, again and again."""

    def __init__(self, text: RawText, number: int, segments: Sequence[Segment]) -> None:
        self._text, self.number, self._segments = text, number, list(segments)
        self._stream: Iterator[Document] = iter(())
        self._waiting: deque[Document] = deque()
        self.go_to(self.begin(0))

    def begin(self, epoch: int) -> Place:
        """Where an epoch starts."""
        first = self._segments[0] if self._segments else Segment(0, 0, 0)
        return Place(epoch, first.file, first.start)

    def go_to(self, place: Place) -> None:
        """Read on from here."""
        self._place = place
        self._waiting.clear()
        self._stream = self._documents(place)

    def next_piece(self, num_rows: int, row_tokens: int) -> Piece:
        """The next rows, fewer where the epoch ends. DataError when the shard holds no training document."""
        wanted, documents = num_rows * row_tokens + 1, []
        have = 0
        while have < wanted and (document := self._next_document()) is not None:
            documents.append(document)
            have += len(document.ids)
        block = TokenBlock([each.ids for each in documents], row_tokens, self._text.encoder.special.padding)
        if not block.num_rows:
            raise DataError(
                f"{self._text.name}: part {self.number} of the text holds no training document",
                fix="it is too small to be read in parts: prepare and pack it (stages 20 and 40)",
            )
        if block.num_rows <= num_rows and self._is_over():
            self.go_to(self.begin(self._place.epoch + 1))
            return Piece(block, block.num_rows, self._place)
        self._hand_back(documents, block.starts, num_rows * row_tokens)
        return Piece(block, num_rows, self._place)

    def _next_document(self) -> Document | None:
        return self._waiting.popleft() if self._waiting else next(self._stream, None)

    def _is_over(self) -> bool:
        """Whether the epoch has no more documents; one that was read to find out waits."""
        if not self._waiting:
            self._waiting.extend([each for each in [next(self._stream, None)] if each is not None])
        return not self._waiting

    def _hand_back(self, documents: list[Document], starts: np.ndarray, used: int) -> None:
        """Put back what lies behind `used` ids: the next row begins there."""
        last = int(np.searchsorted(starts, used, side="right")) - 1
        trimmed, skip = documents[last], used - int(starts[last])
        rest = trimmed._replace(offset=trimmed.offset + skip, ids=trimmed.ids[skip:])
        self._waiting.extendleft(reversed([rest, *documents[last + 1 :]]))
        self._place = Place(self._place.epoch, rest.file, rest.start, rest.offset)

    def sampled(self, validation: bool) -> Iterator[tuple[Record, np.ndarray]]:
        """The documents of one split from the shard's start, with their records, encoded one by one."""
        for segment in self._segments:
            for record in self._text.files[segment.file].records(segment.start, segment.end):
                if is_validation(record.text) == validation:
                    yield record, self._text.encoder.documents([record.text])[0]

    def _documents(self, place: Place) -> Iterator[Document]:
        """The training documents of the rest of the epoch."""
        skip = place.offset
        for segment in (each for each in self._segments if each.file >= place.file):
            start = place.start if segment.file == place.file else segment.start
            for group in self._groups(Segment(segment.file, start, segment.end)):
                encoded = self._text.encoder.documents([record.text for record in group])
                for record, ids in zip(group, encoded, strict=True):
                    yield Document(segment.file, record.start, skip, ids[skip:])
                    skip = 0

    def _groups(self, segment: Segment) -> Iterator[list[Record]]:
        """Training records, as many at a time as are worth a call of the tokenizer."""
        group: list[Record] = []
        characters = 0
        for record in self._text.files[segment.file].records(segment.start, segment.end):
            if is_validation(record.text):
                continue
            group.append(record)
            characters += len(record.text)
            if characters >= ENCODED_CHARACTERS:
                yield group
                group, characters = [], 0
        if group:
            yield group
