"""
The same ids in sentencepiece, tokenizers, transformers and llama.cpp; what is reported where one is missing.
"""

import random
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.tokenizer.conftest import TEXTS, VOCABULARY
from utils.pipeline.errors import DataError, StageError
from utils.pipeline.tokenizer_identity import PROBES
from utils.tokenizer import llama_cpp, parity
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.hf import merges_of
from utils.tokenizer.llama_cpp import encode_with_llama_cpp
from utils.tokenizer.parity import Agreement, compare_libraries, parity_sample


def hard_texts() -> list[str]:
    generator = random.Random(0)
    alphabet = "abcTheboat 0123456789.,\n\t<>|/s'\u00e9\u4f60\U0001f600"
    return [*PROBES, *TEXTS[:40], *("".join(generator.choices(alphabet, k=50)) for _ in range(60))]


def test_ids_are_equal_in_three_libraries(tokenizer: FrozenTokenizer):
    texts = hard_texts()
    found = compare_libraries(tokenizer.folder, texts, tokenizer.processor.encode(texts), "")
    assert [agreement.equal for agreement, _ in found.values()] == [len(texts)] * 3
    assert found["sentencepiece"][0].note == "reference"


def test_unigram_ids_are_equal_in_two(unigram: FrozenTokenizer):
    texts = hard_texts()
    found = compare_libraries(unigram.folder, texts, unigram.processor.encode(texts), "unigram")
    assert found["tokenizers"][0].equal == len(texts)


def test_a_leading_blank_is_the_same_in_llama_cpp(llama2: FrozenTokenizer):
    texts = [text for text in hard_texts() if text]
    found = compare_libraries(llama2.folder, texts, llama2.processor.encode(texts), "")
    assert found["llama_cpp"][0].equal == len(texts)
    assert found["tokenizers"][0] == Agreement(note="there is no tokenizer.json")


def test_ids_are_equal_in_transformers(folder: Path, tokenizer: FrozenTokenizer):
    from transformers import AutoTokenizer

    peer = AutoTokenizer.from_pretrained(folder)
    assert (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id, len(peer)) == (1, 2, 3, VOCABULARY)
    for text, ids in zip(hard_texts(), tokenizer.encode_text(hard_texts()), strict=True):
        assert peer.encode(text, split_special_tokens=True) == ids.tolist()
        assert peer.decode(ids) == text
    assert peer.encode("<|im_start|>user") == [4, *tokenizer.encode_text(["user"])[0].tolist()]


def test_a_tokenizer_json_is_its_own_reference(gpt2: FrozenTokenizer):
    found = compare_libraries(gpt2.folder, ["a"], gpt2.processor.encode(["a"]), "no SentencePiece")
    assert {name: agreement.note for name, (agreement, _) in found.items()} == {
        "tokenizers": "reference",
        "llama_cpp": "no SentencePiece",
    }


def test_a_missing_llama_cpp_is_reported(tokenizer: FrozenTokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parity, "encode_with_llama_cpp", lambda folder, texts: None)
    found = compare_libraries(tokenizer.folder, ["a"], tokenizer.processor.encode(["a"]), "")
    assert asdict(found["llama_cpp"][0]) == {
        "compared": 0,
        "equal": 0,
        "note": "llama-cpp-python is not installed",
    }


def as_lengths(texts: list[str]) -> list[list[int]]:
    return [[len(text)] for text in texts]


def test_a_sample_that_is_short_enough_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parity, "PARITY_CHARACTERS", 12)
    monkeypatch.setattr(parity, "PARITY_DOCUMENTS", 3)
    texts = [("probe", "x" * 99), ("a", "x" * 7), ("b", "x" * 4), ("c", "x"), ("d", "x")]
    ids = [[1], [2], [3], [4], [5]]
    chosen = [text for _, text in texts[:4]]
    assert parity_sample(texts, ids, num_probes=1, encode=as_lengths) == (chosen, ids[:4], "")


def test_long_documents_are_cut_and_none_is_left_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parity, "PARITY_CHARACTERS", 12)
    texts = [("probe", "x" * 99), ("a", "x" * 8), ("b", "x" * 4), ("c", "x")]
    assert parity_sample(texts, [[1], [2], [3], [4]], num_probes=1, encode=as_lengths) == (
        ["x" * 99, "xxxx", "xxxx", "x"],
        [[1], [4], [4], [1]],
        "the first 4 characters of each document",
    )


def test_the_report_says_that_documents_were_cut(tokenizer: FrozenTokenizer):
    texts = ["the boat"]
    ids = tokenizer.processor.encode(texts)
    found = compare_libraries(tokenizer.folder, texts, ids, "no GGUF", note="the first 9 characters")
    assert {library: agreement.note for library, (agreement, _) in found.items()} == {
        "sentencepiece": "reference",
        "tokenizers": "the first 9 characters",
        "llama_cpp": "no GGUF",
    }


def test_llama_cpp_refusing_a_vocabulary_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def nonsense(folder: Path, path: Path) -> None:
        path.write_bytes(b"nonsense")

    monkeypatch.setattr(llama_cpp, "write_vocabulary_gguf", nonsense)
    with pytest.raises(DataError, match="llama.cpp refuses this vocabulary"):
        encode_with_llama_cpp(folder, ["a"])


def test_llama_cpp_taking_for_ever_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama_cpp, "TIMEOUT_SECONDS", 0.01)
    with pytest.raises(StageError, match="llama.cpp did not tokenise 1 texts in 0.01 s"):
        encode_with_llama_cpp(folder, ["a"])


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
