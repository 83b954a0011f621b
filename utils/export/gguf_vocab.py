"""
The vocabulary of a GGUF file, read from a SentencePiece `tokenizer.model`.

llama.cpp re-implements SentencePiece BPE and knows no normaliser, so only one kind of model means the same
there: BPE with byte pieces, identity normalisation and untouched blanks. Everything else is refused here
rather than tokenised differently later (unigram: 155 of 165 probe texts differ; without byte pieces the
process aborts).

    vocabulary = read_vocabulary(Path("checkpoints/demo/merged"), end_of_turn="<|im_end|>")
    vocabulary.pieces[vocabulary.eos]       # "</s>"
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gguf import TokenType

from utils.pipeline.errors import ConfigError, UpstreamError

MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
TRAINER_SPEC, NORMALIZER_SPEC = 2, 3  # field numbers of sentencepiece_model.proto
MODEL_TYPE, BYTE_FALLBACK = 3, 35
RULE_NAME, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 1, 3, 4


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in id order with the ids and switches that llama.cpp needs; -1 means absent."""

    pieces: list[str]
    scores: list[float]
    types: list[int]
    bos: int
    eos: int
    unk: int
    pad: int
    eot: int
    add_space_prefix: bool


def read_vocabulary(folder: Path, end_of_turn: str) -> Vocabulary:
    """
    Read `tokenizer.model` of a checkpoint folder; ConfigError when llama.cpp would tokenise it
    differently.
    """
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ConfigError(
            f"{folder} has no tokenizer.model: only SentencePiece vocabularies can be written to GGUF",
            fix="convert a model whose tokenizer was trained by stage 30 with recipe llama_bpe",
        )
    model = SentencePieceProcessor(model_file=str(path))
    fields = _specs(path.read_bytes())
    _refuse_foreign_recipes(model, fields)
    size = model.get_piece_size()
    end_of_turn_id = model.piece_to_id(end_of_turn)
    return Vocabulary(
        pieces=[model.id_to_piece(i) for i in range(size)],
        scores=[model.get_score(i) for i in range(size)],
        types=[int(_token_type(model, i)) for i in range(size)],
        bos=model.bos_id(),
        eos=model.eos_id(),
        unk=model.unk_id(),
        pad=model.pad_id(),
        eot=end_of_turn_id if end_of_turn_id != model.unk_id() else -1,
        add_space_prefix=bool(fields.get((NORMALIZER_SPEC, ADD_DUMMY_PREFIX), 1)),
    )


def pad_to_rows(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """Give every embedding row a token: rows beyond the tokenizer become unused padding pieces."""
    missing = rows - len(vocabulary.pieces)
    if missing < 0:
        raise UpstreamError(
            f"the model has {rows} embedding rows but its tokenizer has {len(vocabulary.pieces)} pieces",
            fix="convert the model with the tokenizer that it was trained with",
        )
    return Vocabulary(
        **{
            **vars(vocabulary),
            "pieces": vocabulary.pieces + [f"[PAD{i}]" for i in range(missing)],
            "scores": vocabulary.scores + [-1000.0] * missing,
            "types": vocabulary.types + [int(TokenType.UNUSED)] * missing,
        }
    )


def _token_type(model, piece_id: int) -> TokenType:
    if model.is_unknown(piece_id):
        return TokenType.UNKNOWN
    if model.is_control(piece_id):
        return TokenType.CONTROL
    if model.is_byte(piece_id):
        return TokenType.BYTE
    if model.is_unused(piece_id):
        return TokenType.UNUSED
    return TokenType.NORMAL


def _refuse_foreign_recipes(model, fields: dict[tuple[int, int], int | bytes]) -> None:
    kind = MODEL_TYPES.get(int(fields.get((TRAINER_SPEC, MODEL_TYPE), 1)), "unknown")
    rule = bytes(fields.get((NORMALIZER_SPEC, RULE_NAME), b"")).decode("utf-8", "replace")
    byte_pieces = sum(model.is_byte(i) for i in range(model.get_piece_size()))
    problem = ""
    if kind != "bpe":
        problem = f"its model type is {kind}, llama.cpp needs bpe"
    elif byte_pieces != 256 or not fields.get((TRAINER_SPEC, BYTE_FALLBACK), 0):
        problem = f"it has {byte_pieces} of the 256 byte pieces, without which llama.cpp aborts"
    elif rule not in ("", "identity"):
        problem = f"its normaliser is {rule}, llama.cpp has none"
    elif fields.get((NORMALIZER_SPEC, REMOVE_EXTRA_WHITESPACES), 1):
        problem = "it removes extra blanks, llama.cpp keeps them"
    if problem:
        raise ConfigError(
            f"tokenizer.model cannot be written to GGUF: {problem}",
            fix='train the tokenizer with stage 30, "recipe": "llama_bpe"',
        )


def _specs(serialized: bytes) -> dict[tuple[int, int], int | bytes]:
    """Scalar fields of trainer and normaliser spec by (spec, field) number.

    Read from the wire format, so that no protobuf package is needed: it is here only by way of other
    packages.
    """
    found: dict[tuple[int, int], int | bytes] = {}
    for spec, body in _wire_fields(serialized):
        if spec in (TRAINER_SPEC, NORMALIZER_SPEC) and isinstance(body, bytes):
            found.update({(spec, number): value for number, value in _wire_fields(body)})
    return found


def _wire_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        else:
            length = 4 if wire_type == 5 else 8
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
