"""Duplicates: planted pairs at known similarity, exact ones, no chains, across sources, by any executor."""

import random
from pathlib import Path

import numpy as np
import pytest

import utils.corpus.duplicates as duplicates
from tests.corpus.pairs import pair_at, vocabulary
from tests.corpus.stored import NeverStopped, stored
from utils.config.shared import ExecutorConfig
from utils.corpus.candidates import DedupSettings
from utils.corpus.duplicates import Duplicates, find_duplicates
from utils.corpus.executor import InlineWorkers, open_executor

SETTINGS = DedupSettings(bands=20, rows=6, similarity=0.8)


def find(folder: Path, texts: list[str], **changes: object) -> Duplicates:
    documents = stored(folder, {"all": texts}, **changes)
    return find_duplicates(documents, SETTINGS, InlineWorkers(), NeverStopped())


def near(folder: Path, texts: list[str]) -> dict[int, int]:
    """Removed near duplicate -> the document that stays in its place."""
    found = find(folder, texts).near
    return dict(zip(found["document"].tolist(), found["kept"].tolist(), strict=True))


@pytest.mark.parametrize(("similarity", "gone"), [(0.95, 200), (0.85, 200), (0.6, 0)])
def test_planted_pairs(tmp_path: Path, similarity: float, gone: int):
    texts = [text for seed in range(200) for text in pair_at(similarity, seed, ngrams=200)]
    found = near(tmp_path, texts)
    assert all(document == kept + 1 and kept % 2 == 0 for document, kept in found.items())
    assert len(found) >= 0.98 * gone
    assert gone or not found


def test_reordered_words_stay_and_case_and_punctuation_do_not_matter(tmp_path: Path):
    text = " ".join(vocabulary(1, 200))
    shuffled = " ".join(random.Random(0).sample(text.split(), 200))
    noisy = ", ".join(text.upper().split()) + "!"
    assert near(tmp_path, [text, noisy, shuffled]) == {1: 0}


def test_independent_documents_of_20000_words_stay(tmp_path: Path):
    words = vocabulary(5, 2_000)
    texts = [" ".join(random.Random(seed).choices(words, k=20_000)) for seed in range(4)]
    assert near(tmp_path, texts) == {}


def test_exact_repeats_of_four_words_go(tmp_path: Path):
    found = find(
        tmp_path, ["one two three four", "four three two one", "one two three four", "one two three four"]
    )
    assert [tuple(row) for row in found.exact.tolist()] == [(2, 0, 10_000), (3, 0, 10_000)]
    assert len(found.near) == 0
    assert found.kept(4).tolist() == [True, True, False, False]
    assert found.cluster_sizes() == {"3": 1}


def test_equal_starts_of_ids_are_not_equal_ids(tmp_path: Path):
    documents = stored(tmp_path, {"all": ["first text", "second text", "third text"]})
    path = documents.folder / "entries.bin"
    entries = np.fromfile(path, duplicates.ENTRY)
    entries["id"][:, :8] = 7
    entries["id"][2] = entries["id"][0]
    entries.tofile(path)
    found = find_duplicates(documents, None, InlineWorkers(), NeverStopped())
    assert [tuple(row) for row in found.exact.tolist()] == [(2, 0, 10_000)]


def test_no_chains(tmp_path: Path):
    words = vocabulary(9, 1_000)
    a, b, c = " ".join(words[:800]), " ".join(words[80:880]), " ".join(words[160:960])
    assert near(tmp_path, [a, b, c]) == {1: 0}  # c resembles b (0.82), which is gone, and not a (0.67)


def test_the_earlier_source_keeps_its_copy_whatever_was_read_first(tmp_path: Path):
    first, second = pair_at(0.95, 4)
    other = " ".join(vocabulary(77, 300))
    documents = stored(
        tmp_path, {"trusted": [other, first, "short one"], "web": [second, "short one"]}, per_block=1
    )
    found = find_duplicates(documents, SETTINGS, InlineWorkers(), NeverStopped())
    assert found.near[["document", "kept"]].tolist() == [(3, 1)]
    assert found.exact[["document", "kept"]].tolist() == [(4, 2)]


def test_any_executor_and_chunk_size_decides_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    texts = [text for seed in range(60) for text in pair_at(0.7 + seed % 30 / 100, seed, ngrams=60)]
    texts += [texts[0] + " end", texts[0] + " the end", texts[1] + " end"]
    documents = stored(tmp_path, {"all": texts}, per_block=17)
    expected = find_duplicates(documents, SETTINGS, InlineWorkers(), NeverStopped())
    assert 20 < len(expected.near) < 63
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 3)
    with open_executor(ExecutorConfig(workers=2)) as executor:
        found = find_duplicates(documents, SETTINGS, executor, NeverStopped())
    assert found.near.tolist() == expected.near.tolist()
    assert (found.candidate_pairs, found.large_buckets) == (expected.candidate_pairs, 0)
    assert not (documents.folder / "pairs").exists()
