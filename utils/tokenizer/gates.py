"""
Gates: what a tokenizer must prove before anything is built on it. Each failure is exit 4 with a table of
offenders.

    >>> parity = check_tokenizer(folder, texts, GateSettings(vocab_size=4096, min_chars_per_token=3.0))
    >>> parity
    {'sentencepiece': 1023, 'tokenizers': 1023, 'llama_cpp': 1023}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import sentencepiece

from utils.pipeline.errors import DataError
from utils.pipeline.tokenizer_identity import MODEL_FILE, PROBES
from utils.tokenizer.llama_cpp import encode_with_llama_cpp

PARITY_DOCUMENTS, PARITY_CHARACTERS = 1_000, 4_000_000
SHOWN = 5


@dataclass(frozen=True)
class GateSettings:
    """What the config asks of the tokenizer."""

    vocab_size: int
    min_chars_per_token: float


def check_tokenizer(folder: Path, texts: Sequence[str], settings: GateSettings) -> dict[str, int]:
    """
    Run all gates on validation texts and the probes; return how many texts agree per library (-1: not
    installed).
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    if processor.get_piece_size() != settings.vocab_size:
        raise DataError(
            f"the tokenizer has {processor.get_piece_size():,} pieces, asked were {settings.vocab_size:,}"
        )
    proven = [*PROBES, *texts]
    ids = processor.encode(proven)
    check_unknown(processor, proven, ids)
    check_round_trip(processor, proven, ids)
    check_specials(processor)
    check_density(texts, ids[len(PROBES) :], settings.min_chars_per_token)
    return check_parity(folder, *parity_sample(proven, ids))


def check_unknown(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str], ids: list[list[int]]
) -> None:
    unknown = processor.unk_id()
    _refuse(
        "encode to <unk>", [ascii(text) for text, found in zip(texts, ids, strict=True) if unknown in found]
    )


def check_round_trip(
    processor: sentencepiece.SentencePieceProcessor, texts: Sequence[str], ids: list[list[int]]
) -> None:
    """Decoding must give every text back, byte for byte."""
    back = processor.decode(ids)
    lost = [f"{a!a} -> {b!a}" for a, b in zip(texts, back, strict=True) if a != b]
    _refuse("do not survive encode and decode", lost)


def check_specials(processor: sentencepiece.SentencePieceProcessor) -> None:
    """A control symbol is one id, and its own spelling as user text never gives that id."""
    control = [i for i in range(processor.get_piece_size()) if processor.is_control(i)]
    forged = [piece for i in control if i in processor.encode(piece := processor.id_to_piece(i))]
    _refuse("are control symbols that user text can produce", forged)


def check_density(texts: Sequence[str], ids: list[list[int]], minimum: float) -> None:
    """The mean number of characters per token must reach the minimum."""
    density = sum(map(len, texts)) / max(1, sum(map(len, ids)))
    if density < minimum:
        raise DataError(
            f"validation text has {density:.2f} characters per token, min_chars_per_token asks for {minimum}",
            fix="raise vocab_size, add text, or lower min_chars_per_token",
        )


def parity_sample(texts: Sequence[str], ids: list[list[int]]) -> tuple[list[str], list[list[int]]]:
    """Return the probes and up to 1,000 documents of at most 4 million characters in all, with their ids."""
    chosen, total = len(PROBES), 0
    for text in islice(texts, len(PROBES), len(PROBES) + PARITY_DOCUMENTS):
        total += len(text)
        if total > PARITY_CHARACTERS:
            break
        chosen += 1
    return list(texts[:chosen]), ids[:chosen]


def check_parity(folder: Path, texts: list[str], ids: list[list[int]]) -> dict[str, int]:
    """The ids of tokenizer.json and of llama.cpp must be those of sentencepiece."""
    others = {
        "tokenizers": encode_with_tokenizers(folder, texts),
        "llama_cpp": encode_with_llama_cpp(folder, texts),
    }
    agreeing = {"sentencepiece": len(texts)}
    for library, found in others.items():
        agreeing[library] = -1 if found is None else len(texts)
        wrong = (
            []
            if found is None
            else [i for i, pair in enumerate(zip(ids, found, strict=True)) if pair[0] != pair[1]]
        )
        _refuse(f"get other ids in {library}", [_first_difference(texts[i], ids[i], found[i]) for i in wrong])
    return agreeing


def encode_with_tokenizers(folder: Path, texts: list[str]) -> list[list[int]]:
    """Return the ids of tokenizer.json, control symbols not parsed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _first_difference(text: str, expected: list[int], found: list[int]) -> str:
    at = next((i for i, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), -1)
    return f"{text[:60]!a}: token {at} is {expected[at : at + 3]}, there {found[at : at + 3]}"


def _refuse(what: str, offenders: list[str]) -> None:
    if offenders:
        table = "".join(f"\n  {offender[:160]}" for offender in offenders[:SHOWN])
        raise DataError(
            f"{len(offenders):,} texts {what}:{table}", fix="this is a bug of the recipe or a library change"
        )
