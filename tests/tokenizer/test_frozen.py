"""FrozenTokenizer: the same promises whoever made the tokenizer and whatever file it lies in."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.conftest import TEXTS, make_gpt2_style, make_tokenizer
from utils.pipeline.errors import DataError, UpstreamError
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.train import CONTROL_SYMBOLS

texts = st.text(st.characters(codec="utf-8", exclude_characters="\u2581\x00"), max_size=60)


def test_user_text_cannot_forge_a_turn(tokenizer: FrozenTokenizer):
    for symbol in ["<s>", "</s>", "<pad>", "<unk>", *CONTROL_SYMBOLS]:
        ids = tokenizer.encode_text([symbol])[0]
        assert ids.min() >= 20
        assert tokenizer.decode(ids) == symbol
    assert tokenizer.decode([1, 4, *tokenizer.encode_text(["hi"])[0], 5, 2]) == "hi"


@settings(max_examples=300)
@given(text=texts)
def test_every_text_round_trips_without_unknowns(tokenizer: FrozenTokenizer, text: str):
    ids = tokenizer.encode_text([text])[0]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


@pytest.mark.parametrize("name", ["gpt2", "unigram", "llama2"])
@settings(max_examples=60)
@given(text=texts)
def test_every_text_round_trips_in_other_tokenizers(name: str, request: pytest.FixtureRequest, text: str):
    tokenizer = request.getfixturevalue(name)
    assert tokenizer.decode(tokenizer.encode_text([text])[0]) == text


@pytest.mark.parametrize("name", ["tokenizer", "gpt2", "unigram"])
def test_token_bytes_add_up_to_the_text(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    for text in [*PROBES, *TEXTS[:5]]:
        ids = tokenizer.encode_text([text])[0]
        assert b"".join(tokenizer.token_bytes(int(i)) for i in ids) == text.encode()


def test_control_symbols_stand_for_no_bytes(tokenizer: FrozenTokenizer, gpt2: FrozenTokenizer):
    assert [tokenizer.token_bytes(i) for i in range(20)] == [b""] * 20
    assert (tokenizer.token_bytes(20 + 65), gpt2.token_bytes(gpt2.special("eos"))) == (b"A", b"")


def test_a_tokenizer_without_a_model_file(gpt2: FrozenTokenizer):
    end = gpt2.special("<|endoftext|>")
    assert [gpt2.special(name) for name in ("unk", "bos", "eos", "pad")] == [end, end, end, -1]
    assert gpt2.special("<|im_start|>") == gpt2.special("the") == -1
    ids = gpt2.encode_text(["<|endoftext|>", "The boat"])
    assert end not in ids[0] and gpt2.decode([end, *ids[0], end]) == "<|endoftext|>"
    assert (ids[1].dtype.name, gpt2.pieces(ids[1])[-1]) == ("int32", "\u0120boat")


def test_specials_of_an_adopted_model_without_padding(llama2: FrozenTokenizer):
    assert [llama2.special(name) for name in ("unk", "bos", "eos", "pad")] == [0, 1, 2, -1]


def test_pickles_as_its_path_and_notices_a_swap(tmp_path: Path):
    tokenizer = FrozenTokenizer(make_tokenizer(tmp_path / "a"))
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 1_000
    assert pickle.loads(pickled).fingerprint == tokenizer.fingerprint
    other = FrozenTokenizer(make_gpt2_style(tmp_path / "b"))
    pickled = pickle.dumps(other)
    make_gpt2_style(tmp_path / "b", specials=("<|end|>",))
    with pytest.raises(
        UpstreamError, match=r"mismatched \(tokenizer: [0-9a-f]{12} -> [0-9a-f]{12} while running"
    ):
        pickle.loads(pickled)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no tokenizer.model and no tokenizer.json"):
        FrozenTokenizer(tmp_path / "nothing")
