"""
Which files are a tokenizer, and how one is opened: tokenizer.model counts where there is one, else
tokenizer.json.

    processor = open_processor(Path("data/demo/tokenizer"))
    processor.encode("Hello world"), processor.get_piece_size()
"""

from functools import lru_cache
from pathlib import Path
from typing import Protocol

from utils.pipeline.errors import DataError

MODEL_FILE, JSON_FILE, CONFIG_FILE = "tokenizer.model", "tokenizer.json", "tokenizer_config.json"
SPECIALS_FILE, TEMPLATE_FILE = "special_tokens_map.json", "chat_template.jinja"
ADOPTED_FILES = (MODEL_FILE, JSON_FILE, CONFIG_FILE, SPECIALS_FILE, TEMPLATE_FILE)
SPECIALS = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}


class Processor(Protocol):
    """The part of sentencepiece.SentencePieceProcessor that this project uses; JsonProcessor has it too."""

    def get_piece_size(self) -> int: ...
    def id_to_piece(self, index: int) -> str: ...
    def piece_to_id(self, piece: str) -> int: ...
    def get_score(self, index: int) -> float: ...
    def is_unknown(self, index: int) -> bool: ...
    def is_control(self, index: int) -> bool: ...
    def is_unused(self, index: int) -> bool: ...
    def is_byte(self, index: int) -> bool: ...
    def unk_id(self) -> int: ...
    def bos_id(self) -> int: ...
    def eos_id(self) -> int: ...
    def pad_id(self) -> int: ...
    def encode(self, texts: str | list[str]) -> list: ...
    def decode(self, ids: list) -> str | list[str]: ...


def carries_tokenizer(folder: Path) -> bool:
    """Whether the folder holds tokenizer files of its own."""
    return (folder / MODEL_FILE).is_file() or (folder / JSON_FILE).is_file()


def model_path(folder: Path) -> Path:
    """The file that decides about ids. DataError if there is none."""
    for name in (MODEL_FILE, JSON_FILE):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} holds no {MODEL_FILE} and no {JSON_FILE}", fix="run 30_train_tokenizer first")


def open_processor(folder: Path) -> Processor:
    """Open the tokenizer of a folder. DataError if its files cannot be read."""
    path = model_path(folder)
    if path.name == MODEL_FILE:
        return open_model(path.read_bytes())
    config, specials = (_text(folder / name) for name in (CONFIG_FILE, SPECIALS_FILE))
    return open_json(path.read_bytes(), config, specials)


@lru_cache(maxsize=8)
def open_model(model: bytes) -> Processor:
    """A SentencePiece model from the bytes of tokenizer.model."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise DataError(f"{MODEL_FILE} is not a SentencePiece model: {error}") from None
    return processor


@lru_cache(maxsize=8)
def open_json(data: bytes, config: str, specials: str) -> Processor:
    """A tokenizer of the `tokenizers` library; `config` and `specials` name its special tokens."""
    from utils.pipeline.tokenizer_json import JsonProcessor

    return JsonProcessor(data, config, specials)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
