"""Bad rows in files of every kind: stage 20 sets each aside under its reason and keeps those around it."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from tests.corpus.tiny import Tiny, chapters

STAGE = "20_prepare_corpus"
GOOD = [row["text"].replace("\n", " ") for row in chapters(900, 2)]
FIRST, LAST = (text.encode() for text in GOOD)
LATIN_1 = "The caf\u00e9 by the river was closed on that day.".encode("latin-1")
CUT = b"<|endoftext|>"
FILES = {
    # name -> content with one bad row between two good ones, its reason, what its text must show
    "a.csv": (b"text,n\n%s,1\n%s,2\n%s,3\n" % (FIRST, LATIN_1, LAST), "bad_utf8", "The caf? by"),
    "b.csv": (b"text,n\n%s,1\nA, B and C,2\n%s,3\n" % (FIRST, LAST), "bad_csv", "B and C"),
    "c.csv": (b'text,n\n%s,1\n"",2\n%s,3\n' % (FIRST, LAST), "empty", ""),
    "d.txt": (CUT.join([FIRST, LATIN_1, LAST]), "bad_utf8", "The caf? by"),
    "e.md": (CUT.join([FIRST, LATIN_1, LAST]), "bad_utf8", "The caf? by"),
    "f.jsonl": (
        b"\n".join(
            [json.dumps({"text": GOOD[0]}).encode(), b"{broken", json.dumps({"text": GOOD[1]}).encode()]
        ),
        "bad_json",
        "{broken",
    ),
    "g.json": (
        json.dumps([{"text": GOOD[0]}, {"text": 7}, {"text": GOOD[1]}]).encode(),
        "text_not_string",
        "7",
    ),
}
CODECS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", FILES)
def test_a_bad_row_goes_alone_and_says_why(tmp_path: Path, name: str, codec: str):
    content, reason, shown = FILES[name]
    tiny = Tiny(tmp_path)
    raw = tiny.root / "data/raw"
    raw.mkdir(parents=True)
    (raw / f"{name}{codec}").write_bytes(CODECS[codec](content))
    source = {"name": "odd", "kind": "local", "paths": [f"data/raw/{name}{codec}"], "preset": "short"}
    source |= {"split_on": CUT.decode(), "rules": {"top_4gram": "off"}}
    split = {"val_fraction": 0.5, "min_val_documents": 1}
    config = tiny.corpus_config(sources=[source], split=split)
    manifest = tiny.run(STAGE, config)
    assert manifest.metrics["sources"]["odd"]["removed"] == {reason: 1}
    (removed,) = rows(tiny.root / f"data/corpus/removed/{reason}.jsonl.zst")
    assert shown in removed["text"].replace("\ufffd", "?")
    kept = [row["text"] for path in (tiny.root / "data/corpus").glob("*/0*.zst") for row in rows(path)]
    assert sorted(kept) == sorted(GOOD)


def rows(path: Path) -> list[dict]:
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]
