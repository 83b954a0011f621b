"""
A corpus in whose making everything happens: two weighted sources under a budget, duplicates of both kinds,
another language, masks, an evaluation set.

    manifest = tiny.run("20_prepare_corpus", write_everything(tiny))
"""

import json

from tests.corpus.tiny import Tiny, chapters

EXAM = "Which of the four rivers that flow into the northern sea carries the most water in a dry winter?"
GERMAN = "Der Hund und die Katze liegen im Garten und schlafen den ganzen Tag unter dem alten Baum. " * 3
# of the nine rows of `web`
REMOVED = {
    "contaminated:exam": 1, "exact_duplicate": 2, "language:de": 1, "near_duplicate": 1, "too_few_words": 1,
}  # fmt: skip
MASKED = {"mask:email": 3}


def write_everything(tiny: Tiny) -> dict:
    """Write the raw files and return the config of stage 20."""
    tiny.write_books()
    books = chapters(0, 2)
    near = books[0] | {"text": books[0]["text"] + " The end.", "title": "Copies"}
    address = " Write to cat@lamp-garden.com about it."
    rows = [near, *books, *(row | {"text": row["text"] + address} for row in chapters(900, 3))]
    rows += [{"text": text} for text in (GERMAN, chapters(7, 1)[0]["text"] + " " + EXAM, "no")]
    raw = tiny.root / "data" / "raw"
    (raw / "web.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (raw / "exam.txt").write_text(EXAM)
    config = tiny.corpus_config(
        budget={"tokens": 20_000, "bytes_per_token": 4.3},
        clean={"pii": "mask"},
        language={"keep": ["en"]},
        decontaminate={"against": [{"name": "exam", "paths": ["data/raw/exam.txt"]}]},
    )
    web = {"name": "web", "kind": "local", "paths": ["data/raw/web.jsonl"], "weight": 0.02}
    fields = {"text": "text", "group": "title", "optional": ["group"]}
    quality = {"preset": "short", "rules": {"top_4gram": "off"}}
    config["sources"].append(web | quality | {"fields": fields, "licence": "CC0-1.0"})
    return config
