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

from dataclasses import dataclass
from pathlib import Path

from gguf import TokenType

from utils.pipeline.errors import ConfigError, UpstreamError
from utils.pipeline.tokenizer_model import ModelSettings, model_settings


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
    settings = model_settings(path.read_bytes())
    _refuse_foreign_recipes(model, settings)
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
        add_space_prefix=settings.add_dummy_prefix,
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


def _refuse_foreign_recipes(model, settings: ModelSettings) -> None:
    byte_pieces = sum(model.is_byte(i) for i in range(model.get_piece_size()))
    problem = ""
    if settings.kind != "bpe":
        problem = f"its model type is {settings.kind}, llama.cpp needs bpe"
    elif byte_pieces != 256 or not settings.byte_fallback:
        problem = f"it has {byte_pieces} of the 256 byte pieces, without which llama.cpp aborts"
    elif settings.normaliser != "identity":
        problem = f"its normaliser is {settings.normaliser}, llama.cpp has none"
    elif settings.remove_extra_whitespaces:
        problem = "it removes extra blanks, llama.cpp keeps them"
    if problem:
        raise ConfigError(
            f"tokenizer.model cannot be written to GGUF: {problem}",
            fix='train the tokenizer with stage 30, "recipe": "llama_bpe"',
        )
