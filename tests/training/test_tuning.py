"""The arithmetic of fine-tuning: steps, epochs, learning rates."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils.config.sft import TuningRun
from utils.pipeline.errors import ConfigError
from utils.training.tuning import check_context, plan_tuning


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


def test_a_batch_of_more_rows_than_there_are_is_refused_with_the_largest_that_would_do() -> None:
    with pytest.raises(
        ConfigError,
        match='"global_batch_tokens": 2,048 is 8 rows of 256 tokens, and there are only 7: a step',
    ) as refused:
        plan_tuning(config(epochs=1.0), 7, 2e-4)
    assert refused.value.fix == '"global_batch_tokens": 1792 or less, or more data'
    assert plan_tuning(config(epochs=1.0, global_batch_tokens=1792), 7, 2e-4).batch_rows == 7
    assert plan_tuning(config(epochs=1.0), 8, 2e-4).batch_rows == 8


@pytest.mark.parametrize("changes", [{}, {"epochs": 1.0, "max_steps": 5}])
def test_epochs_and_steps_exclude_each_other(changes: dict) -> None:
    with pytest.raises(ValueError, match="give either epochs or max_steps"):
        config(**changes)


def test_a_conversation_beyond_the_context_is_refused() -> None:
    splits = [SimpleNamespace(dataset=SimpleNamespace(lengths=np.array([5, 130])))]
    check_context(splits, 129)
    with pytest.raises(ConfigError, match="the longest conversation has 130 ids, the model reads 128 tokens"):
        check_context(splits, 128)
