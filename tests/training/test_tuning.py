"""The arithmetic of fine-tuning: steps, epochs, learning rates."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils.config.sft import TuningRun
from utils.pipeline.errors import ConfigError
from utils.training.tuning import check_context, check_row_tokens, plan_tuning


class Run(TuningRun):
    """A tuning config with nothing of its own."""

    stage = "70_train_sft"


def config(**changes: object) -> Run:
    return Run(**({"output": "x", "row_tokens": 256, "global_batch_tokens": 2048} | changes))


@pytest.mark.parametrize(
    ("changes", "rows", "steps", "epochs"),
    [
        ({"epochs": 2.0}, 301, 76, 608 / 301),
        ({"epochs": 0.01}, 301, 1, 8 / 301),
        ({"max_steps": 7}, 301, 7, 56 / 301),
    ],
)
def test_steps_follow_from_epochs_or_are_given(changes: dict, rows: int, steps: int, epochs: float) -> None:
    plan = plan_tuning(config(**changes), rows, 2e-4)
    assert (plan.batch_rows, plan.steps) == (8, steps)
    assert plan.epochs == pytest.approx(epochs)


def test_the_learning_rate_is_the_config_s_or_that_of_the_mode() -> None:
    assert plan_tuning(config(epochs=1.0), 10, 2e-4).learning_rate == 2e-4
    given = config(epochs=1.0, optimizer={"learning_rate": 0.5})
    assert plan_tuning(given, 10, 2e-4).learning_rate == 0.5


@pytest.mark.parametrize("changes", [{}, {"epochs": 1.0, "max_steps": 5}])
def test_epochs_and_steps_exclude_each_other(changes: dict) -> None:
    with pytest.raises(ValueError, match="give either epochs or max_steps"):
        config(**changes)


def test_a_conversation_beyond_the_context_is_refused() -> None:
    splits = [SimpleNamespace(dataset=SimpleNamespace(lengths=np.array([5, 130])))]
    check_context(splits, 129)
    with pytest.raises(ConfigError, match="the longest conversation has 130 ids, the model reads 128 tokens"):
        check_context(splits, 128)


def test_a_row_holds_one_id_more_than_its_inputs() -> None:
    check_row_tokens(np.array([5, 257]), 256, "sft")
    with pytest.raises(
        ConfigError, match='"row_tokens": 255 is below the longest item of sft, which has 257 ids'
    ) as refused:
        check_row_tokens(np.array([5, 257]), 255, "sft")
    assert "at least 256" in refused.value.fix
