"""
Every fault of the teacher, alone at 20 % and all together: exact counts in all five modes, whole and right
rows, nothing twice.
"""

from collections.abc import Iterator

import pytest

from tests.generate.helpers import Session, small_document
from utils.generate.teacher.faults import KINDS
from utils.generate.teacher.process import offline_teacher
from utils.generate.teacher.replies import right_answer
from utils.generate.validate import normalised

ROWS = {"stories": 6, "chat": 12, "pairs": 8, "verdicts": 16, "scored": 8}
"""Rows of the outputs; a unit of `verdicts` is two."""
AMOUNTS = {"429": ":0.02", "latency": ":10", "slow": ":10"}
RUNS = [(kind, kind.startswith("stream")) for kind in KINDS] + [("all", True)]


def document_at(url: str, stream: bool) -> dict:
    document = small_document(stories=6, chat=12, pairs=8)
    pairs = document["datasets"]["pairs"]
    document["datasets"]["verdicts"] = pairs | {"mode": "kto"}
    document["datasets"]["scored"] = pairs | {
        "mode": "mo_dpo",
        "judge": {"min_margin": 0.5, "pairwise": True},
    }
    document["models"]["judge"] = {"provider": "teacher", "model": "teacher-judge", "seed": 0}
    criteria = [{"name": name, "description": "?"} for name in ("correct", "kind")]
    document["judge"] = {"criteria": criteria}
    document["providers"]["teacher"] = {"base_url": url, "max_in_flight": 32}
    for model in document["models"].values():
        model |= {"max_backoff_seconds": 0.02, "stream": stream}
    return document


def sides(row: dict) -> Iterator[tuple[str, str]]:
    """Prompt ("" for a text) and answer of each side that a row holds."""
    if "messages" in row:
        yield tuple(message["content"] for message in row["messages"])
    for name in ("text", "chosen", "rejected", "completion"):
        if name in row:
            yield row.get("prompt", ""), row[name]


@pytest.mark.parametrize(("kind", "stream"), RUNS, ids=[f"{kind}{'-streamed' * on}" for kind, on in RUNS])
def test_a_fault_leaves_exact_counts_of_whole_right_rows(kind, stream, tmp_path):
    session = Session(tmp_path)
    with offline_teacher(0, f"{kind}:0.2{AMOUNTS.get(kind, '')}") as url:
        session.run(document_at(url, stream))
    for name, count in ROWS.items():
        rows = session.rows(name)
        assert len(rows) == count == len({row["id"] for row in rows})
        found = [side for row in rows for side in sides(row)]
        assert len({tuple(map(normalised, side)) for side in found}) == len(found)
        assert all(answer.strip() and "think>" not in answer for _, answer in found)
    assert all(
        answer.rstrip('"').endswith((".", "!", "?"))
        for row in session.rows("stories")
        for _, answer in sides(row)
    )
    for row in session.rows("chat"):
        question, answer = (message["content"] for message in row["messages"])
        assert answer == right_answer(question)
    for row in session.rows("pairs") + session.rows("scored"):
        assert row["chosen"] == right_answer(row["prompt"]) != row["rejected"]
    for row in session.rows("verdicts"):
        assert row["label"] == (row["completion"] == right_answer(row["prompt"]))
    for row in session.rows("scored"):
        assert set(row["chosen_scores"]) == set(row["rejected_scores"]) == {"correct", "kind"}
        assert (
            row["margin"] == pytest.approx(row["chosen_total"] - row["rejected_total"])
            and row["margin"] >= 0.5
        )
