"""
Parity: the same texts through sentencepiece, tokenizers and llama.cpp must give the same ids.

    >>> agreements = compare_libraries(folder, texts, ids, no_gguf="")
    >>> agreements["llama_cpp"][0]
    Agreement(compared=1023, equal=1023, note='')
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
Found = dict[str, tuple[Agreement, list[list[int]]]]


def parity_sample(
    texts: Sequence[tuple[str, str]], ids: list[list[int]], num_probes: int
) -> tuple[list[str], list[list[int]]]:
    """
    Return the probes and up to 1,000 documents of at most 4 million characters in all, with their ids.
    """
    chosen, total = num_probes, 0
    for _, text in texts[num_probes : num_probes + PARITY_DOCUMENTS]:
        total += len(text)
        if total > PARITY_CHARACTERS:
            break
        chosen += 1
    return [text for _, text in texts[:chosen]], ids[:chosen]


def compare_libraries(folder: Path, texts: list[str], ids: list[list[int]], no_gguf: str) -> Found:
    """
    Return, for each library, how far it agrees with `ids`, and its own ids.

    `no_gguf` says why there can be no GGUF ("" if there can). DataError if llama.cpp refuses the vocabulary.
    """
    reference = "sentencepiece" if (folder / MODEL_FILE).is_file() else "tokenizers"
    found: Found = {reference: (Agreement(len(texts), len(texts), "reference"), ids)}
    if reference == "sentencepiece":
        found["tokenizers"] = _with_tokenizers(folder, texts, ids)
    found["llama_cpp"] = (Agreement(note=no_gguf), []) if no_gguf else _with_llama_cpp(folder, texts, ids)
    return found


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
