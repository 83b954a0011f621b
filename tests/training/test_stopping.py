"""Asked to stop at any moment, one process leaves with the right code and continues to the same bytes."""

import os
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest

from tests.training import toy_stage
from tests.training.test_checkpoint import SETTINGS, artifact_files, output_digest
from tests.training.toy_stage import run, toy_trainer, write_config
from utils.pipeline.signals import StopRequest
from utils.training.agreement import Agreement
from utils.training.checkpoint import read_snapshot

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
STEPS = SETTINGS | {"steps": 12, "micro_batch_rows": 1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    write_config(root, **STEPS)
    started = time.monotonic()
    assert run(root) == 0
    return root, time.monotonic() - started


@pytest.fixture
def deaf():
    """A signal that comes when the stage does not listen (before and after it) is nothing to the tests."""
    before = {number: signal.signal(number, lambda *_: None) for number in CODES}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES, ids=["SIGTERM", "SIGINT"])
def test_signals_at_random_moments_lead_to_the_same_bytes(tmp_path, uninterrupted, deaf, number):
    whole, seconds = uninterrupted
    dice = random.Random(int(number))
    stopped = 0
    for attempt in range(10):
        root = tmp_path / str(attempt)
        root.mkdir()
        write_config(root, **STEPS)
        timer = threading.Timer(dice.random() * seconds, os.kill, (os.getpid(), number))
        timer.start()
        code = run(root)
        timer.cancel()
        timer.join()
        assert code in (0, CODES[number])  # it may have been faster than the signal
        stopped += code != 0
        if code:
            assert not (root / "checkpoints/toy").exists()
            assert run(root) == 0
        assert artifact_files(root) == artifact_files(whole)
        assert output_digest(root) == output_digest(whole)
    assert stopped > 0


def signalling_main(moment, number):
    """The toy stage, sent a signal at its n-th micro-batch (1 is the first; 4 make a step)."""

    def entry(config, stage):
        trainer = toy_trainer(config, stage)
        val = [toy_stage.CountingRows(seed=1).rows(range(8))]
        if not trainer.resume():
            trainer.observe(trainer.validate(val))
        backward, calls = trainer._gradients.backward, []

        def counted(batch, scale):
            calls.append(1)
            if len(calls) == moment:
                os.kill(os.getpid(), number)
            return backward(batch, scale)

        trainer._gradients.backward = counted
        if moment == 0:
            os.kill(os.getpid(), number)
        for step, _ in trainer:
            if trainer.evaluates(step):
                trainer.observe(trainer.validate(val))
                trainer.record("samples", {"text": f"after {step}"})
            trainer.save_if_due()
        return trainer.finish()

    return entry


@pytest.mark.parametrize(
    ("number", "moment", "saved"),
    [
        (signal.SIGTERM, 0, 0),
        (signal.SIGTERM, 1, 0),
        (signal.SIGTERM, 4, 1),
        (signal.SIGINT, 6, 1),
        (signal.SIGINT, 27, 6),
    ],
)
def test_a_signal_inside_an_accumulation_saves_the_last_finished_step(
    tmp_path, uninterrupted, deaf, number, moment, saved
):
    write_config(tmp_path, **STEPS)
    assert run(tmp_path, entry=signalling_main(moment, number)) == CODES[number]
    folder = max((tmp_path / "checkpoints/toy.partial/checkpoints").glob("step_*"))
    snapshot = read_snapshot(folder)
    assert (snapshot.step, snapshot.cursor["rows_drawn"]) == (saved, 4 * saved)
    assert len([row for row in snapshot.records["history"] if "loss" in row]) == saved
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted[0])


class TwoRanks:
    """A machine of two processes whose other one wants what `other` says."""

    num_ranks, rank = 2, 0

    def __init__(self, other):
        self.other = other

    def sum(self, values):
        return [ours + theirs for ours, theirs in zip(values, self.other, strict=True)]


class Sums:
    """A launched step with the wishes of all."""

    def __init__(self, step, wishes):
        self.step, self.wishes = step, lambda: wishes


def test_what_another_process_wants_is_heard_before_the_first_step_and_after_each():
    stage = SimpleNamespace(stop_request=StopRequest())
    agreement = Agreement(stage, TwoRanks([1.0, 0.0, 0.0]), save_every_minutes=15)
    assert agreement.exit_code == 0
    agreement.begin()
    assert agreement.exit_code == 75 and 24 < agreement.seconds_left(25) <= 25
    stage.stop_request.exit_code = 130  # ours alone is not enough
    agreement.hear(Sums(1, [0.0, 0.0, 0.0]))
    assert agreement.exit_code == 0 and not agreement.stopping and agreement.wishes() == [0.0, 1.0, 0.0]
    agreement.hear(Sums(2, [1.0, 1.0, 0.0]))
    assert agreement.exit_code == 130 and agreement.seconds_left(25) is None


def test_a_wish_to_save_from_before_the_last_save_is_not_heard_again():
    agreement = Agreement(SimpleNamespace(stop_request=StopRequest()), TwoRanks([0, 0, 0]), 15)
    agreement.hear(Sums(4, [0.0, 0.0, 1.0]))
    assert agreement.save_now
    agreement.saved(5)
    agreement.hear(Sums(5, [0.0, 0.0, 1.0]))
    assert not agreement.save_now
    agreement.hear(Sums(6, [0.0, 0.0, 1.0]))
    assert agreement.save_now
