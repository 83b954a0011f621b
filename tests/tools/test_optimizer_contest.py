"""The optimizer contest: its rule on planted effects, its replay, its journal, its report."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tools.bench import optimizers
from tools.bench.contest.analysis import (
    HELPS,
    NO_EVIDENCE,
    NO_VERDICT,
    RIVALS,
    compare,
    loss_at_time,
    tokens_to,
    verdict,
)
from tools.bench.contest.arms import FORMS, TUNED, RunSpec, schedule_trials, trials
from tools.bench.contest.runs import row_order, train
from utils.optim.groups import parameter_groups
from utils.training.precision import Precision

SHORT = replace(
    FORMS["cpu"], name="short", tokens=20 * 4 * 32, batch_rows=4, row_tokens=32, rates=(1e-3, 4e-3)
)
SEEDS, NOISE, SIMULATIONS = 5, 0.002, 200


def simulated(effect: float, random_: np.random.Generator) -> dict[str, list[float]]:
    """Final losses: a part that seeds share, a part of each run, and F better by `effect`."""
    shared = 1.8 + 0.05 * random_.standard_normal(SEEDS)
    arms = {arm: shared * (1 + NOISE * random_.standard_normal(SEEDS)) for arm in "ACGF"}
    arms["F"] = arms["F"] * (1 - effect)
    return {arm: values.tolist() for arm, values in arms.items()}


@pytest.mark.parametrize(
    ("effect", "least", "most"), [(0.0, 0.0, 0.05), (0.005, 0.0, 0.05), (0.02, 0.9, 1.0)]
)
def test_the_rule_finds_a_planted_effect_and_seldom_one_that_is_not_there(effect, least, most):
    random_ = np.random.default_rng(1)
    said = [verdict(simulated(effect, random_))[0] for _ in range(SIMULATIONS)]
    assert least <= said.count(HELPS) / SIMULATIONS <= most


def test_one_rival_that_is_not_beaten_is_enough_for_no_evidence():
    losses = simulated(0.05, np.random.default_rng(0))
    assert verdict(losses)[0] == HELPS
    assert verdict(losses | {"G": losses["F"]})[0] == NO_EVIDENCE
    assert verdict({arm: losses[arm] for arm in "AF"})[0] == NO_EVIDENCE


def test_fewer_than_five_seeds_give_no_verdict():
    losses = {arm: [2.0, 2.1, 2.2, 2.3, 2.4] for arm in RIVALS} | {"F": [1.0, 1.1, 1.2, 1.3, 1.4]}
    assert verdict(losses)[0] == HELPS
    for seeds in (1, 2, 4):
        said, compared = verdict({arm: values[:seeds] for arm, values in losses.items()})
        assert said == NO_VERDICT and HELPS not in said
        assert len(compared) == (len(RIVALS) if seeds > 1 else 0)  # the table is still shown
    assert verdict({arm: losses[arm] for arm in RIVALS}) == (NO_EVIDENCE, {})


def test_intervals_are_those_of_the_textbook():
    found = compare([1.0, 1.0, 1.0, 1.0, 1.0], [0.99, 0.98, 0.97, 0.96, 0.95])
    assert found.mean == pytest.approx(0.03)
    half = 2.776 * 0.0158113883 / 5**0.5
    assert found.t_interval == pytest.approx((0.03 - half, 0.03 + half), abs=1e-6)
    assert 0.01 < found.bootstrap_interval[0] < 0.03 < found.bootstrap_interval[1] < 0.05


def test_curves_are_read_between_their_points():
    curve = [[100, 3.0], [200, 2.0], [300, 1.0]]
    assert tokens_to(curve, 1.5) == 250 and tokens_to(curve, 0.5) is None
    assert loss_at_time({"curve": curve, "seconds": 30.0}, 15.0) == 2.5


def test_every_arm_has_as_many_trials():
    for form in FORMS.values():
        counts = {len(trials(arm, form)) for arm in TUNED}
        assert counts == {len(list(schedule_trials(trials("A", form), form)))} and len(counts) == 1
    seven = list(schedule_trials(trials("A", FORMS["cpu"]), FORMS["cpu"]))
    assert {(each.schedule, each.beta1) for each in seven[:6]} == {
        (schedule, beta1) for schedule in ("cosine", "wsd") for beta1 in (0.8, 0.9, 0.95)
    }
    assert seven[0].rate == seven[5].rate != seven[6].rate


def test_no_row_is_repeated_more_than_four_times():
    form = FORMS["cpu"]
    order = row_order(form, 0, 1000)
    assert order.shape == (form.steps, form.batch_rows) and np.bincount(order.ravel()).max() <= 4
    assert not np.array_equal(order, row_order(form, 1, 1000))
    with pytest.raises(SystemExit, match="would be seen 5 times"):
        row_order(form, 0, 900)


class Inline(optimizers.Contest):
    """Computes in this process."""

    computed = 0

    def _compute(self, missing):
        for key, spec in missing.items():
            Inline.computed += 1
            self._results[key] = train(spec, self.form, self._log_of(spec))
            self._journal.commit({"key": key, "spec": asdict(spec), "result": self._results[key]})


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    torch.set_num_threads(1)
    made = Inline(SHORT, tmp_path_factory.mktemp("contest"))
    yield made
    made.close()


def test_replay_of_a_run_on_its_own_seed_is_that_run(contest):
    followed = RunSpec("F", 0, 4e-3)
    (logged,) = contest.run([followed])
    (replayed,) = contest.run([replace(followed, arm="C", replayed=logged["key"])])
    assert replayed["result"]["val_loss"] == logged["result"]["val_loss"]
    assert replayed["result"]["series"]["loss"] == logged["result"]["series"]["loss"]
    assert len(set(logged["result"]["series"]["b"])) > 3  # the controls moved
    (other,) = contest.run([RunSpec("A", 0, 4e-3)])
    assert other["result"]["val_loss"] != logged["result"]["val_loss"]


@pytest.mark.slow
def test_all_arms_start_alike_and_the_contest_ends_in_a_report(contest):
    arms = sorted("ABCDEFGH")
    tuned = optimizers.tune(contest, arms)
    finals = optimizers.final(contest, tuned, arms, 2)
    assert list(tuned) == list(finals) == arms
    assert all(len(runs) == 2 for runs in finals.values())
    assert len({run["result"]["init_sha256"] for runs in finals.values() for run in runs[:1]}) == 1
    settings = {arm: finals[arm][0]["spec"] for arm in arms}
    assert settings["C"]["replayed"] != settings["F"] and settings["B"]["rate"] not in SHORT.rates
    said = optimizers.write_report(contest.folder, SHORT, tuned, finals, range(2))
    report = json.loads((contest.folder / "report.json").read_text())
    assert report["verdict"] == said == NO_VERDICT and "0.5 %" in report["rule"]
    assert report["paired"].keys() == set(arms) - {"F"} and len(report["runs"]) == 16
    assert report["runs"][0]["result"].keys() >= {"series", "curve", "skips", "spikes", "eta_integral"}
    assert len({run["result"]["settings_sha256"] for run in report["runs"]}) == 1
    assert all(run["result"]["versions"].startswith("torch ") for run in report["runs"])
    assert len({run["result"]["config_sha256"] for run in report["runs"]}) == 16
    page = (contest.folder / "report.html").read_text()
    assert page.count("<svg") == 7 and said in page and "tokens" in page
    table = optimizers._table_of(report)
    assert all(f"\n{arm} " in table for arm in arms)


def test_an_interrupted_contest_computes_only_what_is_missing(contest):
    contest.run(trials("A", SHORT))
    before = Inline.computed
    again = Inline(SHORT, contest.folder)
    again.run(trials("A", SHORT))
    assert Inline.computed == before
    again.run([RunSpec("A", 77, 1e-3)])
    assert Inline.computed == before + 1
    again.close()


def test_arms_that_did_not_start_alike_are_refused(contest):
    runs = {arm: contest.run([RunSpec(arm, 0, 1e-3)]) for arm in "AF"}
    runs["F"][0]["result"] = runs["F"][0]["result"] | {"init_sha256": "other"}
    with pytest.raises(ValueError, match="arm F, seed 0: other initial weights or rows"):
        optimizers.write_report(contest.folder, SHORT, {}, runs, range(1))


def widened(model, weight_decay, decay_embeddings):
    return parameter_groups(model, weight_decay, decay_embeddings=True)


PLANTED = {
    "batch_rows": ("tools.bench.contest.runs.row_order", lambda *given: row_order(*given)[:, :2]),
    "max_gradient_norm": ("tools.bench.contest.runs.MAX_NORM", 2.0),
    "warmup_steps": ("tools.bench.contest.arms.Form.warmup_steps", 7),
    "groups_sha256": ("utils.optim.groups.parameter_groups", widened),
    "precision": ("utils.training.precision.Precision", lambda name, device: Precision("bf16", device)),
}


@pytest.mark.parametrize("setting", PLANTED)
def test_arms_under_other_settings_are_refused(tmp_path, monkeypatch, setting):
    """One arm really is trained otherwise, and the report says in what."""
    torch.set_num_threads(1)
    runs = {arm: [planted_run(arm, setting if arm == "F" else "", monkeypatch)] for arm in "AF"}
    known, other = (runs[arm][0]["result"]["settings"] for arm in "AF")
    assert [name for name in known if known[name] != other[name]] == [setting]
    runs["F"][0]["result"] |= {name: runs["A"][0]["result"][name] for name in ("init_sha256", "data_sha256")}
    with pytest.raises(ValueError, match=f"arm F, seed 0: other {setting}$"):
        optimizers.write_report(tmp_path, SHORT, {}, runs, range(1))


def planted_run(arm, setting, monkeypatch):
    spec = RunSpec(arm, 0, 1e-3)
    with monkeypatch.context() as patch:
        if setting:
            patch.setattr(*PLANTED[setting])
        return {"spec": asdict(spec), "key": "", "result": train(spec, SHORT)}


def test_every_result_says_what_it_was_made_with():
    results = [train(RunSpec("A", seed, rate), SHORT) for seed, rate in ((0, 1e-3), (0, 1e-3), (0, 2e-3))]
    first, again, other = (each["config_sha256"] for each in results)
    assert first == again != other
    assert results[0]["versions"].startswith(f"torch {torch.__version__}, transformers ")
    assert "; cpu, 1 threads; " in results[0]["versions"]


def test_a_gpu_form_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["optimizers.py", "--form", "gpu"])
    assert optimizers.main() == 0
    assert "not measured here" in capsys.readouterr().out
