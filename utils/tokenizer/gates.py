"""
Gates: what a tokenizer must prove before anything is built on it. Each failure is exit 4 with a table of
offenders.

    >>> texts = [Text("probe 1", "Hello world"), Text("books 00ff", "It was the best of times")]
    >>> ids = check_trained(FrozenTokenizer(folder), texts, vocab_size=4096)
    >>> check_density(texts, ids, min_chars_per_token=3.0)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from unicodedata import normalize

from utils.pipeline.errors import DataError
from utils.pipeline.tokenizer_files import Processor
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.parity import Found
from utils.tokenizer.train import FIRST_BYTE, FIRST_LEARNED, SPECIAL_PIECES
from utils.tokenizer.words import WORD_MARK

SHOWN, SHOWN_CHARACTERS = 5, 40
A_BUG = "this is a bug of the recipe or a change of the library: install the versions of requirements.txt"
ANOTHER = "adopt another tokenizer"


class Text(NamedTuple):
    """A text that a tokenizer is proven on, and how a message names it."""

    label: str
    text: str


class Offender(NamedTuple):
    """One line of the table: what is wrong, what it should be, what it is."""

    label: str
    expected: str
    found: str


def proven_texts(rows: Iterable[Mapping]) -> list[Text]:
    """The probes, then the rows of the validation split, named by source and id."""
    probes = [Text(f"probe {i}", probe) for i, probe in enumerate(PROBES)]
    return probes + [Text(f"{row['source']} {row['id'][:12]}", row["text"]) for row in rows]


def check_trained(tokenizer: FrozenTokenizer, texts: Sequence[Text], vocab_size: int) -> list[list[int]]:
    """All gates that a tokenizer of ours must pass but density and parity; returns the ids of the texts."""
    processor = tokenizer.processor
    check_layout(processor, vocab_size)
    check_specials(processor, A_BUG)
    check_word_mark(texts)
    ids = processor.encode([text.text for text in texts])
    check_unknown(processor, texts, ids)
    check_round_trip(texts, processor.decode(ids), lambda text: [text], A_BUG)
    check_same_ids(texts, ids, tokenizer.encode_text([text.text for text in texts]), "FrozenTokenizer")
    return ids


def check_adopted(tokenizer: FrozenTokenizer, texts: Sequence[Text]) -> list[list[int]]:
    """
    The gates of somebody else's tokenizer: usable specials, ids in range, nothing lost but a leading blank.
    """
    processor = tokenizer.processor
    if tokenizer.special("eos") < 0:
        raise DataError("the tokenizer names no EOS, so documents could not be told apart", fix=ANOTHER)
    if getattr(processor, "dropout", 0.0):
        raise DataError(f"its BPE skips merges at random (dropout {processor.dropout})", fix=ANOTHER)
    check_specials(processor, ANOTHER)
    ids = processor.encode([text.text for text in texts])
    check_range(texts, ids, processor.get_piece_size())
    check_round_trip(texts, processor.decode(ids), accepted_spellings, ANOTHER)
    check_same_ids(texts, ids, tokenizer.encode_text([text.text for text in texts]), "FrozenTokenizer")
    return ids


def check_layout(processor: Processor, vocab_size: int) -> None:
    """As many pieces as asked for; control symbols and bytes at the ids that everything else counts on."""
    size = processor.get_piece_size()
    if size != vocab_size:
        raise DataError(f"the tokenizer has {size:,} pieces, asked were {vocab_size:,}", fix=A_BUG)
    fixed = dict(enumerate(SPECIAL_PIECES))
    fixed |= {FIRST_BYTE + byte: f"<0x{byte:02X}>" for byte in range(FIRST_LEARNED - FIRST_BYTE)}
    _refuse(
        "ids have other pieces than they must have",
        [
            Offender(f"id {i}", piece, found)
            for i, piece in fixed.items()
            if (found := processor.id_to_piece(i) if i < size else "") != piece
        ],
        A_BUG,
    )


def check_specials(processor: Processor, fix: str) -> None:
    """
    Each special token is one id of the vocabulary, and its own spelling as user text never gives that id.
    """
    roles = {"unk": processor.unk_id(), "bos": processor.bos_id()}
    roles |= {"eos": processor.eos_id(), "pad": processor.pad_id()}
    size = processor.get_piece_size()
    outside = [Offender(name, f"below {size:,}", f"{i:,}") for name, i in roles.items() if i >= size]
    _refuse("special tokens are outside the vocabulary", outside, fix)
    special = {i for i in roles.values() if i >= 0} | {i for i in range(size) if processor.is_control(i)}
    shared, forged = [], []
    for i in sorted(special):
        piece = processor.id_to_piece(i)
        if processor.piece_to_id(piece) != i:
            shared.append(Offender(f"{piece!a}", f"id {i}", f"id {processor.piece_to_id(piece)}"))
        if i in processor.encode(piece):
            forged.append(Offender(f"{piece!a}", f"not id {i}", f"ids {processor.encode(piece)}"))
    _refuse("special tokens are not a single id", shared, fix)
    _refuse("special tokens can be produced by user text", forged, fix)


def check_word_mark(texts: Sequence[Text]) -> None:
    """SentencePiece decodes U+2581 as a blank, so no text may hold it; stage 20 replaces it by `_`."""
    holding = [
        Offender(t.label, "no U+2581", _around(t.text, t.text.index(WORD_MARK)))
        for t in texts
        if WORD_MARK in t.text
    ]
    _refuse("texts hold U+2581, which decodes as a blank", holding, "rerun 20_prepare_corpus --force")


def check_unknown(processor: Processor, texts: Sequence[Text], ids: Sequence[list[int]]) -> None:
    """No text may need <unk>."""
    unknown = processor.unk_id()
    bad = [
        Offender(text.label, "no <unk>", f"{found.count(unknown)} in {text.text[:SHOWN_CHARACTERS]!a}")
        for text, found in zip(texts, ids, strict=True)
        if unknown in found
    ]
    _refuse("texts encode to <unk>", bad, A_BUG)


def check_range(texts: Sequence[Text], ids: Sequence[list[int]], vocab_size: int) -> None:
    """Every id lies in the vocabulary."""
    bad = [
        Offender(text.label, f"ids below {vocab_size:,}", f"{max(found):,}")
        for text, found in zip(texts, ids, strict=True)
        if found and max(found) >= vocab_size
    ]
    _refuse("texts get ids outside the vocabulary", bad, ANOTHER)


def accepted_spellings(text: str) -> list[str]:
    """What an adopted tokenizer may make of a text: itself, with one more leading blank, in composed form."""
    composed = normalize("NFC", text)
    return [text, f" {text}", composed, f" {composed}"]


def check_round_trip(
    texts: Sequence[Text], back: Sequence[str], accepted: Callable[[str], list[str]], fix: str
) -> None:
    """Decoding must give every text back."""
    lost = []
    for text, decoded in zip(texts, back, strict=True):
        if decoded not in accepted(text.text):
            at = _first_difference(text.text, decoded)
            lost.append(Offender(text.label, _around(text.text, at), _around(decoded, at)))
    _refuse("texts do not survive encode and decode", lost, fix)


def check_density(texts: Sequence[Text], ids: Sequence[list[int]], min_chars_per_token: float) -> None:
    """The mean number of characters per token of validation text must reach the minimum."""
    found = density(texts, ids)
    if found < min_chars_per_token:
        raise DataError(
            f"validation text has {found:.2f} characters per token, "
            f"min_chars_per_token asks for {min_chars_per_token}",
            fix='raise "vocab_size", add text, or lower "min_chars_per_token"',
        )


def density(texts: Sequence[Text], ids: Sequence[list[int]]) -> float:
    """Characters per token."""
    return sum(len(text.text) for text in texts) / max(1, sum(map(len, ids)))


def check_parity(texts: Sequence[Text], found: Found) -> None:
    """Every library that read the tokenizer gives the same ids."""
    reference = next(ids for agreement, ids in found.values() if agreement.note == "reference")
    for library, (agreement, ids) in found.items():
        if agreement.compared:
            check_same_ids(texts[: agreement.compared], reference, ids, library)


def check_same_ids(texts: Sequence[Text], ids: Sequence, theirs: Sequence, library: str) -> None:
    """Both gave each text the same ids."""
    wrong = []
    for text, ours, other in zip(texts, ids, map(list, theirs), strict=True):
        if ours != other:
            at = _first_difference(ours, other)
            parts = (str([int(i) for i in row[at : at + 4]]) for row in (ours, other))
            wrong.append(Offender(f"{text.label}, token {at}", *parts))
    _refuse(f"texts get other ids in {library}", wrong, A_BUG)


def _first_difference(first: Sequence, second: Sequence) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _around(text: str, at: int) -> str:
    start = max(0, at - SHOWN_CHARACTERS // 2)
    return ("..." if start else "") + f"{text[start : start + SHOWN_CHARACTERS]!a}"


def _refuse(what: str, offenders: list[Offender], fix: str) -> None:
    if not offenders:
        return
    rows = [Offender("", "expected", "found"), *offenders[:SHOWN]]
    widths = [max(len(cell) for cell in column) for column in list(zip(*rows, strict=True))[:2]]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    more = [f"  and {len(offenders) - SHOWN:,} more"] if len(offenders) > SHOWN else []
    raise DataError("\n".join([f"{len(offenders):,} {what}:", *lines, *more]), fix=fix)
