"""Answers, preferences, held-out rows and the refusal of leaked prompts, on hand-computed cases."""

import io
import json
from contextlib import nullcontext

import numpy as np
import pytest
import zstandard

from utils.evaluation.answers import majority_share, score_answers, token_f1
from utils.evaluation.held_out import question_of, read_rows
from utils.evaluation.leakage import prompt_hashes, refuse_leaks
from utils.evaluation.preference import (
    answer_tokens,
    implicit_reward,
    pair_log_probabilities,
    prefers_chosen,
)
from utils.pipeline.errors import UpstreamError


def test_exact_match_ignores_blanks_and_nothing_else() -> None:
    found = score_answers(["It is  red.\n", "it is red.", "It is red"], ["It is red."] * 3)
    assert found.exact.tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the the cat", "the cat", 0.8),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
    ],
)
def test_token_f1(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_majority_is_the_commonest_reference() -> None:
    assert majority_share(["yes", "no", "yes ", "maybe"]) == 0.5


def test_pair_scores_sum_answer_tokens_only() -> None:
    nll = [np.array([9.0, 1.0, 2.0]), np.array([9.0, 4.0]), np.array([9.0, 5.0]), np.array([9.0, 1.0, 1.0])]
    trained = [np.array([0, 0, 1, 1]), np.array([0, 0, 1]), np.array([0, 0, 1]), np.array([0, 0, 1, 1])]
    scores = pair_log_probabilities(nll, trained)
    assert scores.tolist() == [[-3.0, -4.0], [-5.0, -2.0]]
    assert prefers_chosen(scores).tolist() == [True, False]
    assert answer_tokens(trained).tolist() == [[2, 1], [1, 2]]


def test_a_tie_is_not_a_preference() -> None:
    assert not prefers_chosen(np.array([[-1.0, -1.0]]))[0]


def test_implicit_reward_is_against_the_reference() -> None:
    policy, reference = np.array([[-3.0, -2.0]]), np.array([[-5.0, -2.5]])
    assert not prefers_chosen(policy)[0]
    assert prefers_chosen(implicit_reward(policy, reference))[0]


class Folder:
    """An input whose one file is in memory."""

    def __init__(self, rows: list[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        self.data = zstandard.ZstdCompressor().compress(text.encode())

    def open(self, name: str):
        assert name == "test.rows.jsonl.zst"
        return nullcontext(io.BytesIO(self.data))


ROWS = [
    {
        "id": f"{i:032x}",
        "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}],
    }
    for i in range(5)
]


def test_rows_are_read_in_order_up_to_the_limit() -> None:
    assert read_rows(Folder(ROWS), "test") == ROWS
    assert read_rows(Folder(ROWS), "test", limit=2) == ROWS[:2]


def test_the_last_answer_is_the_reference() -> None:
    row = {"id": "x", "messages": [*ROWS[0]["messages"], *ROWS[1]["messages"]]}
    question = question_of(row)
    assert (question.reference, question.first_user_turn, len(question.messages)) == ("a1", "q0", 3)


def test_leaked_prompts_are_refused_with_counts_and_examples() -> None:
    training = {"the training split of sft_data": prompt_hashes(["What is  RED?", "other"])}
    refuse_leaks("the questions", ["What is blue?"], training)
    with pytest.raises(
        UpstreamError, match="1 of 2 prompts of the questions were trained on in the training split"
    ) as no:
        refuse_leaks("the questions", ["what is red?", "What is blue?"], training)
    assert "'what is red?'" in str(no.value) and no.value.exit_code == 3
