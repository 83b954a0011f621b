"""One block: every row is kept or removed with one reason, whatever is in it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.corpus.blocks import BlockResult, BlockSettings, document_id, process_block
from utils.corpus.decontaminate import build_index
from utils.corpus.dedup import ngram_hashes, permutations, sign
from utils.corpus.fields import Mapping
from utils.corpus.language import LanguageSettings
from utils.corpus.pii import MaskSettings
from utils.corpus.quality import resolve_rules
from utils.corpus.sources import Cursor, RawBlock
from utils.pipeline.hashing import unit_hash

SETTINGS = BlockSettings(Mapping(), resolve_rules("short", {}), 0, "group", 5, None)
GOOD = "A small boat went out on the quiet sea."
GERMAN = "Ein kleines Boot fuhr am fruehen Morgen hinaus auf das stille Meer und kam nicht zurueck."


def process(*rows: bytes, kind: str = "json", **changes: object) -> BlockResult:
    block = RawBlock("web", kind, Cursor(0, 10, None, 10), Cursor(0, 10 + len(rows), 99, 20), list(rows))
    return process_block(replace(SETTINGS, **changes), block)


def line(text: str, **fields: object) -> bytes:
    return json.dumps({"text": text} | fields).encode()


def reasons(result: BlockResult) -> list[str]:
    return [removed.reason for removed in result.removed]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"{broken", "bad_json"),
        (b'{"text": "\xff"}', "bad_utf8"),
        (b'{"text": " \\n \\u200b"}', "empty"),
        (b'{"text": "two words"}', "too_few_words"),
    ],
)
def test_reasons(row: bytes, reason: str):
    result = process(row)
    assert reasons(result) == [reason]
    assert result.removed[0].fields["source"] == "web"
    assert not result.kept


@pytest.mark.parametrize("rules", [{}, {"stop_words": 2}])
def test_beside_other_languages_stop_words_are_asked_of_english_texts_only(rules: dict):
    english = "Quiet boats sail past green hills while children watch from wooden windows near tall trees."
    plain = "The boat of my father went out on a quiet sea and came home with many small silver fish."
    languages = LanguageSettings(("de", "en"), 0.2)
    asked = resolve_rules("prose", {"too_few_words": 5} | rules, languages.keep)
    result = process(line(english), line(GERMAN), line(plain), rules=asked, language=languages)
    if rules:  # whoever asks for it asks it of every text
        assert reasons(result) == ["stop_words"] * 2
    else:
        assert reasons(result) == ["stop_words"] and result.removed[0].text == english
        assert (result.removed[0].fields["measured"], result.removed[0].fields["threshold"]) == (0, 2)
        assert [kept.language for kept in result.kept] == ["de", "en"]


def test_removed_by_a_rule_carries_its_numbers_and_its_text():
    removed = process(b'{"text": "two words  "}').removed[0]
    assert (removed.fields["measured"], removed.fields["threshold"]) == (2, 5)
    assert (removed.text, removed.fields["id"]) == ("two words", document_id("two words"))


def test_line_of_a_kept_document():
    mapping = Mapping(("head", "body.text"), "book", (("id", "key"), ("score", "score")))
    row = {"head": "Title", "body": {"text": GOOD + "  "}, "book": 12, "key": 1, "score": [0.5]}
    kept = process(json.dumps(row).encode(), mapping=mapping).kept[0]
    text, meta = f"Title\n\n{GOOD}", {"id": "1", "score": [0.5]}
    expected = {"group": "12", "id": document_id(text), "meta": meta, "source": "web", "text": text}
    assert kept.line == json.dumps(expected, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    assert kept.split_hash == unit_hash("split", 0, "12")
    assert kept.order_hash == unit_hash("order", 0, kept.id)
    assert (kept.text_bytes, kept.language, kept.tokens) == (len(text), "", 0)


def test_without_group_or_by_document_the_id_is_the_group():
    row, grouped = line(GOOD, book="b"), Mapping(group="book")
    for result in (process(row), process(row, mapping=grouped, split_by="document")):
        assert json.loads(result.kept[0].line)["group"] == document_id(GOOD)
    assert json.loads(process(row, mapping=grouped).kept[0].line)["group"] == "b"


def test_sketch_and_signature_are_those_of_the_text():
    values = permutations(120, 1)
    kept = process(line(GOOD), permutations=values).kept[0]
    hashes = ngram_hashes(GOOD, 5)
    assert np.array_equal(kept.sketch, hashes)
    assert np.array_equal(kept.signature, sign(hashes, values))


@settings(max_examples=200)
@given(
    st.lists(
        st.binary(max_size=40) | st.text(max_size=60).map(lambda t: json.dumps({"text": t}).encode()),
        max_size=8,
    ),
    st.sampled_from(["web", "prose", "short"]),
    st.sampled_from(["keep", "mask", "remove"]),
)
def test_nothing_is_lost_whatever_comes(rows: list[bytes], preset: str, urls: str):
    changes = {"rules": resolve_rules(preset, {"too_few_words": 0}), "masks": MaskSettings(urls, "mask")}
    result = process(*rows, language=LanguageSettings(("en",)), **changes)
    assert len(result.kept) + len(result.removed) == len(rows) == result.rows_read
    assert result.next == Cursor(0, 10 + len(rows), 99, 20)


def test_masks_are_counted_in_kept_documents_only():
    masks = MaskSettings(urls="mask", pii="mask")
    result = process(line(GOOD + " a@b.co, c@d.org, https://x.y"), line("a@b.co"), line(GOOD), masks=masks)
    assert json.loads(result.kept[0].line)["text"] == GOOD + " [EMAIL], [EMAIL], [URL]"
    assert result.counts == {"mask:email": 2, "mask:url": 1}
    assert reasons(result) == ["too_few_words"]


def test_documents_with_personal_data_may_go():
    masks = MaskSettings(urls="mask", pii="drop_document")
    result = process(line(GOOD + " a@b.co 8.8.8.8"), line(GOOD + " https://x.y"), masks=masks)
    assert reasons(result) == ["pii:email"]
    assert result.removed[0].text == GOOD + " a@b.co 8.8.8.8"
    assert result.counts == {"mask:url": 1}


def test_a_text_of_addresses_only_is_empty():
    assert reasons(process(line("https://x.y\n\nwww.a.b"), masks=MaskSettings(urls="remove"))) == ["empty"]


def test_line_rules_change_the_text_and_are_counted():
    rules = resolve_rules("short", {"line_rules": 1_000})
    result = process(line(f"{GOOD}\nPlease enable JavaScript.\n{GOOD[::-1]}"), rules=rules)
    assert json.loads(result.kept[0].line)["text"] == f"{GOOD}\n{GOOD[::-1]}"
    assert result.counts == {"line_rules": 1}
    nothing_left = [rule for rule in rules if rule.name == "line_rules"]
    assert reasons(process(line("cookie policy"), rules=nothing_left)) == ["empty"]


def test_languages_decide_after_quality():
    english = LanguageSettings(("en",), 0.2)
    rows = (line(GOOD * 3), line("zu kurz"), line(GERMAN), line("12 34 56 ab cd ef"))
    result = process(*rows, language=english)
    assert reasons(result) == ["too_few_words", "language:de"]
    assert [kept.language for kept in result.kept] == ["en", "unknown"]
    removed = result.removed[1]
    assert removed.fields["threshold"] == 0.2 and removed.fields["measured"] > 0.2
    strict = process(*rows, language=LanguageSettings(("en",), 0.2, keep_unknown=False))
    assert reasons(strict) == ["too_few_words", "language:de", "language:unknown"]


EXAM = "which of these four rivers carries the most water into the northern sea every single spring"
PROSE = [f"{name} {GOOD}" for name in ("One.", "Two.", "Three.")]


def contaminated(tmp_path: Path, **changes: object) -> Callable[..., BlockResult]:
    reference, _ = build_index([("exam", [EXAM])], 13, tmp_path / "index")
    return lambda *rows: process(*rows, evaluation_sets=reference, **changes)


def test_documents_that_hold_a_passage_of_an_evaluation_set_go(tmp_path: Path):
    run = contaminated(tmp_path)
    result = run(
        line(GOOD),
        line(f'{GOOD}\n\nQ: Which of these four rivers\ncarries the most water into the "northern" sea now?'),
    )
    assert reasons(result) == ["contaminated:exam"]
    assert result.removed[0].fields["passage"] == (
        'Which of these four rivers carries the most water into the "northern" sea'
    )
    assert len(result.kept) == 1


def test_passages_may_be_cut_instead(tmp_path: Path):
    run = contaminated(tmp_path, cut_passages=True)
    result = run(line("\n\n".join([PROSE[0], f"Q. {EXAM}?\nA. The second.", PROSE[1], EXAM, PROSE[2]])))
    assert json.loads(result.kept[0].line)["text"] == "\n\n".join(PROSE)
    assert result.kept[0].id == document_id("\n\n".join(PROSE))
    assert result.counts == {"passage:exam": 2}
    too_little = run(line(f"Only this\n\n{EXAM}"), line(EXAM))
    assert reasons(too_little) == ["contaminated:exam", "contaminated:exam"]


def test_a_passage_across_paragraphs_cuts_all_of_them(tmp_path: Path):
    run = contaminated(tmp_path, cut_passages=True)
    words = EXAM.split()
    parts = [PROSE[0], " ".join(words[:6]), " ".join(words[6:9]), " ".join([*words[9:], PROSE[1]]), PROSE[2]]
    result = run(line("\n\n".join(parts)))
    assert json.loads(result.kept[0].line)["text"] == f"{PROSE[0]}\n\n{PROSE[2]}"
    assert result.counts == {"passage:exam": 3}


def test_cutting_that_joins_a_passage_cuts_again(tmp_path: Path):
    run = contaminated(tmp_path, cut_passages=True)
    words = EXAM.split()
    halves = [" ".join(words[:7]), " ".join(words[7:])]
    result = run(line("\n\n".join([PROSE[0], halves[0], EXAM, halves[1], PROSE[2]])))
    assert json.loads(result.kept[0].line)["text"] == f"{PROSE[0]}\n\n{PROSE[2]}"


def test_how_rows_are_sliced_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [line(f"{GOOD} {i}" if i % 3 else "short") for i in range(20)]
    run = contaminated(tmp_path, language=LanguageSettings(("en",)), permutations=permutations(12, 1))
    before = [(kept.line, kept.signature.tolist()) for kept in run(*rows).kept]
    for slice_rows, slice_bytes in ((3, 1 << 20), (256, 100), (1, 1)):
        monkeypatch.setattr("utils.corpus.blocks.SLICE_ROWS", slice_rows)
        monkeypatch.setattr("utils.corpus.blocks.SLICE_BYTES", slice_bytes)
        result = run(*rows)
        assert [(kept.line, kept.signature.tolist()) for kept in result.kept] == before
        assert len(result.removed) == 7
