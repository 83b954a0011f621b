"""
tokenizer.json and tokenizer_config.json: the same tokenizer for the tokenizers and transformers libraries.

Built here from the pieces, because transformers' converter needs protobuf, which is installed only by
accident. The merges are every split of a piece into two pieces, by score, then left id, then right id.

    >>> write_hf_files(folder)                           # reads tokenizer.model, writes both files
    >>> transformers.AutoTokenizer.from_pretrained(folder)
"""

import json
from pathlib import Path

import sentencepiece

from utils.pipeline.tokenizer_identity import MODEL_FILE

WORD_MARK = "\u2581"


def write_hf_files(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json next to tokenizer.model."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    text = build_tokenizer(processor).to_str(pretty=False)
    (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
    config = json.dumps(tokenizer_config(), indent=1, sort_keys=True)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def build_tokenizer(processor: sentencepiece.SentencePieceProcessor) -> "object":
    """Return a `tokenizers.Tokenizer` that gives the ids of the SentencePiece model."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    size = processor.get_piece_size()
    vocabulary = {processor.id_to_piece(i): i for i in range(size)}
    model = models.BPE(
        vocab=vocabulary, merges=merges_of(processor), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(WORD_MARK, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(WORD_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    control = [i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)]
    tokenizer.add_special_tokens(
        [AddedToken(processor.id_to_piece(i), special=True, normalized=False) for i in control]
    )
    return tokenizer


def merges_of(processor: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """Return all merges in the order in which BPE must try them."""
    normal = {}
    for i in range(processor.get_piece_size()):
        if not (processor.is_control(i) or processor.is_unknown(i) or processor.is_byte(i)):
            normal[processor.id_to_piece(i)] = i
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
