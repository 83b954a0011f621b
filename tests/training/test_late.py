"""Numbers of a step reach the host one step late, and nothing inside a step asks for them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.test_loop import inside
from utils.training.gradients import total
from utils.training.late import LateNumbers, StepClock


class CountReads(TorchDispatchMode):
    """Counts how often a tensor is asked for its value: float(), bool(), item()."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(keywords or {}))


def test_numbers_come_with_their_names():
    late = LateNumbers({"loss": torch.tensor(1.5), "skipped": torch.tensor(True)})
    assert late.read() == {"loss": 1.5, "skipped": 1.0} == late.read()


def test_counting_sees_a_read():
    with CountReads() as counted:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
    assert counted.reads == 2


@pytest.mark.parametrize(("kind", "precision"), [("adamw", "fp32"), ("adamw", "fp16"), ("velvet", "fp32")])
def test_a_step_reads_no_value_between_its_gradients_and_its_update(tmp_path, kind, precision):
    def body(trainer, stage):
        weight = trainer.machine.number(20.0)
        parts = trainer._gradients.accumulate(trainer.rows.next_step(0, 1, 4), weight)
        before = [each.detach().clone() for each in trainer.model.parameters()]
        with CountReads() as counted:
            totals = total(parts, weight, [0.0, 0.0, 0.0], trainer.machine)
            update = trainer._gradients.update(totals, 1e-2, warming=True)
            LateNumbers({"loss": totals.loss, "norm": update.norm} | update.numbers)
        moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
        return counted.reads, moved

    values = {"optimizer": {"kind": kind, "perplexity": {"baseline": 10.0}}, "precision": precision}
    code, (reads, moved) = inside(tmp_path, body, **values)
    assert code == 0 and moved and reads == 0


def test_history_is_one_step_behind_until_somebody_looks(tmp_path):
    def body(trainer, stage):
        seen = []
        for step, loss in trainer:
            behind = len(trainer._records["history"])
            if step == 3:
                assert trainer.records["history"][-1] == trainer._records["history"][-1]
            seen.append((step, behind, len(trainer._records["history"]), float(loss)))
        return seen, [row["loss"] for row in trainer.records["history"]]

    code, (seen, losses) = inside(tmp_path, body, steps=5)
    assert code == 0
    assert [row[:3] for row in seen] == [(1, 0, 0), (2, 1, 1), (3, 2, 3), (4, 3, 3), (5, 4, 4)]
    assert [row[3] for row in seen] == losses  # float(loss) is the number of history, to the bit


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_copy_does_not_wait():
    device = torch.device("cuda")
    clock = StepClock(device)
    value = torch.ones(64, 64, device=device).sum()
    clock.stop()
    torch.cuda.set_sync_debug_mode("error")
    try:
        late = LateNumbers({"sum": value})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert late.read() == {"sum": 4096.0} and clock.seconds() > 0
