"""How steps are executed: what is tried, what is kept, and that nothing of it changes what is computed."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from tests.training.test_loop import steps, trainer_with
from tests.training.toy_stage import CountingRows, run, toy_trainer, write_config
from utils.config.pack import PackConfig
from utils.config.pretrain import PretrainConfig
from utils.config.sft import SFTConfig
from utils.pipeline.workspace import REPOSITORY
from utils.training import execution, layers, rehearsal
from utils.training.advice import Situation, possible_edits
from utils.training.loss import NextTokenLoss
from utils.training.memory import footprint_of, free_host_bytes, ran_out, saved_bytes
from utils.training.rehearsal import Rehearsal, best_threads, doubling
from utils.training.state import model_tensors

FAKE = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Limited(NextTokenLoss):
    """An allocator that gives no room to more than `rows` rows at once."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.sizes = rows, []

    def __call__(self, model, batch):
        self.sizes.append(len(batch.tokens))
        if len(batch.tokens) > self.rows:
            raise torch.OutOfMemoryError(FAKE)
        return super().__call__(model, batch)


def trained(root, loss, seen=None, **values):
    """Run the toy stage with another objective; `seen` gets the trainer."""
    root.mkdir(exist_ok=True)
    write_config(root, steps=4, **values)

    def main(config, stage):
        trainer = toy_trainer(config, stage)
        trainer = type(trainer)(
            trainer.model, trainer.rows, trainer.optimizer, trainer.schedule, config, stage, loss
        )
        (seen if seen is not None else []).append(trainer)
        trainer.resume()
        for _ in trainer:
            trainer.save_if_due()
        return trainer.finish()

    return run(root, entry=main)


@pytest.fixture
def larger_is_faster(monkeypatch):
    clock = Rehearsal._quickest
    monkeypatch.setattr(
        Rehearsal, "_quickest", lambda *given: clock(*given) * 0 + 1 + len(given[1].tokens) / 100
    )


def manifest(root):
    return json.loads((root / "checkpoints/toy/manifest.json").read_text())["run"]["rates"]["execution"]


def test_any_limit_of_memory_takes_the_same_steps(tmp_path, larger_is_faster):
    losses = {}
    for limit in (1, 2, 8):
        root, loss = tmp_path / str(limit), Limited(limit)
        assert trained(root, loss, micro_batch_rows="auto", batch_rows=8) == 0
        losses[limit] = [row["loss"] for row in steps(root)]
        assert manifest(root)["micro_batch_rows"]["resolved"] == limit
        assert set(loss.sizes[-4:]) == {limit}
    assert losses[1] == pytest.approx(losses[8], rel=1e-6)
    assert losses[2] == pytest.approx(losses[8], rel=1e-6)
    assert manifest(tmp_path / "8")["micro_batch_rows"]["reason"] == "the fastest of 1, 2, 4, 8"


def test_a_rehearsal_leaves_no_trace(tmp_path):
    def main(config, stage):
        trainer = toy_trainer(config, stage)
        before = model_tensors(trainer.model), trainer.rows.cursor(), torch.get_rng_state()
        trainer.resume()
        after = model_tensors(trainer.model), trainer.rows.cursor(), torch.get_rng_state()
        assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
        assert before[1] == after[1] and torch.equal(before[2], after[2])
        assert all(each.grad is None for each in trainer.model.parameters())
        assert {"micro_batch_rows", "compile"} <= trainer.execution.choices.keys()
        for _ in trainer:
            pass
        return trainer.finish()

    write_config(tmp_path, steps=1, micro_batch_rows="auto", dropout=0.1)
    assert run(tmp_path, entry=main) == 0


def test_what_was_found_is_kept_for_the_next_start(tmp_path, larger_is_faster):
    seen = []

    class Stops(Limited):
        def __call__(self, model, batch):
            if len(self.sizes) == self.limit:
                raise RuntimeError("killed")
            return super().__call__(model, batch)

    loss = Stops(2)
    loss.limit = 14  # 2 passes measure, 6 find the size, then steps of 2
    with pytest.raises(RuntimeError, match="killed"):
        trained(tmp_path, loss, micro_batch_rows="auto", save_every_steps=1)
    again = Limited(8)
    assert trained(tmp_path, again, seen, micro_batch_rows="auto", save_every_steps=1) == 0
    assert set(again.sizes) == {2}, "the second start tried other sizes"
    assert seen[0].execution.choices["micro_batch_rows"].reason == "found when the run began"
    state = json.loads((tmp_path / "checkpoints/toy/checkpoints/step_00000004/trainer.json").read_text())
    assert state["execution"]["micro_rows"] == 2 and state["execution"]["attention"] == "sdpa"


def test_running_out_of_memory_says_what_to_do_and_a_rerun_does_it(
    tmp_path, capsys, larger_is_faster, monkeypatch
):
    loss = Limited(4)
    quickest = Rehearsal._quickest

    def then_less(self, batch, enough):
        seconds = quickest(self, batch, enough)
        loss.rows = 2 if len(batch.tokens) == 4 else loss.rows
        return seconds

    monkeypatch.setattr(Rehearsal, "_quickest", then_less)
    assert trained(tmp_path, loss, micro_batch_rows="auto") == 4
    text = capsys.readouterr().err
    for part in (
        "out of memory on cpu in step 1",
        FAKE,
        "4 rows x 12 tokens at once: about",
        "rerun: it continues with 2 rows at once",
        '"micro_batch_rows": 2: about',
        '"activation_checkpointing": true: about',
    ):
        assert part in text
    assert trained(tmp_path, loss, micro_batch_rows="auto") == 0
    assert manifest(tmp_path)["micro_batch_rows"]["resolved"] == 2
    assert trained(tmp_path / "fixed", Limited(2), micro_batch_rows=4) == 4
    text = capsys.readouterr().err
    assert "rerun: it continues" not in text and '"micro_batch_rows": 2: about' in text


def test_not_even_one_row_fits(tmp_path, capsys):
    assert trained(tmp_path, Limited(0), micro_batch_rows="auto") == 4
    text = capsys.readouterr().err
    assert "out of memory in step 0, with no room to measure" in text and "or a smaller model" in text


class LimitedExaminations(NextTokenLoss):
    """Room for steps, none for validation."""

    def __call__(self, model, batch):
        if not model.training:
            raise torch.OutOfMemoryError(FAKE)
        return super().__call__(model, batch)


def test_running_out_of_memory_in_an_evaluation_ends_with_4(tmp_path, capsys):
    """And rows at once stay as they are, since they are those of the steps."""
    write_config(tmp_path, steps=4, micro_batch_rows="auto", save_every_steps=1)

    def main(config, stage):
        trainer = trainer_with(config, stage, LimitedExaminations())
        trainer.resume()
        rows = trainer.execution.micro_rows
        for _ in trainer:
            trainer.save_if_due()
            remembered = json.loads((stage.partial / execution.FILE).read_text())
            assert remembered["micro_rows"] == rows
            trainer.validate([CountingRows().rows(range(4))])

    assert run(tmp_path, entry=main) == 4
    said = capsys.readouterr().err
    assert f"out of memory while the model of step 1 was examined ({FAKE})" in said
    assert "a rerun continues from the newest checkpoint" in said


def test_running_out_of_memory_anywhere_else_ends_with_4(tmp_path, capsys):
    write_config(tmp_path)

    def main(config, stage):
        raise torch.OutOfMemoryError(FAKE)

    assert run(tmp_path, entry=main) == 4
    assert "50_pretrain failed: out of memory; what was committed is kept" in capsys.readouterr().err


def test_other_errors_pass_through(tmp_path):
    class Broken(NextTokenLoss):
        def __call__(self, model, batch):
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trained(tmp_path, Broken())
    assert ran_out(MemoryError()) and ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory"))


PRETRAIN = {"output": "o", "model": "demo", "inputs": {"tokenizer": "t", "data": [{"path": "d"}]}}
SFT = {"output": "o", "inputs": {"base": "b", "data": [{"path": "d"}]}, "epochs": 1.0, "row_tokens": 24}
PACK = {"output": "o", "inputs": {"corpus": "c", "tokenizer": "t"}}


def edits_of(tmp_path, config, attention="sdpa"):
    found = []

    def main(toy, stage):
        trainer = toy_trainer(toy, stage)
        trainer.model.set_attn_implementation(attention)
        rehearsed = trainer.execution._rehearsal
        situation = Situation(config, REPOSITORY, rehearsed, 4, 2)
        with rehearsed.without_trace():
            footprint = situation.footprint()
            found.extend([footprint, *possible_edits(situation, footprint)])
        raise RuntimeError("measured")

    write_config(tmp_path)
    with pytest.raises(RuntimeError, match="measured"):
        run(tmp_path, entry=main)
    return found[0], found[1:]


def test_every_edit_is_a_valid_config_and_lowers_the_peak(tmp_path):
    config = PretrainConfig.model_validate(PRETRAIN)
    footprint, edits = edits_of(tmp_path, config, "eager")
    assert [*(name for each in edits for name in each.change)] == [
        "micro_batch_rows", "activation_checkpointing", "attention", "sequence_length_tokens", "model"
    ]  # fmt: skip
    assert edits[-1].change == {"model": "smoke"}
    for edit in edits:
        assert edit.peak < footprint.peak(4), edit
        if edit.stage:
            PackConfig.model_validate(PACK | edit.change)
        else:
            PretrainConfig.model_validate(PRETRAIN | edit.change)
    config = SFTConfig.model_validate(SFT | {"activation_checkpointing": True})
    _, edits = edits_of(tmp_path, config)
    assert [each.change for each in edits] == [{"micro_batch_rows": 2}, {"row_tokens": 12}]


def test_bytes_are_those_that_autograd_keeps(tmp_path):
    """Counted by hand for one linear layer and its loss; and the sum over rows is a line."""

    def main(toy, stage):
        trainer = toy_trainer(toy, stage)
        rehearsed = trainer.execution._rehearsal
        with rehearsed.without_trace():
            found = rehearsed.footprint(4)
            assert saved_bytes(rehearsed.loss_model, rehearsed.batch(4)) == found.copies + 4 * found.row
        count = sum(each.numel() for each in trainer.model.parameters())
        assert (found.gradients, found.moments) == (4 * count, 8 * count)
        assert 4 * count <= found.parameters <= 4 * count + 4096  # and the rotary table
        trainer.resume()
        for _ in trainer:
            pass
        kept = [each for state in trainer.optimizer.state.values() for each in state.values() if each.ndim]
        assert found.moments == sum(each.nbytes for each in kept)
        return trainer.finish()

    write_config(tmp_path, steps=1)
    assert run(tmp_path, entry=main) == 0
    layer, x = torch.nn.Linear(8, 4, bias=False), torch.randn(3, 8, requires_grad=True)

    class Squared(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, given):
            return self.layer(given).square().sum()

    assert saved_bytes(Squared(), x) == 4 * (3 * 8 + 3 * 4)
    rows = [x[:size].detach().clone() for size in (1, 2)]
    assert footprint_of(Squared(), [layer.weight], rows).row == 4 * (8 + 4)


def test_free_memory_is_that_of_the_container(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal: 4000 kB\nMemAvailable: 3000 kB\n")
    assert free_host_bytes(meminfo, cgroup) == 3000 * 1024
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert free_host_bytes(meminfo, cgroup) == 3000 * 1024
    (cgroup / "memory.max").write_text("2000000\n")
    (cgroup / "memory.current").write_text("500000\n")
    assert free_host_bytes(meminfo, cgroup) == 1_500_000
    assert free_host_bytes(tmp_path / "none", cgroup) > 10_000_000


def test_sizes_double(monkeypatch, tmp_path):
    assert doubling([1, 2, 3, 4, 6, 8, 12, 24]) == [1, 2, 4, 8, 24]
    assert doubling([1, 3, 5, 15]) == [1, 3, 15]


def test_memory_bounds_what_is_tried(tmp_path, larger_is_faster, monkeypatch):
    monkeypatch.setattr(rehearsal, "available_bytes", lambda *_: 0)
    loss = Limited(8)
    assert trained(tmp_path, loss, micro_batch_rows="auto") == 0
    assert manifest(tmp_path)["micro_batch_rows"]["reason"] == "the fastest of 1"


def test_threads_are_timed_and_the_faster_number_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.training.precision.usable_cores", lambda: 2)
    monkeypatch.setattr(Rehearsal, "_quickest", lambda *_: 1.0 if torch.get_num_threads() == 1 else 2.0)
    assert trained(tmp_path, Limited(8), cpu_threads="auto") == 0
    assert manifest(tmp_path)["cpu_threads"] == {
        "asked": "auto",
        "resolved": 1,
        "reason": "clearly faster than 2",
    }
    assert torch.get_num_threads() == 1


# layers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch):
    """The front half of the compiler only; what inductor makes of it is a test of its own."""
    monkeypatch.setattr(layers, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def test_compiled_layers_keep_their_names_and_resume_into_plain_ones_and_back(tmp_path, traced):
    plain, mixed = tmp_path / "plain", tmp_path / "mixed"
    assert trained(plain, NextTokenLoss()) == 0

    class Stops(NextTokenLoss):
        def __call__(self, model, batch):
            if model.training and self.left == 0:
                raise RuntimeError("killed")
            self.left -= 1
            return super().__call__(model, batch)

    stopping = Stops()
    for asked, passes in (("on", 3), ("off", 1), ("on", 99)):  # compiling takes two passes
        stopping.left = passes
        try:
            trained(mixed, stopping, compile=asked, save_every_steps=1)
        except RuntimeError as error:
            assert str(error) == "killed"
    ours, theirs = steps(mixed), steps(plain)
    assert len(ours) == 4 and manifest(mixed)["compile"]["resolved"] == "on"
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    files = [
        sorted((root / "checkpoints/toy/checkpoints/step_00000004").iterdir()) for root in (plain, mixed)
    ]
    assert [each.name for each in files[0]] == [each.name for each in files[1]]


@pytest.mark.parametrize(
    ("device", "steps", "expected"), [("cpu", 500, "off"), ("cuda", 499, "off"), ("cuda", 500, "on")]
)
def test_auto_compiles_long_runs_on_cuda_only(tmp_path, traced, monkeypatch, device, steps, expected):
    """What the rule says of a device; the layers are compiled for the CPU, where this runs."""
    asked, rule = [], execution.worth_compiling
    monkeypatch.setattr(execution, "worth_compiling", lambda here: asked.append(here) or rule(device))

    def main(config, stage):
        trainer = toy_trainer(config, stage)
        trainer.resume()
        return {"compile": trainer.execution.choices["compile"].resolved}

    write_config(tmp_path, steps=steps, compile="auto")
    assert run(tmp_path, entry=main) == 0 and asked == ["cpu"]
    found = json.loads((tmp_path / "checkpoints/toy/manifest.json").read_text())["metrics"]
    assert found["compile"] == expected


def broken(*_, **__):
    raise ValueError("no compiler here")


def test_a_compiler_that_fails_ends_on_and_turns_auto_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layers, "BACKEND", broken)
    assert trained(tmp_path / "on", NextTokenLoss(), compile="on") == 4
    text = capsys.readouterr().err
    assert '"compile": "on" failed' in text and "no compiler here" in text and '"compile": "off"' in text
    torch._dynamo.reset()
    monkeypatch.setattr(execution, "FEWEST_COMPILED_STEPS", 1)
    monkeypatch.setattr(execution, "worth_compiling", lambda device: True)
    assert trained(tmp_path / "auto", NextTokenLoss(), compile="auto") == 0
    assert "".join(capsys.readouterr()).count("compile: off, since the compiler failed") == 1
    assert "no compiler here" in manifest(tmp_path / "auto")["compile"]["reason"]
    torch._dynamo.reset()


class Timed:
    """A rehearsal that takes as long as it is told, by threads."""

    def __init__(self, **seconds: float | None) -> None:
        self.machine = SimpleNamespace(num_ranks=1)
        self._seconds, self.cooled, self.enough = seconds, 0, []

    def cool(self) -> None:
        self.cooled += 1

    def seconds(self, size: int, enough: float) -> float | None:
        self.enough.append(enough)
        return self._seconds[f"n{torch.get_num_threads()}"]


@pytest.mark.parametrize(
    ("one", "two", "chosen"),
    [
        (1.0, 0.7, 2),
        (1.0, 1.15, 2),
        (1.0, 1.3, 1),
        (1.0, 9.0, 1),
        (1.0, None, 1),
        (None, 1.0, 2),
        (None, None, 1),
    ],
)
def test_all_threads_are_used_unless_one_is_clearly_faster(one, two, chosen):
    before = torch.get_num_threads()
    rehearsal = Timed(n1=one, n2=two)
    try:
        assert best_threads(rehearsal, [1, 2], 4) == chosen
    finally:
        torch.set_num_threads(before)
    assert rehearsal.cooled == 2 and rehearsal.enough[0] == math.inf
    assert rehearsal.enough[1] == (math.inf if one is None else 2 * one)
