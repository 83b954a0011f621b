"""Contamination: planted passages are found, all of them and nothing else."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus.real import book_texts, data_folder
from utils.corpus.decontaminate import Hit, build_index, cut_passages, find_hits, open_index, passage
from utils.corpus.textview import TextView
from utils.pipeline.errors import UpstreamError

WORDS = [f"word{i}" for i in range(5_000)]


def sentence(seed: object, count: int) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=count))


def hits_of(folder: Path, sets: list[tuple[str, list[str]]], text: str, ngram_words: int = 13) -> list[Hit]:
    return find_hits(TextView(text), open_index(build_index(sets, ngram_words, folder)[0]))


def test_planted_sentences_are_all_found_and_none_in_clean_text(tmp_path: Path):
    items = [sentence(("item", i), 8 + i % 30) for i in range(400)]
    index = open_index(build_index([("a", items[:200]), ("b", items[200:])], 13, tmp_path)[0])
    for i, item in enumerate(items):
        start, end = (sentence((side, i), 1 + i % 50) for side in ("start", "end"))
        noisy = item.upper().replace(" ", ", " if i % 2 else "\n")
        found = find_hits(TextView(f'{start} "{noisy}!" {end}'), index)
        assert {hit.set for hit in found} == {"a" if i < 200 else "b"}
        assert min(hit.first for hit in found) == len(start.split())
        assert max(hit.last for hit in found) == len(start.split()) + len(item.split()) - 1
        assert find_hits(TextView(f"{start} {end}"), index) == []


@settings(max_examples=100)
@given(
    st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), min_size=5, max_size=12)
)
def test_hits_equal_a_plain_search(
    tmp_path_factory: pytest.TempPathFactory, text: list[str], item: list[str]
):
    found = hits_of(
        tmp_path_factory.mktemp("index"), [("set", [" ".join(item)])], " ".join(text), ngram_words=5
    )
    grams = {tuple(item[i : i + 5]) for i in range(len(item) - 4)}
    assert [hit.first for hit in found] == [
        i for i in range(len(text) - 4) if tuple(text[i : i + 5]) in grams
    ]


@pytest.mark.parametrize(("words", "found"), [(7, False), (8, True), (12, True), (13, True), (14, True)])
def test_short_items_match_as_a_whole_and_shorter_ones_are_ignored(tmp_path: Path, words: int, found: bool):
    item = sentence("short", words)
    reference, counts = build_index([("set", [item, "x"])], 13, tmp_path)
    text = f"{sentence('before', 20)} {item} {sentence('after', 20)}"
    assert bool(find_hits(TextView(text), open_index(reference))) == found
    expected = (2, int(8 <= words < 13), 1 + (words < 8), {7: 0, 14: 2}.get(words, 1))
    assert (counts["set"].items, counts["set"].whole, counts["set"].ignored, counts["set"].ngrams) == expected
    part = " ".join(item.split()[: words - 1])
    if words <= 13:
        assert find_hits(TextView(f"{part} something else"), open_index(reference)) == []


def test_of_two_sets_with_one_passage_the_first_is_named(tmp_path: Path):
    item = sentence(1, 20)
    assert {
        hit.set for hit in hits_of(tmp_path, [("a", ["x " * 20]), ("b", [item]), ("c", [item])], item)
    } == {"b"}


def test_the_passage_is_shown_as_the_document_has_it(tmp_path: Path):
    text = f"Once -- {sentence(2, 13).replace(' ', ' - ')} ... and more."
    hit = hits_of(tmp_path, [("set", [sentence(2, 13)])], text)[0]
    assert passage(TextView(text), hit) == " ".join(text.split()[2:-3])
    assert hit == Hit("set", 2, 26)


def test_cut_paragraphs_are_counted_for_the_set_that_hits_them():
    view = TextView("a b c\n\nd e f\n\ng h i\n\nj k l")
    hits = [Hit("x", 4, 4), Hit("x", 5, 6), Hit("y", 6, 6)]
    assert cut_passages(view, hits) == ("a b c\n\nj k l", {"x": 2})
    assert cut_passages(view, [Hit("y", 11, 11), Hit("x", 0, 0)]) == ("d e f\n\ng h i", {"x": 1, "y": 1})


def test_the_same_texts_give_the_same_index_and_other_files_are_refused(tmp_path: Path):
    sets = [("set", [sentence(i, 30) for i in range(20)])]
    reference, _ = build_index(sets, 13, tmp_path / "a")
    again, _ = build_index(sets, 13, tmp_path / "b")
    assert reference.sha256 == again.sha256
    assert build_index([("set", [sentence(0, 30)])], 13, tmp_path / "c")[0].sha256 != reference.sha256
    changed = np.load(tmp_path / "b" / "13.hashes.npy")
    np.save(tmp_path / "b" / "13.hashes.npy", changed + np.uint64(1))
    with pytest.raises(UpstreamError, match="tampered .13.hashes.npy: expected ") as error:
        open_index(again)
    assert "built again" in error.value.fix
    with pytest.raises(UpstreamError, match="tampered .index.json: expected "):
        open_index(replace(reference, sha256="0" * 64))


def test_the_index_is_opened_once_per_process(tmp_path: Path):
    reference, _ = build_index([("set", [sentence(0, 30)])], 13, tmp_path)
    assert open_index(reference) is open_index(replace(reference))
    assert isinstance(open_index(reference).hashes[13], np.memmap)


def test_nothing_to_look_for_finds_nothing(tmp_path: Path):
    assert hits_of(tmp_path, [("set", ["too short"])], "some text") == []
    assert hits_of(tmp_path, [("set", [sentence(0, 30)])], "") == []
    assert hits_of(tmp_path, [("set", [sentence(0, 30)])], "- - -") == []


def test_wikipedia_is_not_in_the_books(tmp_path: Path):
    """The real sets: a few quotations are shared, planted lines are all found."""
    wiki = (data_folder() / "eval" / "wikitext2_valid.txt").read_text()
    reference, counts = build_index([("wikitext2", [wiki])], 13, tmp_path)
    index, texts = open_index(reference), book_texts(every=5)
    assert counts["wikitext2"].ngrams > 150_000
    hit = [text for text in texts if find_hits(TextView(text), index)]
    assert len(hit) <= 0.005 * len(texts)
    lines = [line for line in wiki.splitlines() if len(line.split()) > 40][:200]
    for text, line in zip(texts, lines, strict=False):
        assert find_hits(TextView(f"{text}\n\n{line}"), index), json.dumps(line)
