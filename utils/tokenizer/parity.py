"""
Parity: the same texts through sentencepiece, tokenizers and llama.cpp must give the same ids.

    >>> agreements = compare_libraries(folder, texts, ids, no_gguf="")
    >>> agreements["llama_cpp"][0]
    Agreement(compared=1023, equal=1023, note='')
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from utils.pipeline.tokenizer_files import JSON_FILE, MODEL_FILE, open_json
from utils.tokenizer.llama_cpp import encode_with_llama_cpp


@dataclass(frozen=True)
class Agreement:
    """How many texts one library was given and how many got the ids of the reference; else why not."""

    compared: int = 0
    equal: int = 0
    note: str = ""

    @classmethod
    def of(cls, expected: Sequence[list[int]], found: Sequence[list[int]]) -> "Agreement":
        return cls(len(expected), sum(ours == theirs for ours, theirs in zip(expected, found, strict=True)))


PARITY_DOCUMENTS, PARITY_CHARACTERS = 1_000, 4_000_000
Encode = Callable[[list[str]], list[list[int]]]
Found = dict[str, tuple[Agreement, list[list[int]]]]


class ParitySample(NamedTuple):
    """Texts with their ids in the reference, and what was left out of them ("" for nothing)."""

    texts: list[str]
    ids: list[list[int]]
    note: str = ""


def parity_sample(
    texts: Sequence[tuple[str, str]], ids: list[list[int]], num_probes: int, encode: Encode
) -> ParitySample:
    """
    Return the probes and up to 1,000 documents. Where these hold more than 4 million characters (llama.cpp
    takes 1.5 s for a million), each is cut to an equal part of that, and `encode` gives the ids of what is
    left.
    """
    chosen = [text for _, text in texts[: num_probes + PARITY_DOCUMENTS]]
    documents = chosen[num_probes:]
    if sum(map(len, documents)) <= PARITY_CHARACTERS:
        return ParitySample(chosen, ids[: len(chosen)])
    characters = PARITY_CHARACTERS // len(documents)
    cut = [text[:characters] for text in documents]
    note = f"the first {characters:,} characters of each document"
    return ParitySample([*chosen[:num_probes], *cut], [*ids[:num_probes], *encode(cut)], note)


def compare_libraries(
    folder: Path, texts: list[str], ids: list[list[int]], no_gguf: str, note: str = ""
) -> Found:
    """
    Return, for each library, how far it agrees with `ids`, and its own ids.

    `no_gguf` says why there can be no GGUF ("" if there can), `note` what was left out of the texts.
    DataError if llama.cpp refuses the vocabulary.
    """
    reference = "sentencepiece" if (folder / MODEL_FILE).is_file() else "tokenizers"
    found: Found = {reference: (Agreement(len(texts), len(texts), "reference"), ids)}
    if reference == "sentencepiece":
        found["tokenizers"] = _with_tokenizers(folder, texts, ids)
    found["llama_cpp"] = (Agreement(note=no_gguf), []) if no_gguf else _with_llama_cpp(folder, texts, ids)
    return {library: (_noted(agreement, note), theirs) for library, (agreement, theirs) in found.items()}


def _noted(agreement: Agreement, note: str) -> Agreement:
    """With what was left out of the texts, where it compared any with the reference."""
    return agreement if agreement.note else replace(agreement, note=note)


def _with_tokenizers(folder: Path, texts: list[str], ids: list[list[int]]) -> tuple[Agreement, list]:
    if not (folder / JSON_FILE).is_file():
        return Agreement(note=f"there is no {JSON_FILE}"), []
    theirs = open_json((folder / JSON_FILE).read_bytes(), "", "").encode(texts)
    return Agreement.of(ids, theirs), theirs


def _with_llama_cpp(folder: Path, texts: list[str], ids: list[list[int]]) -> tuple[Agreement, list]:
    theirs = encode_with_llama_cpp(folder, texts)
    if theirs is None:
        return Agreement(note="llama-cpp-python is not installed"), []
    return Agreement.of(ids, theirs), theirs
