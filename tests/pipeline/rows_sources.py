"""Rows about data from outside the chain: branches of the Hub (29), evaluation sets (52)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from tests.pipeline.rows import answers, refuses_at_first, row, up_to_date
from tests.pipeline.rows_currency import REASON, patched
from tests.pipeline.toy import Toy
from utils.pipeline import revisions


@contextmanager
def hub_at(commit: str) -> Iterator[list[str]]:
    """A Hub whose branches all stand for one commit; yields what it was asked."""
    asked: list[str] = []

    def answer(name: str, dataset: str, revision: str) -> str:
        asked.append(f"{name} {dataset} {revision}")
        return commit

    with patched(revisions, "resolve_revision", answer):
        yield asked


@row("29", "G20")
def hub_revision_moved(toy: Toy) -> None:
    toy.set("20_prepare_corpus", web="main")
    with hub_at("a" * 40) as asked:
        toy.build()
        up_to_date(toy)
        assert set(asked) == {"web toy/web main"} and len(asked) == 1, asked
    with hub_at("b" * 40) as asked:
        up_to_date(toy)  # what was resolved is kept, and nobody asks again
        assert asked == []
        moved = toy.tool("status", "demo", "--online")
        answers(moved, 3, "stale      ")
        assert "source.web:" in moved.text, moved.text
        toy.follow(moved.text.splitlines()[-1])
        answers(toy.tool("status", "demo", "--online"), 0, "20_prepare_corpus      ok")
    web = toy.manifest("20_prepare_corpus")["sources"][1]
    assert (web["requested_revision"], web["resolved_revision"]) == ("main", "b" * 40)


@row("29", "G20")
def hub_revision_asked_for_is_another(toy: Toy) -> None:
    toy.set("20_prepare_corpus", web="main")
    with hub_at("a" * 40):
        toy.build()
    toy.set("20_prepare_corpus", web="c" * 40)
    with hub_at("b" * 40) as asked:
        refuses_at_first(toy, "30_train_tokenizer", "stale", "config.web: main -> ")
        answers(toy.run("20_prepare_corpus"), 0, "config.web: main -> ")
    assert asked == []  # a commit stands for itself


# evaluation sets


def measured_on(toy: Toy, name: str = "exam") -> str:
    """An evaluation set that stage 100 reads."""
    path = f"raw/eval/{name}.txt"
    toy.put(path, f"What is asked in {name}?")
    toy.set("100_evaluate", texts=["raw/eval/*.txt"])
    return path


@row("52", "G27")
def corpus_made_without_an_evaluation_set(toy: Toy) -> None:
    path = measured_on(toy)
    refused = toy.run("100_evaluate")
    part = f"mismatched (decontamination: data/demo/corpus was not kept clean of {path})"
    answers(refused, 3, part, "mismatched")
    assert (
        "decontaminate.against of config/demo/20_prepare_corpus.json, then: python tools/pipeline.py"
        in refused.fix
    )
    toy.set("20_prepare_corpus", against=["raw/eval/exam.txt"])
    toy.follow(refused.fix)
    up_to_date(toy)
    measured_on(toy, "second")  # another set is another question
    answers(toy.run("100_evaluate"), 3, "was not kept clean of raw/eval/second.txt")


@row("52", "G27")
def evaluation_set_edited_since(toy: Toy) -> None:
    path = measured_on(toy)
    toy.set("20_prepare_corpus", against=[path])
    toy.build()
    toy.put(path, "What is asked now?")
    answers(toy.run("100_evaluate"), 3, "source.evaluation.exam:")
    answers(toy.tool("run", "demo"), 0, "0 failed")
    up_to_date(toy)


@row("52", "G24")
def evaluation_on_an_unclean_corpus_allowed(toy: Toy) -> None:
    measured_on(toy)
    answers(toy.run("100_evaluate", "--allow-mismatch", REASON), 0, "done")
    entry = toy.manifest("100_evaluate")["mismatches_allowed"][0]
    assert (entry["component"], entry["reason"]) == ("decontamination", REASON)
    up_to_date(toy, "100_evaluate")
    measured_on(toy, "second")  # the waiver covers the set that it was given for
    answers(toy.run("100_evaluate"), 3, "was not kept clean of raw/eval/exam.txt, raw/eval/second.txt")


@row("52", refuses=False)
def corpus_that_is_gone_is_known_from_the_archive_or_unknown(toy: Toy) -> None:
    path = measured_on(toy)
    toy.set("20_prepare_corpus", against=[path])
    for room in ("data/demo", "checkpoints"):
        shutil.rmtree(toy.root / room)
    toy.build()
    for stage in ("20_prepare_corpus", "30_train_tokenizer"):
        shutil.rmtree(toy.folder(stage))
    answers(toy.run("100_evaluate", "--force"), 0, "corpus: kept clean")
    shutil.rmtree(toy.workspace.records / "manifests")
    answers(toy.run("100_evaluate", "--force"), 0, "corpus: unknown")
