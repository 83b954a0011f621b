"""The recipe and its gates: equal ids in four libraries, and a fixture that each gate refuses."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.tiny import ROOT, chapters
from utils.pipeline.errors import DataError
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer import gates
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.gates import GateSettings, check_tokenizer
from utils.tokenizer.hf import merges_of, write_hf_files
from utils.tokenizer.llama_cpp import encode_with_llama_cpp
from utils.tokenizer.report import tokenizer_card, tokenizer_report
from utils.tokenizer.train import (
    CONTROL_SYMBOLS,
    MAX_LINE_BYTES,
    RECIPE,
    choose_documents,
    train_model,
    training_sentences,
)  # fmt: skip

TEXTS = [row["text"] for book in range(40) for row in chapters(book, 6)]
VOCABULARY = 330


def make_tokenizer(folder: Path, vocab_size: int = VOCABULARY, **changes: object) -> Path:
    """A tokenizer folder; `changes` go against the recipe."""
    folder.mkdir(exist_ok=True)
    original = dict(RECIPE)
    try:
        RECIPE.update(changes)
        model = train_model(training_sentences(TEXTS), vocab_size)
    finally:
        RECIPE.clear()
        RECIPE.update(original)
    (folder / "tokenizer.model").write_bytes(model)
    write_hf_files(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> FrozenTokenizer:
    return FrozenTokenizer(folder)


def test_ids_of_specials_and_bytes(tokenizer: FrozenTokenizer):
    names = ["unk", "bos", "eos", "pad", "<|im_start|>", "<|im_end|>", "<|reserved_0|>", "<|reserved_13|>"]
    assert [tokenizer.special(name) for name in names] == [0, 1, 2, 3, 4, 5, 6, 19]
    assert tokenizer.pieces([20, 275]) == ["<0x00>", "<0xFF>"]
    assert tokenizer.special("<|reserved_99|>") == tokenizer.special("the") == -1
    assert tokenizer.vocab_size == VOCABULARY


def test_a_newline_is_always_one_piece(tokenizer: FrozenTokenizer):
    newline = tokenizer.encode_text(["\n"])[0].tolist()
    ids = tokenizer.encode_text(["The boat.\n\nThe lamp."])[0].tolist()
    assert (newline, ids.count(newline[0])) == ([20 + 10], 2)


def test_user_text_cannot_forge_a_turn(tokenizer: FrozenTokenizer):
    for symbol in ["<s>", "</s>", "<pad>", "<unk>", *CONTROL_SYMBOLS]:
        ids = tokenizer.encode_text([symbol])[0]
        assert ids.min() >= 20
        assert tokenizer.decode(ids) == symbol
    assert tokenizer.decode([1, 4, *tokenizer.encode_text(["hi"])[0], 5, 2]) == "hi"


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581\x00"), max_size=60))
def test_every_text_round_trips_without_unknowns(tokenizer: FrozenTokenizer, text: str):
    ids = tokenizer.encode_text([text])[0]
    assert tokenizer.decode(ids) == text
    assert 0 not in ids


def hard_texts() -> list[str]:
    generator = random.Random(0)
    alphabet = "abcTheboat 0123456789.,\n\t<>|/s'\u00e9\u4f60\U0001f600"
    return [*PROBES, *TEXTS[:40], *("".join(generator.choices(alphabet, k=50)) for _ in range(60))]


def test_ids_are_equal_in_sentencepiece_tokenizers_and_llama_cpp(folder: Path, tokenizer: FrozenTokenizer):
    texts = hard_texts()
    ids = [found.tolist() for found in tokenizer.encode_text(texts)]
    assert gates.encode_with_tokenizers(folder, texts) == ids
    assert encode_with_llama_cpp(folder, texts) == ids


def test_ids_are_equal_in_transformers(folder: Path, tokenizer: FrozenTokenizer):
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(folder)
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id, len(peer)) == (1, 2, 3, VOCABULARY)
    for text, ids in zip(hard_texts(), tokenizer.encode_text(hard_texts()), strict=True):
        assert peer.encode(text, split_special_tokens=True) == ids.tolist()
        assert peer.decode(ids) == text
    assert peer.encode("<|im_start|>user") == [4, *tokenizer.encode_text(["user"])[0].tolist()]


def test_merges_are_every_split_by_score_then_ids():
    class Processor:
        pieces = ["<unk>", "<s>", "a", "b", "ab", "ba", "aba"]

        def get_piece_size(self) -> int:
            return len(self.pieces)

        def id_to_piece(self, i: int) -> str:
            return self.pieces[i]

        def get_score(self, i: int) -> float:
            return {4: -0.0, 6: -1.0, 5: -2.0}.get(i, -9.0)

        def is_control(self, i: int) -> bool:
            return i == 1

        def is_unknown(self, i: int) -> bool:
            return i == 0

        def is_byte(self, i: int) -> bool:
            return False

    assert merges_of(Processor()) == [("a", "b"), ("a", "ba"), ("ab", "a"), ("b", "a")]


RETRAIN = """
import sys
from tests.tokenizer.test_tokenizer import TEXTS, VOCABULARY, train_model, training_sentences
sys.stdout.buffer.write(train_model(training_sentences(TEXTS), VOCABULARY))
"""


def test_retraining_in_another_process_gives_the_same_bytes(folder: Path):
    command = [sys.executable, "-c", RETRAIN]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    assert again == (folder / "tokenizer.model").read_bytes()


def test_long_lines_are_cut_at_spaces_and_nothing_is_lost():
    line = "word \u00e9t\u00e9 " * 1_000
    parts = list(training_sentences(["\n".join([line, "", "x" * 9_001, "\u4f60" * 2_001])]))
    assert max(len(part.encode()) for part in parts) <= MAX_LINE_BYTES
    assert "".join(parts) == line + "x" * 9_001 + "\u4f60" * 2_001
    assert parts[1].startswith(" ")


def test_sample_is_chosen_by_hash_until_it_is_full():
    sizes = {f"id{i}": 10 for i in range(50)}
    chosen = choose_documents(sizes, 100, seed=0)
    assert len(chosen) == 10
    assert choose_documents(dict(reversed(sizes.items())), 100, seed=0) == chosen
    assert choose_documents(sizes, 100, seed=1) != chosen
    assert choose_documents(sizes, 10_000, seed=0) == set(sizes)


def test_too_little_text_names_the_largest_vocabulary():
    with pytest.raises(DataError, match="the corpus is too small for a vocabulary of 4,096") as error:
        train_model(["a small text"] * 3, 4_096)
    largest = int(error.value.fix.split()[3])
    assert len(train_model(["a small text"] * 3, largest)) > 0
    with pytest.raises(DataError, match="SentencePiece could not train on this corpus"):
        train_model([], 400)


def test_all_gates_pass_on_the_recipe(folder: Path):
    counts = check_tokenizer(folder, TEXTS[:50], GateSettings(VOCABULARY, 1.5))
    assert counts == dict.fromkeys(("sentencepiece", "tokenizers", "llama_cpp"), 50 + len(PROBES))


BROKEN = {
    "nfkc": ({"normalization_rule_name": "nmt_nfkc"}, "texts do not survive encode and decode"),
    "no bytes": ({"byte_fallback": False}, "texts encode to <unk>"),
    "dummy prefix": ({"add_dummy_prefix": True}, "texts get other ids in tokenizers"),
    "user symbols": (
        {"control_symbols": [], "user_defined_symbols": CONTROL_SYMBOLS},
        "texts get other ids in tokenizers",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_gates_refuse_other_recipes(tmp_path: Path, case: str):
    changes, message = BROKEN[case]
    size = (
        VOCABULARY if "byte_fallback" not in changes else 80
    )  # without 256 byte pieces there are fewer to have
    folder = make_tokenizer(tmp_path, size, **changes)
    with pytest.raises(DataError, match=message) as error:
        check_tokenizer(folder, TEXTS[:20], GateSettings(size, 1.0))
    assert "\n  " in str(error.value)


def test_gate_on_vocabulary_size_and_density(folder: Path):
    with pytest.raises(DataError, match="the tokenizer has 330 pieces, asked were 331"):
        check_tokenizer(folder, TEXTS[:5], GateSettings(331, 1.0))
    with pytest.raises(DataError, match=r"characters per token, min_chars_per_token asks for 9.0"):
        check_tokenizer(folder, TEXTS[:5], GateSettings(VOCABULARY, 9.0))


def test_gate_on_a_forgeable_control_symbol():
    class Processor:
        def get_piece_size(self) -> int:
            return 6

        def is_control(self, i: int) -> bool:
            return i == 5

        def id_to_piece(self, i: int) -> str:
            return "<|im_end|>"

        def encode(self, text: str) -> list[int]:
            return [5]

    with pytest.raises(DataError, match="control symbols that user text can produce:\n  <|im_end|>"):
        gates.check_specials(Processor())


def test_gate_on_llama_cpp(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gates, "encode_with_llama_cpp", lambda folder, texts: [[9] for _ in texts])
    with pytest.raises(DataError, match="3 texts get other ids in llama_cpp:\n  'a b': token 0 is"):
        gates.check_parity(folder, ["a b"] * 3, gates.encode_with_tokenizers(folder, ["a b"] * 3))
    monkeypatch.setattr(gates, "encode_with_llama_cpp", lambda folder, texts: None)
    assert gates.check_parity(folder, [], [])["llama_cpp"] == -1


def test_llama_cpp_failure_is_one_message(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    from utils.tokenizer import llama_cpp

    monkeypatch.setattr(
        llama_cpp, "write_vocabulary_gguf", lambda folder, path: path.write_bytes(b"nonsense")
    )
    with pytest.raises(DataError, match="llama.cpp refuses this vocabulary"):
        llama_cpp.encode_with_llama_cpp(folder, ["a"])


def test_pickles_as_its_path_and_notices_a_swap(tmp_path: Path):
    import pickle

    folder = make_tokenizer(tmp_path)
    tokenizer = FrozenTokenizer(folder)
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 1_000
    assert pickle.loads(pickled).fingerprint == tokenizer.fingerprint
    with pytest.raises(DataError, match="holds no tokenizer.model"):
        FrozenTokenizer(tmp_path / "nothing")


def test_report_measures_and_the_card_repeats_it(tokenizer: FrozenTokenizer):
    rows = [{"source": "books", "text": text} for text in TEXTS[:20]]
    report = tokenizer_report(tokenizer, rows, {"sentencepiece": 43, "tokenizers": 43, "llama_cpp": -1})
    books = report["sources"]["books"]
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.folder / "tokenizer.model"))
    tokens = sum(map(len, peer.encode(TEXTS[:20])))
    assert books["tokens"] == tokens
    assert books["chars_per_token"] == round(sum(map(len, TEXTS[:20])) / tokens, 4)
    card = tokenizer_card(json.loads(json.dumps(report)))
    assert f"| books | 20 | {tokens:,} | {books['chars_per_token']}" in card
    assert "llama_cpp: not installed" in card
    assert tokenizer.fingerprint in card
