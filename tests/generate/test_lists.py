"""What a list call is asked to leave out, and what the file of texts to leave out is held against."""

import json

import pytest

from tests.generate.helpers import Asked, Engine, config, plain_model
from utils.generate.lists import excluded

PLAIN = [f"filler entry number{n}" for n in range(120)]


def test_the_most_similar_entries_are_left_out():
    close = ["Farm animals in winter", "the winter of farm animals", "Animals"]
    known = PLAIN[:60] + close[:2] + PLAIN[60:] + close[2:]
    chosen = excluded(known, "farm animals in winter", most=10, share=0)
    assert chosen[:3] == close and len(chosen) == 10


def test_case_punctuation_and_form_of_letters_do_not_hide_what_is_similar():
    close = ["ANIMALS: (farm)?", "\uff41\uff4e\uff49\uff4d\uff41\uff4c\uff53!"]
    assert excluded([*PLAIN, *close], "Farm, animals.", most=5, share=0)[:2] == close


def test_texts_of_a_script_without_blanks_are_compared_too():
    close = "\u52d5\u7269\u306e\u51ac"
    assert excluded([*PLAIN, close], "\u51ac\u306e\u52d5\u7269", most=5, share=0)[0] == close


def test_each_share_has_the_next_ones_and_all_come_in_turn():
    known = PLAIN[:25]
    shares = [excluded(known, "subject", most=10, share=share) for share in range(3)]
    assert set().union(*shares) == set(known) and excluded(known, "subject", 10, 3) == shares[0]


@pytest.mark.parametrize("mode", ["text", "sft"])
def test_a_text_of_the_excluded_file_is_no_row_and_an_answer_may_be(mode, tmp_path):
    """Every first text repeats the file; in mode sft it is an answer, which stands beside its prompt."""
    taken = "Once upon a time there was a small brown cow that liked the rain."
    (tmp_path / "excluded.txt").write_text(f"{taken}\n")

    def model(asked: Asked) -> str:
        if asked.step == "chosen" and asked.prompt.endswith(".0"):
            return taken.upper()
        return plain_model(asked)

    wanted = config(
        mode,
        rows=12,
        num_subtopics=3,
        duplicates={"subtopics": 1, "prompts": 1, "exclude_file": str(tmp_path / "excluded.txt")},
    )
    engine = Engine(tmp_path / "made")
    engine.fill(wanted, model)
    rows, failed = json.dumps(engine.rows(wanted)), engine.failures(wanted)
    assert (taken.upper() in rows) == (mode == "sft")
    assert ("duplicate_row" in {failure["reason"] for failure in failed}) == (mode == "text")
