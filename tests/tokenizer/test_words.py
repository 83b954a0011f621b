"""Word by word gives what the whole text gives, and is not tried where it could not."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import TEXTS, make_tokenizer
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer import words
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.words import CUTS, WordEncoder

WORDS = st.sampled_from(
    ["The", "boat", " ", "  ", "\n", "\t", ".", "\u2581", "\xa0", "1984", "\u00e9", "<s>", "\r"]
)


@pytest.fixture(scope="module")
def spaced(tmp_path_factory: pytest.TempPathFactory) -> FrozenTokenizer:
    """A vocabulary with pieces of several blanks, as code gives."""
    with pytest.MonkeyPatch.context() as patch:
        indented = [text.replace("\n\n", "\n        ") for text in TEXTS]
        patch.setattr("tests.tokenizer.conftest.TEXTS", indented)
        return FrozenTokenizer(make_tokenizer(tmp_path_factory.mktemp("spaced"), 340))


@settings(max_examples=400)
@given(parts=st.lists(WORDS, max_size=12))
def test_ids_are_those_of_the_whole_text(
    tokenizer: FrozenTokenizer, spaced: FrozenTokenizer, parts: list[str]
):
    text = "".join(parts)
    for each in (tokenizer, spaced):
        assert each.encode_text([text])[0].tolist() == each.processor.encode(text)


def test_there_are_pieces_of_several_blanks(spaced: FrozenTokenizer):
    assert "\u2581\u2581" in spaced.pieces(range(spaced.vocab_size))


def test_ids_of_the_corpus_and_the_probes(tokenizer: FrozenTokenizer):
    texts = [*PROBES, *TEXTS]
    assert [ids.tolist() for ids in tokenizer.encode_text(texts)] == tokenizer.processor.encode(texts)


def test_a_full_table_starts_afresh(tokenizer: FrozenTokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(words, "MOST_WORDS", 5)
    encoder = WordEncoder(tokenizer.processor, CUTS[0])
    for text in TEXTS[:6]:
        assert encoder.encode([text])[0].tolist() == tokenizer.processor.encode(text)
    assert len(encoder._ids_of) < len(set(" ".join(TEXTS[:6]).split()))


def test_a_word_without_end_is_not_kept(tokenizer: FrozenTokenizer):
    encoder = WordEncoder(tokenizer.processor, CUTS[0])
    text = "boat" * 1_000 + " lamp"
    assert encoder.encode([text])[0].tolist() == tokenizer.processor.encode(text)
    assert set(encoder._ids_of) == {" lamp"}


CHANGES = [
    {"add_dummy_prefix": True},
    {"normalization_rule_name": "nmt_nfkc"},
    {"remove_extra_whitespaces": True},
    {"split_by_whitespace": False, "vocab_size": 420},
    {"user_defined_symbols": ["a\nb"]},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_other_recipes_are_encoded_whole(tmp_path: Path, changes: dict):
    model = (make_tokenizer(tmp_path, **changes) / "tokenizer.model").read_bytes()
    tokenizer = FrozenTokenizer(tmp_path)
    assert WordEncoder.of(tokenizer.processor, model) is None
    assert tokenizer.encode_text(["a  b\n"])[0].tolist() == tokenizer.processor.encode("a  b\n")


def test_unigram_is_encoded_whole(unigram: FrozenTokenizer):
    assert WordEncoder.of(unigram.processor, (unigram.folder / "tokenizer.model").read_bytes()) is None
