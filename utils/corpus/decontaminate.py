"""
Decontamination: which passages of a document also stand in an evaluation set.

Evaluation texts become an index of word n-grams, sorted 64-bit hashes in files that every worker maps into
memory; a text of 8 words or more that is shorter than an n-gram is looked for as a whole. Words are compared
without case and outer punctuation (utils/corpus/words.py).

    >>> reference, counts = build_index([("exam", ["What is the name of ..."])], 13, folder)
    >>> find_hits(TextView(text), open_index(reference))
    [Hit(set='exam', first=4, last=16)]
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.corpus.textview import TextView
from utils.corpus.words import ngram_hashes_of, word_hashes
from utils.pipeline.errors import UpstreamError
from utils.pipeline.hashing import sha256_hex

SHORTEST_ITEM = 8
_LIST = "index.json"


class Hit(NamedTuple):
    """A passage that an evaluation set holds: words `first` to `last` of the document."""

    set: str
    first: int
    last: int


@dataclass
class SetCounts:
    """What became of the texts of an evaluation set."""

    items: int = 0
    whole: int = 0
    """Shorter than an n-gram, looked for as a whole."""
    ignored: int = 0
    """Too short to mean anything."""
    ngrams: int = 0


@dataclass(frozen=True)
class IndexReference:
    """Where the index lies and what its list of files hashes to: all that travels to a worker."""

    folder: str
    sha256: str


@dataclass(frozen=True)
class Index:
    """Sorted hashes and the number of the set of each, by length in words."""

    names: list[str]
    hashes: dict[int, np.ndarray]
    sets: dict[int, np.ndarray]


@dataclass
class _Growing:
    hashes: list[np.ndarray] = field(default_factory=list)
    sets: list[np.ndarray] = field(default_factory=list)

    def merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct hashes, sorted; of two sets that hold one the first is named."""
        hashes, first = np.unique(np.concatenate(self.hashes), return_index=True)
        return hashes, np.concatenate(self.sets)[first]


def build_index(
    sets: Sequence[tuple[str, Iterable[str]]], ngram_words: int, folder: Path
) -> tuple[IndexReference, dict[str, SetCounts]]:
    """Write the index of these sets (name, texts) to `folder`, the same bytes for the same texts."""
    growing: dict[int, _Growing] = {}
    counts = {name: SetCounts() for name, _ in sets}
    for number, (name, texts) in enumerate(sets):
        for text in texts:
            _add(growing, number, word_hashes(text.split()), ngram_words, counts[name])
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for length in sorted(growing):
        for part, array in zip(("hashes", "sets"), growing[length].merged(), strict=True):
            path = folder / f"{length}.{part}.npy"
            np.save(path, array)
            files[path.name] = sha256_hex(path.read_bytes())
    listed = json.dumps({"names": list(counts), "files": files}, sort_keys=True).encode()
    (folder / _LIST).write_bytes(listed)
    return IndexReference(str(folder), sha256_hex(listed)), counts


def _add(
    growing: dict[int, _Growing], number: int, words: np.ndarray, ngram_words: int, counts: SetCounts
) -> None:
    counts.items += 1
    length = min(len(words), ngram_words)
    if length < min(SHORTEST_ITEM, ngram_words):
        counts.ignored += 1
        return
    ngrams = ngram_hashes_of(words, length)
    counts.whole += length < ngram_words
    counts.ngrams += len(ngrams)
    of_length = growing.setdefault(length, _Growing())
    of_length.hashes.append(ngrams)
    of_length.sets.append(np.full(len(ngrams), number, np.uint16))


@lru_cache(maxsize=4)
def open_index(reference: IndexReference) -> Index:
    """Map an index into memory, once per process. UpstreamError when it is not the one that was built."""
    folder = Path(reference.folder)
    listed = (folder / _LIST).read_bytes()
    _expect(folder / _LIST, listed, reference.sha256)
    described = json.loads(listed)
    for name, sha256 in described["files"].items():
        _expect(folder / name, (folder / name).read_bytes(), sha256)
    parts: dict[str, dict[int, np.ndarray]] = {"hashes": {}, "sets": {}}
    for name in described["files"]:
        length, part, _ = name.split(".")
        parts[part][int(length)] = np.load(folder / name, mmap_mode="r")
    return Index(described["names"], parts["hashes"], parts["sets"])


def _expect(path: Path, data: bytes, sha256: str) -> None:
    found = sha256_hex(data)
    if found != sha256:
        raise UpstreamError(
            f"tampered ({path.name}: expected {sha256[:12]}, actual {found[:12]})",
            fix="rerun: the index of the evaluation sets is built again",
        )


def find_hits(view: TextView, index: Index) -> list[Hit]:
    """Return every passage of the text that the index holds, in text order."""
    hits = []
    for length, known in index.hashes.items():
        ngrams = ngram_hashes_of(view.word_hashes, length)
        if not len(ngrams):
            continue
        places = np.searchsorted(known, ngrams).clip(max=len(known) - 1)
        for at in np.flatnonzero(known[places] == ngrams).tolist():
            name = index.names[int(index.sets[length][places[at]])]
            hits.append(Hit(name, *_words_at(view, at, length)))
    return sorted(hits, key=lambda hit: (hit.first, hit.last))


def _words_at(view: TextView, at: int, length: int) -> tuple[int, int]:
    """Numbers of the first and last word of an n-gram, counting the words without a hash too."""
    return int(view.hashed_words[at]), int(view.hashed_words[at + length - 1])


def passage(view: TextView, hit: Hit) -> str:
    return " ".join(view.words[hit.first : hit.last + 1])


def cut_passages(view: TextView, hits: Sequence[Hit]) -> tuple[str, dict[str, int]]:
    """Return the text without the paragraphs that hits touch, and how many went for each set."""
    ends = np.cumsum([len(paragraph.split()) for paragraph in view.paragraphs])
    cut: dict[int, str] = {}
    for hit in hits:
        first, last = np.searchsorted(ends, [hit.first, hit.last], side="right")
        for number in range(first, last + 1):
            cut.setdefault(number, hit.set)
    kept = [paragraph for number, paragraph in enumerate(view.paragraphs) if number not in cut]
    names = sorted(set(cut.values()))
    return "\n\n".join(kept), {name: sum(found == name for found in cut.values()) for name in names}


def counts_as_json(counts: dict[str, SetCounts]) -> dict:
    return {name: asdict(found) for name, found in counts.items()}
