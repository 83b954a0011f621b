"""From config to blocks: every format through the stage, mappings, evaluation sets, tokens, refusals."""

import csv
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tests.corpus.tiny import Tiny, chapters
from utils.config.corpus import CorpusConfig
from utils.corpus.evaluation import texts_of
from utils.corpus.intake import check_losses
from utils.pipeline.manifest import Manifest

STAGE = "20_prepare_corpus"
SOURCE = {"name": "web", "kind": "hub", "id": "me/web"}
ROWS = [row for book in range(12) for row in chapters(book, 3)]


def as_csv(rows: list[dict]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out, row_group_size=7)
    return out.getvalue()


def as_lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_text(rows: list[dict]) -> bytes:
    return "<|>".join(row["text"] for row in rows).encode()


FORMS = {
    "jsonl": as_lines,
    "json": lambda rows: json.dumps({"data": rows}).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
    "txt": as_text,
    "md": as_text,
}
CODECS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


def put(tiny: Tiny, name: str, data: bytes) -> None:
    path = tiny.root / "data" / "raw" / "corpus" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def config_of(tiny: Tiny, source: dict | None = None, **changes: object) -> dict:
    config = tiny.corpus_config(**changes)
    config["split"] |= {"min_val_documents": 1, "val_fraction": 0.3}
    return config | {"sources": [config["sources"][0] | (source or {})]}


def documents(tiny: Tiny, output: str = "data/corpus") -> list[dict]:
    """All documents of a corpus, by id."""
    found = []
    for path in sorted((tiny.root / output).glob("*/0*.jsonl.zst")):
        with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
            found += [json.loads(line) for line in file]
    return sorted(found, key=lambda row: row["id"])


def removed(tiny: Tiny, reason: str) -> list[dict]:
    with zstandard.open(
        tiny.root / f"data/corpus/removed/{reason}.jsonl.zst", "rt", encoding="utf-8"
    ) as file:
        return [json.loads(line) for line in file]


def refusal(tiny: Tiny, capsys: pytest.CaptureFixture, config: dict, code: int) -> str:
    tiny.write_config(STAGE, config)
    assert tiny.execute(STAGE) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err + captured.out


def test_every_format_and_compression_gives_the_same_documents(tiny: Tiny):
    texts = set()
    for form, write in FORMS.items():
        for codec, pack in CODECS.items():
            name = f"{form}{codec.replace('.', '_')}"
            put(tiny, f"{name}/a.{form}{codec}", pack(write(ROWS[:20])))
            put(tiny, f"{name}/b.{form}{codec}", pack(write(ROWS[20:])))
            fields = {"text": "text", "group": "title", "id": "id", "optional": ["group", "id"]}
            source = {"paths": [f"data/raw/corpus/{name}/*"], "split_on": "<|>", "fields": fields}
            tiny.run(STAGE, config_of(tiny, source, output=f"data/{name}"))
            found = documents(tiny, f"data/{name}")
            texts.add(tuple(row["text"] for row in found))
            if form not in ("txt", "md"):
                assert {row["meta"]["id"] for row in found} == {row["id"] for row in ROWS}
    assert len(texts) == 1
    assert len(texts.pop()) == len(ROWS)


def test_mapped_fields_arrive_where_they_belong(tiny: Tiny):
    rows = [
        {"q": {"head": f"Title {i}"}, "text": row["text"], "key": i, "lang": "en", "src": f"u{i}", "n": i / 2}
        for i, row in enumerate(ROWS)
    ]
    put(tiny, "a.parquet", as_parquet(rows))
    fields = {"text": ["q.head", "text"], "id": "key", "language": "lang", "url": "src", "keep": ["n"]}
    tiny.run(STAGE, config_of(tiny, {"fields": fields}))
    found = documents(tiny)
    first = next(row for row in found if row["meta"]["id"] == "3")
    assert first["text"] == f"Title 3\n\n{ROWS[3]['text']}"
    assert first["meta"] == {"id": "3", "language": "en", "n": 1.5, "url": "u3"}
    assert first["group"] == first["id"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "json"])
def test_a_field_that_is_nowhere_is_refused_with_all_that_are(
    tiny: Tiny, capsys: pytest.CaptureFixture, form: str
):
    put(tiny, f"a.{form}", FORMS[form](ROWS))
    config = config_of(tiny, {"fields": {"text": "body"}})
    message = (
        'source "books": fields.text names "body", which occurs in none of the first 36 rows; they have '
    )
    assert f"{message}id, text, title" in refusal(tiny, capsys, config, 2)
    assert not (tiny.root / "data/corpus").exists()


def test_files_of_no_known_kind_name_the_pattern(tiny: Tiny, capsys: pytest.CaptureFixture):
    put(tiny, "a.jsonl", as_lines(ROWS))
    put(tiny, "notes/b.docx", b"x")
    for name in ("b.docx", "b.jsonl.bz2", "b.py"):
        (next((tiny.root / "data/raw/corpus/notes").iterdir())).rename(
            tiny.root / "data/raw/corpus/notes" / name
        )
        paths = ["data/raw/corpus/*.jsonl", "data/raw/corpus/**/b*"]
        said = refusal(tiny, capsys, config_of(tiny, {"paths": paths}), 2)
        pattern = 'which data/raw/corpus/**/b* of "books" matches, is an unknown kind of file'
        assert f"data/raw/corpus/notes/{name}, {pattern}" in said
        assert "supported are jsonl, json, csv, parquet, txt, md; plain, .gz or .zst" in said


EXAM = [
    f"Which of the {n} old mills beside the quiet canal still grinds flour for the town {n}" for n in "abcdef"
]


def with_exam(**changes: object) -> dict:
    exam = {"name": "exam", "paths": ["data/raw/eval/*"], "fields": ["q.text", "choices"]} | changes
    return {"decontaminate": {"against": [exam]}}


def put_exam(tiny: Tiny, texts: list[str] = EXAM) -> None:
    folder = tiny.root / "data" / "raw" / "eval"
    folder.mkdir(parents=True)
    rows = [
        {"q": {"text": text}, "choices": ["short", f"{text} or not {i}"], "n": 1}
        for i, text in enumerate(texts)
    ]
    (folder / "exam.jsonl.gz").write_bytes(gzip.compress(as_lines(rows)))


def plant(row: dict, text: str) -> dict:
    return row | {"text": f"{row['text']}\n\nQ: {text.upper()}?", "title": "Planted"}


def exam_run(tiny: Tiny, **changes: object) -> Manifest:
    put_exam(tiny)
    planted = [plant(row, text) for row, text in zip(ROWS[-6:], EXAM, strict=True)]
    put(tiny, "a.jsonl", as_lines([*ROWS[:-6], *planted]))
    config = config_of(tiny, **with_exam())
    config["decontaminate"] |= changes
    return tiny.run(STAGE, config)


def test_planted_evaluation_texts_are_all_found_and_none_in_clean_text(tiny: Tiny):
    manifest = exam_run(tiny)
    assert manifest.metrics["sources"]["books"]["removed"] == {"contaminated:exam": 6}
    assert [row["reason"] for row in removed(tiny, "contaminated")] == ["contaminated:exam"] * 6
    assert removed(tiny, "contaminated")[0]["passage"].lower() == " ".join(EXAM[0].lower().split()[:13])
    assert {row["text"] for row in documents(tiny)} == {row["text"] for row in ROWS[:-6]}


def test_the_evaluation_set_is_recorded_and_enters_the_key(tiny: Tiny):
    before = exam_run(tiny)
    source = before.sources[1]
    assert (source.name, source.kind) == ("evaluation.exam", "evaluation")
    assert [file.path for file in source.files] == ["data/raw/eval/exam.jsonl.gz"]
    assert (source.rows_read, source.rows_kept) == (18, 12)  # six single words are too short to look for
    (tiny.root / "data/raw/eval/exam.jsonl.gz").write_bytes(
        gzip.compress(as_lines([{"q": {"text": EXAM[0]}}]))
    )
    config = config_of(tiny, **with_exam(fields=["q.text"]))
    after = tiny.run(STAGE, config)
    assert after.key != before.key
    assert after.metrics["sources"]["books"]["removed"] == {"contaminated:exam": 1}


def test_passages_can_be_cut_instead(tiny: Tiny):
    manifest = exam_run(tiny, action="passage")
    assert manifest.metrics["sources"]["books"]["removed"] == {}
    assert {row["text"] for row in documents(tiny)} == {row["text"] for row in ROWS}
    assert json.loads((tiny.root / "data/corpus/stats.json").read_text())  # the card has the counts
    assert "exam" in (tiny.root / "data/corpus/DATA_CARD.md").read_text()


def test_an_evaluation_set_without_texts_is_refused(tiny: Tiny, capsys: pytest.CaptureFixture):
    put_exam(tiny)
    put(tiny, "a.jsonl", as_lines(ROWS))
    said = refusal(tiny, capsys, config_of(tiny, **with_exam(fields=["n"])), 4)
    assert 'evaluation set "exam" has no text of 8 words or more in its fields' in said
    assert 'set "fields" of decontaminate.against "exam"' in said
    said = refusal(tiny, capsys, config_of(tiny, **with_exam(paths=["data/raw/none/*"])), 2)
    assert 'source "evaluation.exam": no file matches data/raw/none/*' in said


def test_a_pattern_without_files_names_what_could_be_there(tiny: Tiny, capsys: pytest.CaptureFixture):
    said = refusal(tiny, capsys, config_of(tiny, {"paths": ["data/raw/none/*"]}), 2)
    assert 'source "books": no file matches data/raw/none/*' in said
    assert "put files there: data/raw/none/*; supported are jsonl, json, csv, parquet, txt, md" in said


def test_two_evaluation_sets_of_one_name_are_refused(tiny: Tiny):
    twice = with_exam()["decontaminate"]["against"] * 2
    with pytest.raises(ValueError, match='two evaluation sets are called "exam"'):
        CorpusConfig.model_validate(config_of(tiny, decontaminate={"against": twice}))


def test_an_evaluation_set_of_other_fields_is_refused_with_those_it_has(
    tiny: Tiny, capsys: pytest.CaptureFixture
):
    put_exam(tiny)
    put(tiny, "a.jsonl", as_lines(ROWS))
    said = refusal(tiny, capsys, config_of(tiny, **with_exam(fields=["choices", "q.txt"])), 2)
    assert 'evaluation set "exam": fields names "q.txt", which occurs in none of its 6 rows' in said
    assert "; they have choices, n, q\n" in said
    assert 'set "fields" of decontaminate.against "exam"' in said


@pytest.mark.parametrize(
    ("row", "reason"),
    [(b"{broken", "bad_json"), (b'["text"]', "bad_json"), (b"\xff", "bad_utf8"),
     (b'{"text": "\\ud800"}', "bad_utf8")],
)  # fmt: skip
def test_an_evaluation_set_with_an_unreadable_row_is_refused(
    tiny: Tiny, capsys: pytest.CaptureFixture, row: bytes, reason: str
):
    """Its text would be looked for nowhere."""
    (tiny.root / "data/raw/eval").mkdir(parents=True)
    (tiny.root / "data/raw/eval/a.txt").write_text(EXAM[0])
    (tiny.root / "data/raw/eval/b.jsonl").write_bytes(as_lines([{"text": EXAM[1]}]) + row + b"\n")
    put(tiny, "a.jsonl", as_lines(ROWS))
    said = refusal(tiny, capsys, config_of(tiny, **with_exam(fields=["text"])), 4)
    assert f"data/raw/eval/b.jsonl: row 2 is {reason}, so its text cannot be looked for" in said


def test_an_evaluation_set_may_mix_files_of_different_fields(tiny: Tiny):
    (tiny.root / "data/raw/eval").mkdir(parents=True)
    (tiny.root / "data/raw/eval/a.txt").write_text(EXAM[0])
    (tiny.root / "data/raw/eval/b.jsonl").write_bytes(as_lines([{"goal": EXAM[1]}] * 3))
    (tiny.root / "data/raw/eval/c.jsonl").write_bytes(as_lines([{"question": EXAM[2]}]))
    put(tiny, "a.jsonl", as_lines([*ROWS[:-3], *(plant(ROWS[-1], text) for text in EXAM[:3])]))
    manifest = tiny.run(STAGE, config_of(tiny, **with_exam(fields=["goal", "question"])))
    assert manifest.metrics["sources"]["books"]["removed"] == {"contaminated:exam": 3}


def test_texts_of_a_row():
    row = {"a": "one", "b": ["two", 3, "four"], "c": {"d": "five"}, "e": 6}
    assert list(texts_of(row, ["a", "b", "c.d", "e", "f"])) == ["one", "two", "four", "five"]


def test_masks_languages_and_sets_work_together(tiny: Tiny):
    """Evaluation texts are masked as documents are, or an address in the middle would hide a passage."""
    text = "please write to the keeper of the mill at mill@example.org before the end of the week"
    put_exam(tiny, [text])
    put(tiny, "a.jsonl", as_lines([*ROWS, plant(ROWS[0], text)]))
    settings = {"clean": {"pii": "mask"}, "language": {"keep": ["en"], "min_confidence": 0.1}}
    manifest = tiny.run(STAGE, config_of(tiny, **settings, **with_exam()))
    assert manifest.metrics["sources"]["books"]["removed"] == {"contaminated:exam": 1}
    assert "[EMAIL]" in removed(tiny, "contaminated")[0]["text"]


def test_tokens_are_counted_as_stage_40_counts_them(tiny: Tiny):
    tiny.run_all()
    packed = tiny.run("40_pack_dataset", tiny.pack_config())
    from utils.corpus.blocks import BlockSettings, process_block
    from utils.corpus.fields import Mapping
    from utils.corpus.sources import Cursor, RawBlock
    from utils.tokenizer.frozen import FrozenTokenizer

    tokenizer = FrozenTokenizer(tiny.root / "data/tokenizer")
    settings = BlockSettings(Mapping(), [], 0, "group", 5, None, tokenizer=tokenizer)
    lines = [json.dumps({"text": row["text"]}).encode() for row in documents(tiny)]
    kept = process_block(settings, RawBlock("x", "json", Cursor(), Cursor(), lines)).kept
    total = sum(
        np.fromfile(tiny.root / f"data/packed/{split}.bin", "<u8", count=1, offset=24)[0]
        for split in ("train", "val")
    )
    assert sum(document.tokens for document in kept) == total > 0
    assert packed.stage == "40_pack_dataset"


def test_losses_beyond_the_limit_are_shown_by_reason(tiny: Tiny, capsys: pytest.CaptureFixture):
    from collections import Counter

    source = CorpusConfig.model_validate(tiny.corpus_config()).sources[0]
    check_losses(source, 100, Counter(empty=95))
    put(
        tiny, "a.jsonl", as_lines(ROWS[:2]) + b"{broken\n" * 50 + b'{"text": ""}\n' * 9 + b'{"text": 1}\n' * 3
    )
    said = refusal(tiny, capsys, config_of(tiny), 4)
    assert 'source "books" loses 62 of 64 rows (max_removed_fraction 0.95): bad_json 50, empty 9, ' in said
    assert "check the field mapping and the preset" in said
