"""Which vocabularies can be written, and that the others are refused with their reason."""

from pathlib import Path

import pytest

from tests.export.tiny_model import stories, train_tokenizer
from utils.export.gguf_vocab import pad_to_rows, read_vocabulary
from utils.pipeline.errors import ConfigError, UpstreamError


def test_pieces_types_and_ids_are_the_models(tiny: Path) -> None:
    vocabulary = read_vocabulary(tiny, "<|im_end|>")
    assert len(vocabulary.pieces) == 512
    assert vocabulary.pieces[:6] == ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    assert vocabulary.types[:6] == [2, 3, 3, 3, 3, 3]
    assert [vocabulary.types[i] for i in (20, 275, 276)] == [6, 6, 1]
    assert (vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad, vocabulary.eot) == (1, 2, 0, 3, 5)
    assert vocabulary.add_space_prefix is False


def test_missing_end_of_turn_is_absent(tiny: Path) -> None:
    assert read_vocabulary(tiny, "<|no_such_mark|>").eot == -1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "unigram"}, "model type is unigram"),
        ({"byte_fallback": False}, "0 of the 256 byte pieces"),
        ({"normalization_rule_name": "nfkc"}, "normaliser is nfkc"),
        ({"remove_extra_whitespaces": True}, "removes extra blanks"),
    ],
)
def test_foreign_recipes_are_refused(tmp_path: Path, overrides: dict, message: str) -> None:
    train_tokenizer(
        tmp_path, stories(200), vocab_size=120 if "byte_fallback" in overrides else 340, **overrides
    )
    with pytest.raises(ConfigError, match=message) as refusal:
        read_vocabulary(tmp_path, "<|im_end|>")
    assert refusal.value.exit_code == 2
    assert "llama_bpe" in refusal.value.fix


def test_no_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer.model"):
        read_vocabulary(tmp_path, "<|im_end|>")


def test_prefix_blank_is_taken_from_the_model(tmp_path: Path) -> None:
    train_tokenizer(tmp_path, stories(200), vocab_size=400, add_dummy_prefix=True)
    assert read_vocabulary(tmp_path, "<|im_end|>").add_space_prefix is True


def test_rows_beyond_the_tokenizer_become_unused_padding(tiny: Path) -> None:
    padded = pad_to_rows(read_vocabulary(tiny, "<|im_end|>"), 515)
    assert padded.pieces[512:] == ["[PAD0]", "[PAD1]", "[PAD2]"]
    assert padded.types[512:] == [5, 5, 5]


def test_fewer_rows_than_pieces_are_refused(tiny: Path) -> None:
    with pytest.raises(UpstreamError, match="500 embedding rows but its tokenizer has 512"):
        pad_to_rows(read_vocabulary(tiny, "<|im_end|>"), 500)
