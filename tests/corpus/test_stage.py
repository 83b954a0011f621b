"""Stage 20 as a whole: reproducible for any executor, resumable, honest about what it removed."""

import json
from pathlib import Path

import pytest
import zstandard

from tests.corpus.tiny import INLINE, Tiny, chapters, check_golden

STAGE = "20_prepare_corpus"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    tiny = Tiny(tmp_path)
    tiny.write_books()
    return tiny


def rows(path: Path) -> list[dict]:
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def add_file(tiny: Tiny, name: str, lines: list[bytes]) -> None:
    (tiny.root / "data" / "raw" / "corpus" / name).write_bytes(b"".join(line + b"\n" for line in lines))


def test_output_digest_is_the_recorded_one(tiny: Tiny):
    check_golden(STAGE, tiny.run(STAGE, tiny.corpus_config()))


def test_any_number_of_workers_gives_the_same_bytes(tiny: Tiny):
    executors = [INLINE, {"workers": 1}, {"workers": 2}]
    configs = [tiny.corpus_config(output=f"data/corpus{i}", executor=e) for i, e in enumerate(executors)]
    assert len({tiny.run(STAGE, config).output_digest for config in configs}) == 1


@pytest.mark.parametrize("commits", [1, 3])
def test_kill_9_resumes_to_the_same_digest(tiny: Tiny, capsys: pytest.CaptureFixture, commits: int):
    tiny.kill_after(STAGE, tiny.corpus_config(), commits)
    resumed = tiny.run(STAGE, tiny.corpus_config())
    assert "resuming" in capsys.readouterr().out
    assert resumed.output_digest == tiny.run(STAGE, tiny.corpus_config(output="data/whole")).output_digest


def test_groups_stay_on_one_side_and_every_row_is_accounted_for(tiny: Tiny):
    manifest = tiny.run(STAGE, tiny.corpus_config())
    sides = {split: rows(tiny.root / f"data/corpus/{split}/00000.jsonl.zst") for split in ("train", "val")}
    groups = {split: {row["group"] for row in side} for split, side in sides.items()}
    assert groups["train"] | groups["val"] == {f"Book {i}" for i in range(40)}
    assert not groups["train"] & groups["val"]
    assert sides["train"][0].keys() == {"group", "id", "meta", "source", "text"}
    assert manifest.metrics["sources"]["books"]["read"] == 240 == sum(map(len, sides.values()))


def test_bad_rows_and_duplicates_are_kept_aside_with_their_reason(tiny: Tiny):
    original = chapters(0, 1)[0]
    copy = original | {"title": "Another book"}
    near = copy | {"text": original["text"] + " The end."}
    bad = [b"{broken", b'{"text": "\xff"}', b'{"title": "x"}', b'{"text": "too short"}', b'{"text": ""}']
    add_file(tiny, "part-9.jsonl", [*bad, json.dumps(copy).encode(), json.dumps(near).encode()])
    manifest = tiny.run(STAGE, tiny.corpus_config())
    reasons = (
        "bad_json",
        "bad_utf8",
        "missing_text",
        "too_few_words",
        "empty",
        "exact_duplicate",
        "near_duplicate",
    )
    assert manifest.metrics["sources"]["books"]["removed"] == dict.fromkeys(sorted(reasons), 1)
    folder = tiny.root / "data" / "corpus" / "removed"
    assert {path.name for path in folder.iterdir()} == {f"{reason}.jsonl.zst" for reason in reasons}
    loser = rows(folder / "near_duplicate.jsonl.zst")[0]
    assert loser["text"] == near["text"]
    assert loser["kept"] == rows(folder / "exact_duplicate.jsonl.zst")[0]["id"]
    assert loser["jaccard"] >= 0.8
    assert rows(folder / "too_few_words.jsonl.zst")[0]["threshold"] == 5


def test_card_and_stats_agree_and_name_no_place(tiny: Tiny):
    tiny.run(STAGE, tiny.corpus_config())
    stats = json.loads((tiny.root / "data/corpus/stats.json").read_text())
    card = (tiny.root / "data/corpus/DATA_CARD.md").read_text()
    books = stats["sources"]["books"]
    assert f"| books | local | {books['read']} | {books['kept']} | {books['bytes']:,} |" in card
    assert str(tiny.root) not in card


def test_removed_texts_can_be_left_out(tiny: Tiny):
    add_file(tiny, "part-9.jsonl", [b'{"text": "too short"}'])
    tiny.run(STAGE, tiny.corpus_config(keep_removed="ids"))
    assert "text" not in rows(tiny.root / "data/corpus/removed/too_few_words.jsonl.zst")[0]
    assert "too short" not in (tiny.root / "data/corpus/DATA_CARD.md").read_text()


def test_adding_a_source_moves_no_document(tiny: Tiny):
    tiny.run(STAGE, tiny.corpus_config())
    more = tiny.corpus_config(output="data/more")
    more["sources"].append({"name": "code", "kind": "docstrings", "packages": ["json"]})
    tiny.run(STAGE, more)
    for split in ("train", "val"):
        before = {row["id"] for row in rows(tiny.root / f"data/corpus/{split}/00000.jsonl.zst")}
        after = rows(tiny.root / f"data/more/{split}/00000.jsonl.zst")
        assert before == {row["id"] for row in after if row["source"] == "books"}


def refusal(tiny: Tiny, capsys: pytest.CaptureFixture, config: dict, code: int) -> str:
    tiny.write_config(STAGE, config)
    assert tiny.execute(STAGE) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    return captured.err + captured.out


def changed_source(tiny: Tiny, **changes: object) -> dict:
    config = tiny.corpus_config()
    return config | {"sources": [config["sources"][0] | changes]}


def test_refusals(tiny: Tiny, capsys: pytest.CaptureFixture):
    cases = {
        "no file matches data/raw/none/*.txt": (changed_source(tiny, paths=["data/raw/none/*.txt"]), 2),
        'fields.text names "body", which occurs in none': (changed_source(tiny, fields={"text": "body"}), 2),
        'two sources are called "books"': (
            tiny.corpus_config(sources=tiny.corpus_config()["sources"] * 2), 2,
        ),
        'needs "inputs.generated"': (tiny.corpus_config(sources=[{"name": "s", "kind": "generated"}]), 2),
        'pathes" (did you mean "paths"?)': (changed_source(tiny, pathes=[]), 2),
        "rows (max_removed_fraction 0.5): too_few_words 240": (
            changed_source(tiny, rules={"too_few_words": 500}, max_removed_fraction=0.5), 4,
        ),
        "split.min_val_documents asks for 200": (tiny.corpus_config(split={"min_val_documents": 200}), 4),
    }  # fmt: skip
    for message, (config, code) in cases.items():
        assert message in refusal(tiny, capsys, config, code)


def test_bad_files_are_refused(tiny: Tiny, capsys: pytest.CaptureFixture):
    folder = tiny.root / "data/raw/corpus"
    (folder / "part-0.jsonl.gz").write_bytes(b"not gzip")
    assert "part-0.jsonl.gz is damaged: Not a gzipped file" in refusal(tiny, capsys, tiny.corpus_config(), 4)
    (folder / "part-0.jsonl.gz").rename(folder / "notes.docx")
    assert "notes.docx: unknown kind of file" in refusal(tiny, capsys, tiny.corpus_config(), 2)
    (folder / "notes.docx").unlink()
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert 'source "books" has no rows' in refusal(tiny, capsys, tiny.corpus_config(), 4)
