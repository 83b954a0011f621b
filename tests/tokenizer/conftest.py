"""Small real tokenizers: ours, against the recipe, and two that somebody else might have made."""

import json
from pathlib import Path

import pytest
import sentencepiece

from tests.corpus.tiny import chapters
from utils.tokenizer import train
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.hf import write_hf_files
from utils.tokenizer.train import train_model, training_sentences

TEXTS = [row["text"] for book in range(40) for row in chapters(book, 6)]
VOCABULARY = 330


def make_tokenizer(
    folder: Path, vocab_size: int = VOCABULARY, recipe: str = "llama_bpe", **changes: object
) -> Path:
    """A tokenizer folder; `changes` go against the recipe."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.RECIPES, recipe, train.RECIPES[recipe] | changes)
        model = train_model(training_sentences(TEXTS), vocab_size, recipe)
    (folder / "tokenizer.model").write_bytes(model)
    write_hf_files(folder, recipe)
    return folder


def make_gpt2_style(folder: Path, specials: tuple[str, ...] = ("<|endoftext|>",), **config: object) -> Path:
    """A byte-level BPE in one tokenizer.json, its end of text being BOS, EOS and UNK at once."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), specials[0])
    (folder / "tokenizer_config.json").write_text(json.dumps(end | config), encoding="utf-8")
    return folder


def make_llama2_style(folder: Path, **changes: object) -> Path:
    """
    A SentencePiece BPE with byte pieces and a leading blank, without padding and without tokenizer.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "tokenizer.model", "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_sentences(TEXTS), model_writer=model, model_type="bpe", vocab_size=320,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            num_threads=1, minloglevel=2, **changes,
        )  # fmt: skip
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": {"content": "<s>"}, "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(folder: Path) -> FrozenTokenizer:
    return FrozenTokenizer(folder)


@pytest.fixture(scope="session")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    return FrozenTokenizer(make_tokenizer(tmp_path_factory.mktemp("unigram"), 390, "unigram"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    return FrozenTokenizer(make_gpt2_style(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture(scope="session")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    return FrozenTokenizer(make_llama2_style(tmp_path_factory.mktemp("llama2")))
