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
    assert run(root) == 0
    warm = tmp_path_factory.mktemp("warm")  # the first run of a process imports and is slower
    write_config(warm, **STEPS)
    started = time.monotonic()
    assert run(warm) == 0
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
    stopped = attempt = 0
    while attempt < 10 or (stopped < 5 and attempt < 40):
        attempt += 1
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
    assert stopped >= 5


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


def judged_main(moment, number):
    """The toy stage, sent a signal while the rows of its n-th evaluation (0 is the first) are read."""

    def entry(config, stage):
        trainer, evaluations = toy_trainer(config, stage), []

        def val():
            if len(evaluations) == moment:
                os.kill(os.getpid(), number)
            evaluations.append(trainer.step)
            yield toy_stage.CountingRows(seed=1).rows(range(8))

        if not trainer.resume():
            trainer.observe(trainer.validate(val()))
        for step, _ in trainer:
            if trainer.evaluates(step):
                trainer.observe(trainer.validate(val()))
                trainer.record("samples", {"text": f"after {step}"})
            trainer.save_if_due()
        return trainer.finish()

    return entry


@pytest.mark.parametrize(
    ("number", "moment", "step"), [(signal.SIGTERM, 0, 0), (signal.SIGINT, 1, 4), (signal.SIGTERM, 3, 12)]
)
def test_a_signal_inside_an_evaluation_leaves_it_to_the_next_process(
    tmp_path, uninterrupted, deaf, number, moment, step
):
    """Evaluations are after steps 0, 4, 8 and 12; the next process is stopped in the same one again."""
    write_config(tmp_path, **STEPS)
    for again in (moment, 0):
        assert run(tmp_path, entry=judged_main(again, number)) == CODES[number]
        folder = max((tmp_path / "checkpoints/toy.partial/checkpoints").glob("step_*"))
        snapshot = read_snapshot(folder)
        assert snapshot.step == step and snapshot.state["unevaluated"]
        assert not [row for row in snapshot.records["history"] if row["step"] == step and "val_loss" in row]
    assert run(tmp_path) == 0
    assert artifact_files(tmp_path) == artifact_files(uninterrupted[0])
    assert output_digest(tmp_path) == output_digest(uninterrupted[0])


def test_an_evaluation_is_left_between_two_batches(tmp_path, deaf):
    write_config(tmp_path, **STEPS)
    drawn = []

    def entry(config, stage):
        trainer = toy_trainer(config, stage)
        trainer.resume()

        def val():
            for i in range(50):
                drawn.append(i)
                if i == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield toy_stage.CountingRows(seed=1).rows(range(8))

        for _ in trainer:
            trainer.validate(val())

    assert run(tmp_path, entry=entry) == 75
    assert drawn == [0, 1]


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
    agreement.ask()
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
