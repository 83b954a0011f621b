"""One small tokenizer by the project's recipe for all tests of this folder."""

from pathlib import Path

import pytest

from utils.chat.masks import ChatEncoder
from utils.chat.templates import ChatTemplate
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.hf import write_hf_files
from utils.tokenizer.train import train_model

TEMPLATES = Path(__file__).parents[2] / "config" / "templates"
TEXT = [
    "Once upon a time a small cat sat on the mat and said hello to the dog.",
    "User: what is two and two? Assistant: it is four, system of numbers.",
    "The quick brown fox jumps over the lazy dog; user assistant system tool.",
] * 4


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(train_model(TEXT, vocab_size=400))
    write_hf_files(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> FrozenTokenizer:
    return FrozenTokenizer(tokenizer_folder)


@pytest.fixture(params=["chatml", "plain"])
def encoder(request: pytest.FixtureRequest, tokenizer: FrozenTokenizer) -> ChatEncoder:
    return ChatEncoder(ChatTemplate.load(TEMPLATES / f"{request.param}.jinja"), tokenizer)


@pytest.fixture
def chatml(tokenizer: FrozenTokenizer) -> ChatEncoder:
    return ChatEncoder(ChatTemplate.load(TEMPLATES / "chatml.jinja"), tokenizer)
