r"""
The recipes: `llama_bpe`, a SentencePiece BPE model whose ids are equal in sentencepiece, tokenizers and
llama.cpp, and `unigram` for those who need no GGUF.

Of eight recipes tried llama_bpe is the one that agrees in all three: no normalisation, no dummy prefix, byte
fallback. The text is fed line by line, so a newline is always the single piece <0x0A> and never glued to a
sentence end. One thread and our own sample make the file the same on every machine.

    ids   0 <unk>  1 <s>  2 </s>  3 <pad>  4 <|im_start|>  5 <|im_end|>  6-19 <|reserved_0|> ..  20-275 bytes

    >>> sentences = training_sentences(choose_sample(lines, 64 << 20, seed=0).texts)
    >>> model = train_model(sentences, vocab_size=4096)             # the bytes of tokenizer.model
"""

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import itemgetter

from utils.pipeline.errors import DataError
from utils.pipeline.hashing import unit_hash

RESERVED = [f"<|reserved_{i}|>" for i in range(14)]
CONTROL_SYMBOLS = ["<|im_start|>", "<|im_end|>", *RESERVED]
SPECIAL_PIECES = ["<unk>", "<s>", "</s>", "<pad>", *CONTROL_SYMBOLS]
FIRST_BYTE, FIRST_LEARNED = len(SPECIAL_PIECES), len(SPECIAL_PIECES) + 256
# SentencePiece leaves out lines of more than 4,192 bytes
MAX_LINE_BYTES = 4_000
RECIPE: dict[str, object] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 0.9995,
    "max_sentencepiece_length": 16,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": 3,
    "control_symbols": CONTROL_SYMBOLS,
    "input_sentence_size": 0,
    "shuffle_input_sentence": False,
    # pieces and scores are the same with more threads, but the file records their number
    "num_threads": 1,
    "minloglevel": 2,
}
# every printable ASCII character is a piece of its own, so that a typed "<s>" is spelled and not looked up
_UNIGRAM = {"model_type": "unigram", "required_chars": "".join(map(chr, range(0x21, 0x7F)))}
RECIPES = {"llama_bpe": RECIPE, "unigram": RECIPE | _UNIGRAM}
_TOO_HIGH = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")
_TOO_LOW = re.compile(r"Vocabulary size is smaller than required_chars\. \d+ vs (\d+)")


@dataclass(frozen=True)
class Sample:
    """Texts to train on, in shard order, and how many documents there were to choose from."""

    texts: list[str]
    num_documents: int


def choose_sample(lines: Iterable[bytes], sample_bytes: int, seed: int) -> Sample:
    """
    Choose the documents that come first by their hash, as many as it takes to hold `sample_bytes`.

    One pass over the rows of a split; never holds much more than the sample itself.
    """
    chosen: list[tuple[int, int, int, str]] = []
    held = position = 0
    for position, row in enumerate(map(json.loads, lines), start=1):
        size = len(row["text"].encode())
        heappush(chosen, (-unit_hash("tokenizer", seed, row["id"]), position, size, row["text"]))
        held += size
        while held - chosen[0][2] >= sample_bytes:
            held -= heappop(chosen)[2]
    return Sample([text for _, _, _, text in sorted(chosen, key=itemgetter(1))], position)


def training_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Yield the non-empty lines of texts, cut at a space where they are too long for SentencePiece."""
    for text in texts:
        for line in text.split("\n"):
            if line:
                yield from _cut(line)


def _cut(line: str) -> Iterator[str]:
    data = line.encode()
    while len(data) > MAX_LINE_BYTES:
        at = data.rfind(b" ", 1, MAX_LINE_BYTES)
        if at < 1:
            at = MAX_LINE_BYTES
            while data[at] & 0xC0 == 0x80:
                at -= 1
        yield data[:at].decode()
        data = data[at:]
    yield data.decode()


def train_model(sentences: Iterable[str], vocab_size: int, recipe: str = "llama_bpe") -> bytes:
    """
    Train and return the bytes of tokenizer.model. DataError when the text cannot give just so many pieces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **RECIPES[recipe]
        )
    except RuntimeError as error:
        raise _readable(str(error), vocab_size) from None
    return model.getvalue()


def _readable(message: str, vocab_size: int) -> DataError:
    if too_high := _TOO_HIGH.search(message):
        return DataError(
            f"the corpus is too small for a vocabulary of {vocab_size:,}; "
            f"the largest possible one is {int(too_high[1]):,}",
            fix=f'set "vocab_size" to {too_high[1]} or less, or add text',
        )
    if too_low := _TOO_LOW.search(message):
        return DataError(
            f"a vocabulary of {vocab_size:,} has no room for the {int(too_low[1]):,} characters, bytes and "
            "control symbols that it must hold",
            fix=f'set "vocab_size" to more than {too_low[1]}',
        )
    return DataError(
        f"SentencePiece could not train on this corpus: {message.strip()}",
        fix="add text, or more varied text",
    )
