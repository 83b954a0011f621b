"""The recipes: fixed ids, the same bytes in another process, a sample chosen by hash, readable failures."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.corpus.tiny import ROOT
from tests.tokenizer.conftest import VOCABULARY
from utils.pipeline.errors import DataError
from utils.pipeline.hashing import unit_hash
from utils.tokenizer.frozen import FrozenTokenizer
from utils.tokenizer.train import MAX_LINE_BYTES, choose_sample, train_model, training_sentences

RETRAIN = """
import sys
from tests.tokenizer.conftest import TEXTS, VOCABULARY, train_model, training_sentences
sys.stdout.buffer.write(train_model(training_sentences(TEXTS), VOCABULARY))
"""


@pytest.mark.parametrize("name", ["tokenizer", "unigram"])
def test_ids_of_specials_and_bytes(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name)
    names = ["unk", "bos", "eos", "pad", "<|im_start|>", "<|im_end|>"]
    names += [f"<|reserved_{i}|>" for i in range(14)]
    assert [tokenizer.special(name) for name in names] == list(range(20))
    assert tokenizer.pieces([20, 275]) == ["<0x00>", "<0xFF>"]
    assert tokenizer.special("<|reserved_14|>") == tokenizer.special("the") == -1
    assert tokenizer.vocab_size == {"tokenizer": VOCABULARY, "unigram": 390}[name]


def test_retraining_in_another_process_gives_the_same_bytes(folder: Path):
    command = [sys.executable, "-c", RETRAIN]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    assert again == (folder / "tokenizer.model").read_bytes()


def test_a_newline_is_always_one_piece(tokenizer: FrozenTokenizer):
    newline = tokenizer.encode_text(["\n"])[0].tolist()
    ids = tokenizer.encode_text(["The boat.\n\nThe lamp."])[0].tolist()
    assert (newline, ids.count(newline[0])) == ([20 + 10], 2)


def test_digits_are_single_pieces(tokenizer: FrozenTokenizer):
    assert "".join(tokenizer.pieces(tokenizer.encode_text(["1984"])[0])) == "1984"
    assert len(tokenizer.encode_text(["1984"])[0]) == 4


def test_long_lines_are_cut_at_spaces_and_nothing_is_lost():
    line = "word \u00e9t\u00e9 " * 1_000
    parts = list(training_sentences(["\n".join([line, "", "x" * 9_001, "\u4f60" * 2_001])]))
    assert max(len(part.encode()) for part in parts) <= MAX_LINE_BYTES
    assert "".join(parts) == line + "x" * 9_001 + "\u4f60" * 2_001
    assert parts[1].startswith(" ")


def test_a_line_of_more_than_4192_bytes_still_teaches_its_words():
    """SentencePiece itself leaves the line out, and then has nothing to train on."""
    text = "xylophone " * 600
    with pytest.raises(DataError, match="SentencePiece could not train"):
        train_model([text], 293)
    assert any("xylo" in piece for piece in pieces_in(train_model(training_sentences([text]), 293)))


def pieces_in(model: bytes) -> set[str]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {processor.id_to_piece(i) for i in range(processor.get_piece_size())}


def lines_of(sizes: list[int]) -> list[bytes]:
    return [json.dumps({"id": f"id{i}", "text": f"{i:04d}" + "x" * n}).encode() for i, n in enumerate(sizes)]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 900), st.integers(0, 3))
def test_the_sample_is_the_shortest_beginning_by_hash_that_is_large_enough(
    sizes: list[int], sample_bytes: int, seed: int
):
    sample = choose_sample(lines_of(sizes), sample_bytes, seed)
    expected, total = [], 0
    for i in sorted(range(len(sizes)), key=lambda i: unit_hash("tokenizer", seed, f"id{i}")):
        if total < sample_bytes:
            expected.append(i)
            total += sizes[i] + 4
    assert [int(text[:4]) for text in sample.texts] == sorted(expected)
    assert sample.num_documents == len(sizes)


def test_the_sample_does_not_depend_on_the_order_of_rows():
    lines = lines_of([10] * 50)
    shuffled = random.Random(0).sample(lines, 50)
    chosen = [set(choose_sample(rows, 100, seed=0).texts) for rows in (lines, shuffled)]
    assert chosen[0] == chosen[1] != set(choose_sample(lines, 100, seed=1).texts)


@pytest.mark.parametrize("recipe", ["llama_bpe", "unigram"])
def test_too_little_text_names_the_largest_vocabulary(recipe: str):
    sentences = ["a small text"] * 3
    message = "the corpus is too small for a vocabulary of 4,096; the largest possible one is "
    with pytest.raises(DataError, match=message) as error:
        train_model(sentences, 4_096, recipe)
    largest = int(error.value.fix.split()[3])
    assert len(pieces_in(train_model(sentences, largest, recipe))) == largest
    with pytest.raises(DataError, match=f"the largest possible one is {largest}"):
        train_model(sentences, largest + 1, recipe)


def test_a_vocabulary_without_room_for_the_characters_is_refused():
    many = ["".join(chr(0x4E00 + i) for i in range(300))] * 2
    with pytest.raises(DataError, match="a vocabulary of 300 has no room for the 576 characters") as error:
        train_model(many, 300)
    assert error.value.fix == 'set "vocab_size" to more than 576'


def test_no_text_is_one_message():
    with pytest.raises(DataError, match="SentencePiece could not train on this corpus"):
        train_model([], 400)
