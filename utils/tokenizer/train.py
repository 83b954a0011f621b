r"""
The llama_bpe recipe: a SentencePiece BPE model whose ids are equal in sentencepiece, transformers and
llama.cpp.

Of eight recipes tried it is the one that agrees in all three: no normalisation, no dummy prefix, byte
fallback. The text is fed line by line, so a newline is always the single piece <0x0A> and never glued to a
sentence end. One thread and our own sample make the file the same on every machine.

    ids   0 <unk>  1 <s>  2 </s>  3 <pad>  4 <|im_start|>  5 <|im_end|>  6-19 <|reserved_0|> ..  20-275 bytes

    >>> sentences = training_sentences(texts)
    >>> model = train_model(sentences, vocab_size=4096)             # the bytes of tokenizer.model
"""

import io
import json
import re
from collections.abc import Iterable, Iterator

from utils.pipeline.errors import DataError
from utils.pipeline.hashing import unit_hash

RESERVED = [f"<|reserved_{i}|>" for i in range(14)]
CONTROL_SYMBOLS = ["<|im_start|>", "<|im_end|>", *RESERVED]
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
_TOO_HIGH = re.compile(r"Vocabulary size too high \(\d+\)\. Please set it to a value <= (\d+)")


def choose_documents(sizes: dict[str, int], sample_bytes: int, seed: int) -> set[str]:
    """Return the ids of documents, taken in order of their hash until they hold `sample_bytes`."""
    chosen: set[str] = set()
    total = 0
    for id in sorted(sizes, key=lambda id: (unit_hash("tokenizer", seed, id), id)):
        if total >= sample_bytes:
            break
        chosen.add(id)
        total += sizes[id]
    return chosen


def sample_texts(lines: Iterable[bytes], chosen: set[str]) -> Iterator[str]:
    """Yield the texts of the chosen documents of a corpus split, in shard order."""
    for line in lines:
        row = json.loads(line)
        if row["id"] in chosen:
            yield row["text"]


def document_sizes(lines: Iterable[bytes]) -> dict[str, int]:
    """Return the UTF-8 size of every document of a corpus split, by id."""
    rows = map(json.loads, lines)
    return {row["id"]: len(row["text"].encode()) for row in rows}


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


def train_model(sentences: Iterable[str], vocab_size: int) -> bytes:
    """Train and return the bytes of tokenizer.model. DataError when the text cannot give so many pieces."""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size, **RECIPE
        )
    except RuntimeError as error:
        raise _readable(str(error), vocab_size) from None
    return model.getvalue()


def _readable(message: str, vocab_size: int) -> DataError:
    too_high = _TOO_HIGH.search(message)
    if too_high:
        return DataError(
            f"the corpus is too small for a vocabulary of {vocab_size:,}",
            fix=f"set vocab_size to {too_high[1]} or less, or add text",
        )
    return DataError(
        f"SentencePiece could not train on this corpus: {message.strip()}",
        fix="add text, or more varied text",
    )
