"""Each gate: a tokenizer or a text that it refuses, with its table, and the recipe that passes them all."""

from pathlib import Path

import pytest

from tests.tokenizer.conftest import TEXTS, VOCABULARY, make_gpt2_style, make_llama2_style, make_tokenizer
from utils.pipeline.errors import DataError
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.gates import (
    Text,
    accepted_spellings,
    check_adopted,
    check_density,
    check_layout,
    check_parity,
    check_range,
    check_specials,
    check_trained,
    check_unknown,
    check_word_mark,
    proven_texts,
)
from utils.tokenizer.parity import compare_libraries

ROWS = [{"source": "books", "id": f"{i:032x}", "text": text} for i, text in enumerate(TEXTS[:50])]
PROVEN = proven_texts(ROWS)


def table(error: pytest.ExceptionInfo) -> list[list[str]]:
    """The lines below the message, cut into their columns."""
    return [line.split("  ") for line in str(error.value).splitlines()[1:]]


def test_all_gates_pass_on_the_recipe(tokenizer: FrozenTokenizer):
    ids = check_trained(tokenizer, PROVEN, VOCABULARY)
    check_density(PROVEN, ids, 1.5)
    found = compare_libraries(tokenizer.folder, [text.text for text in PROVEN], ids, "")
    check_parity(PROVEN, found)
    assert {name: agreement.equal for name, (agreement, _) in found.items()} == dict.fromkeys(
        ("sentencepiece", "tokenizers", "llama_cpp"), 50 + len(PROBES)
    )


def test_all_gates_pass_on_unigram(unigram: FrozenTokenizer):
    ids = check_trained(unigram, PROVEN, 390)
    found = compare_libraries(unigram.folder, [text.text for text in PROVEN], ids, "unigram")
    check_parity(PROVEN, found)
    assert (found["tokenizers"][0].equal, found["llama_cpp"][0].note) == (len(PROVEN), "unigram")


def test_nfkc_is_refused_with_a_table(tmp_path: Path):
    broken = FrozenTokenizer(make_tokenizer(tmp_path, normalization_rule_name="nmt_nfkc"))
    with pytest.raises(DataError, match=r"\d texts do not survive encode and decode:\n") as error:
        check_trained(broken, PROVEN, VOCABULARY)
    lines = str(error.value).splitlines()
    assert lines[1].split() == ["expected", "found"]
    assert lines[2].startswith("  probe ") and len(lines) <= 8


def test_no_byte_pieces_is_refused(tmp_path: Path):
    broken = FrozenTokenizer(make_tokenizer(tmp_path, 80, byte_fallback=False))
    with pytest.raises(
        DataError, match=r"256 ids have other pieces than they must have:\n.*\n  id 20 +<0x00>"
    ):
        check_trained(broken, PROVEN, 80)
    with pytest.raises(DataError, match="texts encode to <unk>:") as error:
        check_unknown(broken.processor, PROVEN, broken.processor.encode([text.text for text in PROVEN]))
    assert any(line.startswith("  probe 4 ") for line in str(error.value).splitlines())


def test_a_dummy_prefix_is_refused(tmp_path: Path):
    broken = FrozenTokenizer(make_tokenizer(tmp_path, add_dummy_prefix=True))
    ids = check_trained(broken, PROVEN, VOCABULARY)
    found = compare_libraries(tmp_path, [text.text for text in PROVEN], ids, "")
    with pytest.raises(
        DataError, match=r"texts get other ids in tokenizers:\n.*\n  probe 1, token 0 +\[\d+,"
    ):
        check_parity(PROVEN, found)


def test_symbols_that_text_can_spell_are_refused(tmp_path: Path):
    symbols = ["<|im_start|>", "<|im_end|>", *(f"<|reserved_{i}|>" for i in range(14))]
    broken = FrozenTokenizer(make_tokenizer(tmp_path, control_symbols=[], user_defined_symbols=symbols))
    ids = check_trained(broken, PROVEN, VOCABULARY)
    with pytest.raises(DataError, match="texts get other ids in tokenizers"):
        check_parity(PROVEN, compare_libraries(tmp_path, [text.text for text in PROVEN], ids, ""))


class Forging:
    """Six pieces, of which the last is a control symbol that text can produce; pad lies outside."""

    def __init__(self, pad: int = -1, name: str = "<|im_end|>") -> None:
        self.pad, self.name = pad, name

    def get_piece_size(self) -> int:
        return 6

    def unk_id(self) -> int:
        return -1

    bos_id = eos_id = unk_id

    def pad_id(self) -> int:
        return self.pad

    def is_control(self, i: int) -> bool:
        return i == 5

    def id_to_piece(self, i: int) -> str:
        return self.name if i == 5 else "x"

    def piece_to_id(self, piece: str) -> int:
        return 5 if piece == "<|im_end|>" else 4

    def encode(self, text: str) -> list[int]:
        return [5]


def test_a_forgeable_control_symbol_is_refused():
    with pytest.raises(
        DataError, match=r"1 special tokens can be produced by user text:\n.*\n.*<\|im_end\|>'"
    ):
        check_specials(Forging(), "")
    with pytest.raises(DataError, match=r"1 special tokens are not a single id:\n.*\n.*'x' +id 5 +id 4"):
        check_specials(Forging(name="x"), "")
    with pytest.raises(
        DataError, match=r"1 special tokens are outside the vocabulary:\n.*\n.*pad +below 6 +6"
    ):
        check_specials(Forging(pad=6), "")


def test_another_vocabulary_size_is_refused(tokenizer: FrozenTokenizer):
    with pytest.raises(DataError, match="the tokenizer has 330 pieces, asked were 331"):
        check_layout(tokenizer.processor, 331)


def test_the_mark_of_a_blank_is_refused(tokenizer: FrozenTokenizer):
    texts = [Text("books 00ff", "the boat\u2581sank")]
    message = (
        r"1 texts hold U\+2581, which decodes as a blank:\n.*\n  books 00ff  no U\+2581  'the boat\\u2581"
    )
    with pytest.raises(DataError, match=message) as error:
        check_trained(tokenizer, texts, VOCABULARY)
    assert "20_prepare_corpus" in error.value.fix
    assert tokenizer.decode(tokenizer.encode_text([texts[0].text])[0]) == "the boat sank"
    check_word_mark([Text("books 00ff", "the boat_sank")])


def test_too_few_characters_per_token_is_refused(tokenizer: FrozenTokenizer):
    ids = check_trained(tokenizer, PROVEN, VOCABULARY)
    with pytest.raises(DataError, match=r"characters per token, min_chars_per_token asks for 9.0"):
        check_density(PROVEN, ids, 9.0)


def test_a_difference_deep_in_a_long_text_is_shown(
    tokenizer: FrozenTokenizer, monkeypatch: pytest.MonkeyPatch
):
    from utils.tokenizer import parity

    monkeypatch.setattr(
        parity, "encode_with_llama_cpp", lambda folder, texts: [[*ids[:300], 9, *ids[301:]] for ids in ours]
    )
    texts = [Text("books 00ff", "The boat. " * 90)]
    ours = tokenizer.processor.encode([texts[0].text])
    found = compare_libraries(tokenizer.folder, [texts[0].text], ours, "")
    with pytest.raises(
        DataError, match=r"1 texts get other ids in llama_cpp:\n.*\n  books 00ff, token 300 .*\[9, "
    ):
        check_parity(texts, found)


def test_ids_that_are_not_the_processors_are_refused(
    tokenizer: FrozenTokenizer, monkeypatch: pytest.MonkeyPatch
):
    """What encodes the corpus is what is proven, not only the library below it."""
    encode = FrozenTokenizer.encode_text
    monkeypatch.setattr(
        FrozenTokenizer, "encode_text", lambda self, texts: [ids[:-1] for ids in encode(self, texts)]
    )
    for check in (
        lambda: check_trained(tokenizer, PROVEN, VOCABULARY),
        lambda: check_adopted(tokenizer, PROVEN),
    ):
        with pytest.raises(DataError, match="texts get other ids in FrozenTokenizer"):
            check()


def test_a_long_table_is_cut(tokenizer: FrozenTokenizer):
    with pytest.raises(DataError, match="7 texts hold U") as error:
        check_word_mark([Text(f"books {i}", "\u2581") for i in range(7)])
    assert str(error.value).splitlines()[-1] == "  and 2 more"


@pytest.mark.parametrize("name", ["gpt2", "llama2", "tokenizer", "unigram"])
def test_adopted_gates_pass(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    assert len(check_adopted(tokenizer, PROVEN)) == len(PROVEN)


def test_an_adopted_tokenizer_without_eos_is_refused(tmp_path: Path):
    folder = make_gpt2_style(tmp_path, eos_token=None)
    with pytest.raises(DataError, match="names no EOS, so documents could not be told apart"):
        check_adopted(FrozenTokenizer(folder), PROVEN)


def test_an_adopted_tokenizer_that_merges_at_random_is_refused(tmp_path: Path):
    path = make_gpt2_style(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text().replace('"dropout": null', '"dropout": 0.1'))
    with pytest.raises(DataError, match=r"skips merges at random \(dropout 0.1\)"):
        check_adopted(FrozenTokenizer(tmp_path), PROVEN)


def test_an_adopted_tokenizer_that_loses_text_is_refused(tmp_path: Path):
    broken = FrozenTokenizer(make_llama2_style(tmp_path, user_defined_symbols=["<sep>"]))
    check_adopted(broken, PROVEN)
    path = make_gpt2_style(tmp_path / "lower") / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    with pytest.raises(
        DataError, match=r"texts do not survive encode and decode:\n.*\n  probe 1 +'Hello world'"
    ):
        check_adopted(FrozenTokenizer(path.parent), PROVEN)


def test_an_adopted_tokenizer_may_compose_and_add_one_blank():
    assert "\u00e9" in accepted_spellings("e\u0301")
    assert " a" in accepted_spellings("a")
    assert "  a" not in accepted_spellings("a") and "b" not in accepted_spellings("a")


def test_an_adopted_tokenizer_that_composes_characters_passes(tmp_path: Path):
    path = make_gpt2_style(tmp_path) / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalizer": null', '"normalizer": {"type": "NFC"}'))
    composing = FrozenTokenizer(tmp_path)
    assert composing.decode(composing.encode_text(["e\u0301"])[0]) == "\u00e9"
    check_adopted(composing, PROVEN)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(DataError, match=r"1 texts get ids outside the vocabulary:\n.*\n  a  ids below 7  7"):
        check_range([Text("a", "x"), Text("b", "y")], [[1, 7], [6]], 7)
