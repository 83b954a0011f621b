import pytest

from utils.config.training import ScheduleConfig
from utils.optim.schedule import Schedule, auto_warmup_steps
from utils.pipeline.errors import ConfigError

PEAK, STEPS, WARMUP, FLOOR = 1.0, 100, 10, 0.1


def schedule(kind, **values):
    config = ScheduleConfig(
        kind=kind, warmup_steps=WARMUP, decay_fraction=0.3, final_fraction=FLOOR, **values
    )
    return Schedule.of(config, PEAK, STEPS, 0.95)


GOLDEN = {  # values at s = 0, w - 1, w, S - D, S - D + 1, S - 1 with D = 30
    "cosine": (0.1, 1.0, 1.0, 0.325, 0.311536, 0.100274),
    "linear": (0.1, 1.0, 1.0, 0.4, 0.39, 0.11),
    "wsd": (0.1, 1.0, 1.0, 1.0, 0.835683, 0.115127),
    "constant": (0.1, 1.0, 1.0, 1.0, 1.0, 1.0),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_golden_values(kind):
    found = [schedule(kind)(step) for step in (0, WARMUP - 1, WARMUP, 70, 71, STEPS - 1)]
    assert found == pytest.approx(GOLDEN[kind], abs=1e-6)


@pytest.mark.parametrize("kind", GOLDEN)
def test_never_zero_at_the_first_step_and_never_above_the_peak(kind):
    rates = [schedule(kind)(step) for step in range(STEPS)]
    assert rates[0] > 0 and max(rates) == PEAK
    assert all(later <= earlier for earlier, later in zip(rates[WARMUP:], rates[WARMUP + 1 :], strict=False))


@pytest.mark.parametrize(
    ("steps", "beta2", "warmup"),
    [
        (10, 0.95, 1),
        (200, 0.95, 20),
        (195, 0.95, 20),
        (100_000, 0.95, 2000),
        (10_000, 0.999, 1000),
        (1, 0.95, 1),
    ],
)
def test_auto_warmup(steps, beta2, warmup):
    assert auto_warmup_steps(steps, beta2) == warmup


def test_a_one_step_run_has_a_schedule():
    assert Schedule.of(ScheduleConfig(kind="cosine"), 3e-3, 1, 0.95)(0) == 3e-3


def test_a_warmup_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="a warm-up of 90 and a decay of 30 do not fit into 100 steps"):
        Schedule.of(ScheduleConfig(warmup_steps=90, decay_fraction=0.3), 1.0, 100, 0.95)


def test_a_longer_wsd_run_is_the_shorter_one_up_to_its_decay():
    config = ScheduleConfig(kind="wsd", warmup_steps=WARMUP, decay_fraction=0.3)
    short, long = (Schedule.of(config, PEAK, steps, 0.95) for steps in (100, 400))
    assert [short(step) for step in range(71)] == [long(step) for step in range(71)]
    assert short(71) < long(71)
