"""
tokenizer.json and tokenizer_config.json: the same tokenizer for the tokenizers and transformers libraries.

Built here from the pieces, because transformers' converter needs protobuf, which is installed only by
accident. The merges of BPE are every split of a piece into two pieces, by score, then left id, then right id.

    >>> write_hf_files(folder)                           # reads tokenizer.model, writes both files
    >>> transformers.AutoTokenizer.from_pretrained(folder)
"""

import json
from pathlib import Path

import sentencepiece

from utils.pipeline.tokenizer_files import CONFIG_FILE, JSON_FILE, MODEL_FILE
from utils.tokenizer.words import WORD_MARK, is_text

# the library's unigram would read a typed "<s>" as the piece; the letters of the spelling cost less than this
NEVER = -1_000.0


def write_hf_files(folder: Path, recipe: str = "llama_bpe") -> None:
    """Write tokenizer.json and tokenizer_config.json next to tokenizer.model."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    text = build_tokenizer(processor, recipe).to_str(pretty=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    config = json.dumps(tokenizer_config(), indent=1, sort_keys=True)
    (folder / CONFIG_FILE).write_text(config + "\n", encoding="utf-8")


def build_tokenizer(processor: sentencepiece.SentencePieceProcessor, recipe: str) -> "object":
    """Return a `tokenizers.Tokenizer` that gives the ids of the SentencePiece model."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers

    size = processor.get_piece_size()
    tokenizer = Tokenizer(_unigram(processor) if recipe == "unigram" else _bpe(processor))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_MARK, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    tokenizer.add_special_tokens(
        [AddedToken(processor.id_to_piece(i), special=True, normalized=False) for i in control]
    )
    return tokenizer


def _bpe(processor: sentencepiece.SentencePieceProcessor) -> "object":
    from tokenizers import models

    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    return models.BPE(
        vocab=vocabulary, merges=merges_of(processor), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )


def _unigram(processor: sentencepiece.SentencePieceProcessor) -> "object":
    from tokenizers import models

    scored = [
        (processor.id_to_piece(i), processor.get_score(i) if is_text(processor, i) else NEVER)
        for i in range(processor.get_piece_size())
    ]
    return models.Unigram(scored, unk_id=processor.unk_id(), byte_fallback=True)


def merges_of(processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Return all merges in the order in which BPE must try them."""
    size = processor.get_piece_size()
    normal = {processor.id_to_piece(i): i for i in range(size) if is_text(processor, i)}
    found = []
    for piece, i in normal.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in normal and right in normal:
                found.append((-processor.get_score(i), normal[left], normal[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def tokenizer_config() -> dict:
    """
    Return tokenizer_config.json: no automatic BOS or EOS, no prefix space, nothing tidied up on decoding.
    """
    return {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
    }
