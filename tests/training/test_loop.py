import json
import math
from dataclasses import replace

import pytest
import torch

from tests.training.toy_stage import (
    ARCHITECTURE,
    VOCAB,
    CountingRows,
    PoisonedRow,
    run,
    toy_model,
    toy_trainer,
    write_config,
)
from utils.config.adapter import AdapterConfig
from utils.models.llama import initialise
from utils.models.load import build_model
from utils.optim.groups import build_optimizer
from utils.pipeline.errors import StageError
from utils.training.loss import HeadOptions, NextTokenLoss, next_token_targets


def history(root, name="history"):
    lines = (root / "checkpoints" / "toy" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(root):
    return [row for row in history(root) if "loss" in row]


def weights(root):
    return torch.load(root / "checkpoints" / "toy" / "weights.pt")


def inside(root, body, **values):
    """Run `body(trainer, stage)` as a stage."""
    write_config(root, **values)
    found = {}

    def main(config, stage):
        found["result"] = body(toy_trainer(config, stage), stage)
        return {}

    return run(root, entry=main), found.get("result")


@pytest.mark.parametrize("micro_rows", [1, 2])
def test_any_split_into_micro_batches_takes_the_same_steps(tmp_path, micro_rows):
    """Rows have unequal numbers of targets, so a mean of means would differ."""
    roots = [tmp_path / "whole", tmp_path / "split"]
    for root, rows in zip(roots, (4, micro_rows), strict=True):
        root.mkdir()
        write_config(root, steps=4, micro_batch_rows=rows)
        assert run(root) == 0
    for one, other in zip(*map(steps, roots), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)
    for name, tensor in weights(roots[0]).items():
        torch.testing.assert_close(weights(roots[1])[name], tensor, rtol=1e-4, atol=1e-6)


def test_first_loss_is_the_mean_over_the_global_batch_by_hand(tmp_path):
    write_config(tmp_path, steps=1, micro_batch_rows=1)
    assert run(tmp_path) == 0
    model, total, count = toy_model(), 0.0, 0
    for number in range(4):
        inputs, targets, position = next_token_targets(CountingRows().rows(range(number, number + 1)))
        logits = model(input_ids=inputs, position_ids=position, use_cache=False).logits[0].log_softmax(-1)
        for place, target in enumerate(targets[0].tolist()):
            if target >= 0:
                total, count = total - float(logits[place, target]), count + 1
    assert steps(tmp_path)[0]["loss"] == pytest.approx(total / count, rel=1e-6)
    assert steps(tmp_path)[0]["tokens"] == count


def test_the_model_learns_to_count_upwards(tmp_path):
    def body(trainer, stage):
        trainer.resume()
        for _ in trainer:
            pass
        ids = torch.arange(8, 14)[None]
        return trainer.model.eval()(input_ids=ids).logits[0].argmax(-1).tolist()

    code, produced = inside(tmp_path, body, steps=150, optimizer={"weight_decay": 0.0})
    assert code == 0 and produced == [9, 10, 11, 12, 13, 14]


def test_evaluation_samples_checkpoints_and_trackers_do_not_change_the_weights(tmp_path):
    plain, busy = tmp_path / "plain", tmp_path / "busy"
    watched = {"trackers": ["tensorboard"], "log_every_steps": 1, "keep_last": 1, "keep_best": False}
    for root, values in (
        (plain, {"eval_every_steps": 100, "save_every_steps": 100}),
        (busy, {"eval_every_steps": 1, "save_every_steps": 1} | watched),
    ):
        root.mkdir()
        write_config(root, steps=6, dropout=0.5, **values)
        assert run(root) == 0
    assert all(torch.equal(tensor, weights(busy)[name]) for name, tensor in weights(plain).items())


class Poisoned(NextTokenLoss):
    """A loss that is not a number in chosen steps of 4 rows."""

    def __init__(self, poisoned):
        super().__init__()
        self.poisoned, self.calls = poisoned, 0

    def __call__(self, model, batch):
        self.calls += 1
        sums = super().__call__(model, batch)
        factor = math.nan if self.calls in self.poisoned else 1.0
        return replace(sums, loss_sum=sums.loss_sum * factor)


def trainer_with(config, stage, loss, model=None):
    """The toy's trainer with another loss, and another model."""
    trainer = toy_trainer(config, stage)
    model = model or trainer.model
    optimizer = build_optimizer(model, config.optimizer, 1e-2, config.kernels)
    return type(trainer)(model, trainer.rows, optimizer, trainer.schedule, config, stage, loss)


def fly_model():
    shape = ARCHITECTURE.model_copy(update={"family": "vesper"})
    model = build_model(shape, VOCAB, {"bos": 1, "eos": 2, "pad": 3})
    initialise(model, shape, seed=0)
    model.adapt(AdapterConfig(kind="fly", rank=8, active_ranks=2, train_base=True), seed=0)
    return model


def test_a_step_that_is_not_finite_changes_nothing_and_training_goes_on(tmp_path):
    write_config(tmp_path, steps=4)
    seen = []

    def main(config, stage):
        trainer = trainer_with(config, stage, Poisoned({2}))
        trainer.resume()
        for step, _ in trainer:
            state = [each.clone() for values in trainer.optimizer.state.values() for each in values.values()]
            seen.append((step, [each.detach().clone() for each in trainer.model.parameters()] + state))
        return trainer.finish()

    assert run(tmp_path, entry=main) == 0
    assert all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[1][1], seen[2][1], strict=True))
    rows = steps(tmp_path)
    assert [row["skipped"] for row in rows] == [False, True, False, False] and rows[1]["loss"] is None


@pytest.mark.parametrize("kind", ["adamw", "velvet"])
def test_a_skipped_step_moves_no_offset_of_the_ranks(tmp_path, kind):
    """FlyLoRA's offsets follow no gradient, and the pass of a skipped step has counted its ranks too."""
    write_config(tmp_path, steps=3, optimizer={"kind": kind})
    seen = []

    def main(config, stage):
        loss = Poisoned({2})
        loss.head = HeadOptions(with_entropy=kind == "velvet")
        trainer = trainer_with(config, stage, loss, fly_model())
        trainer.resume()
        for _ in trainer:
            seen.append({name: each.clone() for name, each in trainer.model.state_dict().items()})
        return trainer.finish()

    assert run(tmp_path, entry=main) == 0
    assert [row["skipped"] for row in steps(tmp_path)] == [False, True, False]
    first, second, third = seen
    assert all(torch.equal(first[name], second[name]) for name in first)
    names = [name for name in first if name.endswith("offsets")]
    assert len(names) == 3
    assert all(first[name].any() and not torch.equal(second[name], third[name]) for name in names)


def poisoned_rows_main(numbers, seen):
    def main(config, stage):
        trainer = trainer_with(config, stage, PoisonedRow(numbers))
        trainer.resume()
        for step, _ in trainer:
            moments = [each.clone() for state in trainer.optimizer.state.values() for each in state.values()]
            seen[step] = [each.detach().clone() for each in trainer.model.parameters()] + moments
            trainer.save_if_due()
        return trainer.finish()

    return main


def skipped_log(folder):
    return [json.loads(line) for line in (folder / "log" / "skipped.jsonl").read_text().splitlines()]


def test_one_poisoned_row_skips_one_step_and_is_written_down(tmp_path):
    """Row 93 is in step 24: rows 92 to 95, in two micro-batches."""
    write_config(tmp_path, steps=26, micro_batch_rows=2)
    seen = {}
    assert run(tmp_path, entry=poisoned_rows_main([93], seen)) == 0
    assert all(torch.equal(a, b) for a, b in zip(seen[23], seen[24], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[24], seen[25], strict=True))
    rows = steps(tmp_path)
    assert [row["step"] for row in rows if row["skipped"]] == [24]
    (said,) = skipped_log(tmp_path / "checkpoints/toy")
    assert said["step"] == 24 and said["rows"] == [[0, 92], [0, 93], [0, 94], [0, 95]]
    assert said["cursor"] == {"rows_drawn": 92, "seed": 0}
    assert said["losses"] == [row["loss"] for row in rows[3:23]]  # the last 20


def test_five_poisoned_steps_in_a_row_end_with_4(tmp_path, capsys):
    write_config(tmp_path, steps=26, save_every_steps=4)
    seen = {}
    assert run(tmp_path, entry=poisoned_rows_main([22, 27, 30, 33, 38], seen)) == 4
    message = capsys.readouterr().err
    assert "5 steps in a row had a gradient that is not finite, the last one step 10" in message
    assert "the last good checkpoint is step_00000008" in message and "warmup_steps" in message
    partial = tmp_path / "checkpoints/toy.partial"
    assert [each["step"] for each in skipped_log(partial)] == [6, 7, 8, 9, 10]
    assert all(torch.equal(a, b) for a, b in zip(seen[5], seen[10], strict=True))


def test_too_many_skipped_steps_end_the_run_with_the_last_good_checkpoint(tmp_path, capsys):
    write_config(tmp_path, steps=9, max_consecutive_skips=2, save_every_steps=2)

    def main(config, stage):
        trainer = trainer_with(config, stage, Poisoned(set(range(4, 99))))
        trainer.resume()
        for _ in trainer:
            trainer.save_if_due()
        return {}

    assert run(tmp_path, entry=main) == 4
    message = capsys.readouterr().err
    assert "2 steps in a row had a gradient that is not finite, the last one step 5" in message
    assert "the last good checkpoint is step_00000004" in message and "learning_rate" in message


def test_a_parameter_cut_off_from_the_loss_is_refused_by_name(tmp_path, capsys):
    def body(trainer, stage):
        trainer.model.extra = torch.nn.Parameter(torch.zeros(2))
        trainer._gradients.parameters["extra"] = trainer.model.extra
        next(iter(trainer))

    assert inside(tmp_path, body)[0] == 4
    assert "extra gets no gradient: it is cut off from the loss" in capsys.readouterr().err


def test_gradients_are_clipped_to_the_norm_of_the_config(tmp_path):
    """With SGD the update is the clipped gradient itself."""

    def body(trainer, stage):
        trainer._gradients.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=1.0)
        before = [each.detach().clone() for each in trainer.model.parameters()]
        next(iter(trainer))
        moved = torch.stack(
            [(a - b).norm() for a, b in zip(before, trainer.model.parameters(), strict=True)]
        ).norm()
        return float(moved) / trainer.schedule(0), trainer.records["history"][0]["grad_norm"]

    code, (moved, norm) = inside(tmp_path, body, optimizer={"max_gradient_norm": 0.01})
    assert code == 0 and moved == pytest.approx(0.01, rel=1e-4) and norm > 0.1


@pytest.mark.parametrize(("rows", "message"), [(3, '"micro_batch_rows": 3 does not divide the 4 rows')])
def test_micro_batches_that_do_not_divide_are_refused(tmp_path, capsys, rows, message):
    write_config(tmp_path, micro_batch_rows=rows)
    assert run(tmp_path) == 2
    assert message in capsys.readouterr().err


def test_publishing_the_best_step_publishes_its_weights(tmp_path):
    losses = {0: 9.0, 2: 1.0, 4: 5.0}
    kept = {}

    def body(trainer, stage):
        trainer.resume()
        for step, _ in trainer:
            if step in losses:
                kept[step] = trainer.model.lm_head.weight.detach().clone()
                trainer.observe(losses[step])
            trainer.save_if_due()
        metrics = trainer.finish()
        return (
            metrics,
            torch.equal(trainer.model.lm_head.weight, kept[2]),
            (stage.partial / "checkpoints/best.json").read_text(),
        )

    code, (metrics, is_best, pointer) = inside(
        tmp_path, body, steps=4, publish="best", keep_last=1, save_every_steps=1
    )
    assert code == 0 and is_best and metrics["best_step"] == 2 and metrics["published"] == "best"
    assert json.loads(pointer)["step"] == 2
    assert not torch.equal(kept[2], kept[4])


@pytest.mark.parametrize("publish", ["best", "last"])
def test_a_run_that_never_beats_its_start_publishes_what_it_trained(tmp_path, publish):
    """The weights before the first step are no candidate: no checkpoint has them."""
    kept = {}

    def body(trainer, stage):
        if not trainer.resume():
            trainer.observe(1.0)
        for step, _ in trainer:
            kept[step] = trainer.model.lm_head.weight.detach().clone()
            trainer.observe(1.0 + step)
            trainer.save_if_due()
        return trainer.finish(), trainer.model.lm_head.weight.detach().clone()

    code, (metrics, published) = inside(tmp_path, body, steps=3, publish=publish, save_every_steps=2)
    assert code == 0 and (metrics["best_step"], metrics["best_val_loss"]) == (1, 2.0)
    assert torch.equal(published, kept[1 if publish == "best" else 3])


def test_a_resumed_run_takes_back_what_it_wrote_of_later_steps(tmp_path):
    """Row 22 is in step 6; the run dies after step 7 and goes on from step 4."""
    write_config(tmp_path, steps=10, save_every_steps=4)
    alive = []

    def main(config, stage):
        trainer = trainer_with(config, stage, PoisonedRow([1, 22]))
        trainer.resume()
        for step, _ in trainer:
            trainer.save_if_due()
            if step == 7 and not alive:
                alive.append(step)
                raise StageError("killed")
        return trainer.finish()

    assert run(tmp_path, entry=main) == 4
    assert [each["step"] for each in skipped_log(tmp_path / "checkpoints/toy.partial")] == [1, 6]
    assert run(tmp_path, entry=main) == 0
    assert [each["step"] for each in skipped_log(tmp_path / "checkpoints/toy")] == [1, 6]


def test_curves_go_to_tensorboard_and_metrics_and_outputs_hold_no_clock(tmp_path):
    write_config(tmp_path, steps=3, trackers=["tensorboard"])
    assert run(tmp_path) == 0
    artifact = tmp_path / "checkpoints" / "toy"
    assert list((artifact / "log" / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (artifact / "log" / "metrics.jsonl").read_text().splitlines()]
    assert {"step_ms", "tokens_per_second", "loss"} <= rows[1].keys()
    assert set(steps(tmp_path)[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "skipped"}


def test_two_runs_of_one_seed_have_one_digest(tmp_path):
    digests = []
    for name in "ab":
        root = tmp_path / name
        root.mkdir()
        write_config(root, steps=3)
        assert run(root) == 0
        digests.append(json.loads((root / "checkpoints/toy/manifest.json").read_text())["output_digest"])
    assert digests[0] == digests[1]
