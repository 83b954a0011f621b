"""Stage 20 as a whole: reproducible for any executor, resumable, honest about what it removed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import zstandard

from tests.corpus.tiny import INLINE, ROOT, Tiny, chapters, check_golden
from utils.corpus import reading, sources

STAGE = "20_prepare_corpus"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    tiny = Tiny(tmp_path)
    tiny.write_books()
    return tiny


def rows(path: Path) -> list[dict]:
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def committed(tiny: Tiny) -> list[dict]:
    """The journal of an unfinished corpus."""
    journal = tiny.root / "data" / "corpus.partial" / ".journal" / "blocks.jsonl"
    return [json.loads(line) for line in journal.read_text().splitlines()]


def add_file(tiny: Tiny, name: str, lines: list[bytes]) -> None:
    (tiny.root / "data" / "raw" / "corpus" / name).write_bytes(b"".join(line + b"\n" for line in lines))


def test_output_digest_is_the_recorded_one(tiny: Tiny):
    check_golden(STAGE, tiny.run(STAGE, tiny.corpus_config()))


def test_any_number_of_workers_gives_the_same_bytes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    """With everything on, and on a cluster: test_cluster.py."""
    monkeypatch.setattr(sources, "BLOCK_ROWS", 20)
    executors = [INLINE, {"workers": 1}, {"workers": 2}, {"workers": 4}]
    configs = [tiny.corpus_config(output=f"data/corpus{i}", executor=e) for i, e in enumerate(executors)]
    assert len({tiny.run(STAGE, config).output_digest for config in configs}) == 1


@pytest.mark.parametrize("commits", [1, 3])
def test_kill_9_resumes_to_the_same_digest(tiny: Tiny, capsys: pytest.CaptureFixture, commits: int):
    tiny.kill_after(STAGE, tiny.corpus_config(), commits)
    assert len(committed(tiny)) == commits
    resumed = tiny.run(STAGE, tiny.corpus_config())
    assert "resuming" in capsys.readouterr().out
    assert resumed.output_digest == tiny.run(STAGE, tiny.corpus_config(output="data/whole")).output_digest


def test_a_bound_that_was_too_tight_costs_no_reading(tiny: Tiny, capsys: pytest.CaptureFixture):
    """What was read stands, and the result is that of a run from scratch."""
    tight, wide = {"val_fraction": 0.2, "min_val_documents": 200}, {"val_fraction": 0.3}
    assert "; what was read is kept" in refusal(tiny, capsys, tiny.corpus_config(split=tight), 4)
    assert committed(tiny)
    config = tiny.corpus_config(split=wide, shards={"compression": "gzip"})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(reading, "_work", None)  # nobody may work on a block again
        manifest = tiny.run(STAGE, config)
    assert "resuming" in capsys.readouterr().out
    assert manifest.output_digest == tiny.run(STAGE, config | {"output": "data/scratch"}).output_digest


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


def test_the_order_of_rows_and_files_moves_no_document(tiny: Tiny):
    tiny.run(STAGE, tiny.corpus_config())
    folder = tiny.root / "data" / "raw" / "corpus"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
        path.rename(folder / f"moved-{9 - number}.jsonl")
    tiny.run(STAGE, tiny.corpus_config(output="data/permuted"))
    for split in ("train", "val"):
        shards = [tiny.root / f"data/{output}/{split}/00000.jsonl.zst" for output in ("corpus", "permuted")]
        assert shards[0].read_bytes() == shards[1].read_bytes()


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
    assert 'notes.docx, which data/raw/corpus/* of "books" matches, is an unknown kind of file' in refusal(
        tiny, capsys, tiny.corpus_config(), 2
    )
    (folder / "notes.docx").unlink()
    for path in folder.iterdir():
        path.write_bytes(b"")
    assert 'source "books" has no rows' in refusal(tiny, capsys, tiny.corpus_config(), 4)


RUN = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.corpus.tiny import Tiny
if __name__ == "__main__":
    sys.exit(Tiny(Path({workspace!r})).execute({stage!r}))
"""


def test_neither_hash_seed_nor_locale_nor_threads_change_a_byte(tiny: Tiny):
    language = {"keep": ["en"]}
    expected = tiny.run(STAGE, tiny.corpus_config(output="data/here", language=language)).output_digest
    for seed, locale, threads in (("1", "C", "1"), ("2", "tr_TR.UTF-8", "2")):
        config = tiny.corpus_config(output=f"data/seed{seed}", language=language)
        tiny.write_config(STAGE, config)
        code = RUN.format(root=str(ROOT), workspace=str(tiny.root), stage=STAGE)
        surroundings = {"PYTHONHASHSEED": seed, "LC_ALL": locale, "OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", code], env=os.environ | surroundings, check=True, cwd=ROOT)
        manifest = json.loads((tiny.root / config["output"] / "manifest.json").read_text())
        assert manifest["output_digest"] == expected


def test_gzip_shards_hold_the_same_lines(tiny: Tiny):
    tiny.run(STAGE, tiny.corpus_config(output="data/zstd"))
    tiny.run(STAGE, tiny.corpus_config(output="data/gzip", shards={"compression": "gzip"}))
    stats = [json.loads((tiny.root / f"data/{name}/stats.json").read_text()) for name in ("zstd", "gzip")]
    for split in ("train", "val"):
        shards = [one["splits"][split]["shards"] for one in stats]
        assert [[shard["raw_sha256"] for shard in some] for some in shards][0] == [
            shard["raw_sha256"] for shard in shards[1]
        ]
        assert [shard["name"] for shard in shards[1]] == ["00000.jsonl.gz"]


def test_the_table_lists_every_document_of_the_shards(tiny: Tiny):
    tiny.run(STAGE, tiny.corpus_config(language={"keep": ["en"]}))
    table = pyarrow.parquet.read_table(tiny.root / "data/corpus/documents.parquet").to_pylist()
    for split in ("train", "val"):
        listed = {row["id"]: row for row in table if row["split"] == split}
        written = rows(tiny.root / f"data/corpus/{split}/00000.jsonl.zst")
        assert listed.keys() == {row["id"] for row in written}
        for row in written:
            found = listed[row["id"]]
            assert (found["group"], found["source"]) == (row["group"], "books")
            assert (found["bytes"], found["language"]) == (len(row["text"].encode()), "en")


def test_what_the_terminal_says(tiny: Tiny, capsys: pytest.CaptureFixture):
    add_file(tiny, "part-9.jsonl", [b"{broken", b'{"text": "too short"}', b'{"text": "again short"}'])
    tiny.run(STAGE, tiny.corpus_config())
    said = [line[len("20_prepare_corpus") :].strip() for line in capsys.readouterr().out.splitlines()]
    assert said[1:4] == [
        "books          243 read      240 kept   34,980 tokens (estimated)   too_few_words 2, bad_json 1",
        "mix        34,980 tokens: books 34,980 (100.0 %)",
        "split      train 204 documents, val 36 documents in 6 groups",
    ]
    assert said[4].startswith("done       data/corpus ")
    log = [json.loads(line) for line in (tiny.root / "data/corpus/log/events.jsonl").read_text().splitlines()]
    books = next(row for row in log if row["event"] == "books")
    assert (books["read"], books["kept"], books["removed"]) == (243, 240, {"bad_json": 1, "too_few_words": 2})


def test_undoing_a_rule_brings_back_exactly_its_file(tiny: Tiny):
    add_file(
        tiny, "part-9.jsonl", [b'{"text": "too short"}', b'{"text": "One two three four."}', b'{"text": 1}']
    )
    tiny.run(STAGE, tiny.corpus_config())
    kept = tiny.corpus_config(output="data/undone")
    kept["sources"][0]["rules"]["too_few_words"] = "off"
    tiny.run(STAGE, kept)

    def ids(output: str) -> set[str]:
        shards = (tiny.root / f"data/{output}").glob("*/00000.jsonl.zst")
        return {row["id"] for shard in shards for row in rows(shard)}

    removed = {row["id"] for row in rows(tiny.root / "data/corpus/removed/too_few_words.jsonl.zst")}
    assert (len(removed), ids("undone") - ids("corpus")) == (2, removed)
    folder = tiny.root / "data/undone/removed"
    assert [path.name for path in folder.iterdir()] == ["text_not_string.jsonl.zst"]


STOPPED_RUN = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.corpus.tiny import Tiny
from utils.pipeline.journal import Journal
import utils.corpus.sources
utils.corpus.sources.BLOCK_ROWS = 20
commit, left = Journal.commit, [3]
def told_to_stop(self, record):
    commit(self, record)
    left[0] -= 1
    if not left[0]:
        os.killpg(0, signal.{signal})
Journal.commit = told_to_stop
if __name__ == "__main__":
    sys.exit(Tiny(Path({workspace!r})).execute({stage!r}))
"""


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_to_all_processes_keeps_what_is_done(tiny: Tiny, signal: str, code: int):
    config = tiny.corpus_config(executor={"workers": 2})
    tiny.write_config(STAGE, config)
    program = STOPPED_RUN.format(root=str(ROOT), workspace=str(tiny.root), stage=STAGE, signal=signal)
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60,
        start_new_session=True,
    )  # fmt: skip
    assert process.returncode == code, process.stderr
    assert f"everything committed is kept; rerun to continue (exit {code})" in process.stdout
    assert "died" not in process.stdout + process.stderr
    assert 3 <= len(committed(tiny)) < 12
    resumed = tiny.run(STAGE, config)
    assert resumed.output_digest == tiny.run(STAGE, tiny.corpus_config(output="data/whole")).output_digest
