"""
Does Velvet help? Eight optimizers with equal tuning, several seeds, and a rule fixed before the first run.

    python tools/bench/optimizers.py --form cpu              # 23 minutes of CPU time, shared by the cores
    python tools/bench/optimizers.py --form cpu --arms A F --seeds 2         # a look, without a verdict
    python tools/bench/optimizers.py --form gpu --data data/mine/packed

It may come out against our own optimizer, and both verdicts are normal exits. Every finished run is in the
journal, so an interrupted contest goes on where it was; report.json, SVG plots and report.html land beside it
in data/bench/optimizers/FORM.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tools.bench.contest.analysis import RULE
from tools.bench.contest.arms import (
    ARMS,
    FORMS,
    TUNED,
    Form,
    RunSpec,
    boosted,
    replaying,
    schedule_trials,
    trials,
)
from tools.bench.contest.report import table, write_report
from tools.bench.contest.runs import train
from utils.corpus.processes import ProcessWorkers
from utils.pipeline.journal import Journal
from utils.pipeline.workspace import REPOSITORY

HALVED_SHARE = 0.25


class Contest:
    """Runs specs, each once, as many at a time as there are cores (one on a GPU)."""

    def __init__(self, form: Form, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.form, self.folder = form, folder
        self._journal = Journal(folder, "runs")
        self._results = {record["key"]: record["result"] for record in self._journal.records}
        self._started = time.monotonic()
        self._pool: ProcessWorkers | None = None

    def run(self, specs: Iterable[RunSpec]) -> list[dict]:
        """Results in the order of the specs, from the journal where they are known."""
        specs = list(specs)
        keys = [spec.key(self.form) for spec in specs]
        missing = {key: spec for key, spec in zip(keys, specs, strict=True) if key not in self._results}
        if missing:
            self._compute(missing)
        return [
            {"spec": asdict(spec), "key": key, "result": self._results[key]}
            for key, spec in zip(keys, specs, strict=True)
        ]

    def _compute(self, missing: dict[str, RunSpec]) -> None:
        if self._pool is None:
            self._pool = ProcessWorkers(1 if self.form.device == "cuda" else 0)
        jobs = {
            self._pool.submit(train, spec, self.form, self._log_of(spec)): (key, spec)
            for key, spec in missing.items()
        }
        for job in as_completed(jobs):
            key, spec = jobs[job]
            self._results[key] = job.result()
            self._journal.commit({"key": key, "spec": asdict(spec), "result": self._results[key]})
            loss, elapsed = self._results[key]["val_loss"], time.monotonic() - self._started
            print(
                f"{elapsed:6.0f} s  {spec.arm} seed {spec.seed:<5} lr {spec.rate:.2e}  {loss:.4f}", flush=True
            )

    def _log_of(self, spec: RunSpec) -> list[tuple[float, float]]:
        """(eta, b) of the run that a spec replays; a step that was skipped moves nothing there either."""
        if not spec.replayed:
            return []
        series = self._results[spec.replayed]["series"]
        pairs = zip(series["eta"], series["b"], strict=True)
        return [(eta, b) if eta is not None and b is not None else (0.0, 0.0) for eta, b in pairs]

    def search(self, specs: Sequence[RunSpec]) -> list[dict]:
        """All trials of an arm, best first; with halving the worse half is not run to its end."""
        if self.form.halving:
            short = self.run(replace(spec, share=HALVED_SHARE) for spec in specs)
            order = sorted(range(len(specs)), key=lambda i: short[i]["result"]["val_loss"])
            specs = [specs[i] for i in order[: (len(specs) + 1) // 2]]
        return sorted(self.run(specs), key=lambda run: run["result"]["val_loss"])

    def close(self) -> None:
        """The workers go at once, the journal stays."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._journal.close()


def main() -> int:
    arguments = _arguments()
    form = replace(FORMS[arguments.form], num_seeds=arguments.seeds, packed=arguments.data)
    if form.device == "cuda" and not torch.cuda.is_available():
        print(f"--form {form.name}: not measured here (no CUDA device)")
        return 0
    print(RULE, flush=True)
    contest = Contest(replace(form, num_seeds=0), REPOSITORY.path(arguments.output) / form.name)
    try:
        tuned = tune(contest, arguments.arms)
        finals = final(contest, tuned, arguments.arms, form.num_seeds)
    finally:
        contest.close()
    said = write_report(contest.folder, form, tuned, finals, range(form.num_seeds))
    report = json.loads((contest.folder / "report.json").read_text(encoding="ascii"))
    print(_table_of(report))
    print(f"verdict: {said}  ({contest.folder / 'report.html'})")
    return 0


def tune(contest: Contest, arms: Sequence[str]) -> dict[str, list[dict]]:
    """Trials of every arm, best first. B, C and G need those of F and A, asked for or not."""
    needed = set(arms) | ({"F"} if {"B", "C"} & set(arms) else set()) | ({"A"} if "G" in arms else set())
    contest.run(spec for arm in TUNED if arm in needed for spec in _first_round(arm, contest.form))
    tuned = {arm: contest.search(trials(arm, contest.form)) for arm in TUNED if arm in needed}
    if "B" in arms:
        tuned["B"] = contest.search([boosted(_spec(run), _mean_factor(run)) for run in tuned["F"]])
    if "C" in arms:
        tuned["C"] = contest.search([replaying(_spec(run), run["key"]) for run in tuned["F"]])
    if "G" in arms:
        tuned["G"] = contest.search(list(schedule_trials([_spec(run) for run in tuned["A"]], contest.form)))
    return {arm: tuned[arm] for arm in sorted(tuned)}


def final(contest: Contest, tuned: dict[str, list[dict]], arms: Sequence[str], seeds: int) -> dict:
    """The chosen setting of every arm on seeds that no trial used; C replays F of the next seed."""
    followed = [run for run in ("F",) if {"B", "C", "F"} & set(arms)]
    own = [arm for arm in tuned if arm in arms and arm not in "BC"] + followed
    chosen = {arm: replace(_spec(tuned[arm][0]), share=1.0) for arm in dict.fromkeys(own)}
    every = [replace(spec, seed=seed) for spec in chosen.values() for seed in range(seeds)]
    contest.run(every)
    finals = {
        arm: contest.run(replace(spec, seed=seed) for seed in range(seeds)) for arm, spec in chosen.items()
    }
    if "B" in arms:
        spec = _spec(tuned["B"][0])
        finals["B"] = contest.run(replace(spec, seed=seed) for seed in range(seeds))
    if "C" in arms:
        setting = replace(_spec(tuned["C"][0]), arm="F", replayed="")
        logs = contest.run(replace(setting, seed=seed) for seed in range(seeds))
        finals["C"] = contest.run(
            replace(replaying(setting, logs[(seed + 1) % seeds]["key"]), seed=seed) for seed in range(seeds)
        )
    return {arm: finals[arm] for arm in sorted(finals) if arm in arms}


def _first_round(arm: str, form: Form) -> list[RunSpec]:
    """What is known to be needed at once, so that no core waits for the slowest trial of an arm."""
    return [replace(spec, share=HALVED_SHARE if form.halving else 1.0) for spec in trials(arm, form)]


def _spec(run: dict) -> RunSpec:
    return RunSpec(**run["spec"])


def _mean_factor(run: dict) -> float:
    return statistics.fmean(each for each in run["result"]["series"]["s"] if each is not None)


def _table_of(report: dict) -> str:
    from tools.bench.contest.analysis import Paired

    return table(report["summary"], {arm: Paired(**found) for arm, found in report["paired"].items()})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench/optimizers.py", description=__doc__.splitlines()[1])
    parser.add_argument("--form", choices=sorted(FORMS), default="cpu")
    parser.add_argument("--arms", nargs="+", choices=sorted(ARMS), default=sorted(ARMS))
    parser.add_argument(
        "--seeds", type=int, default=5, help="final runs per arm, at least 2; 5 for a verdict"
    )
    parser.add_argument("--data", default="", help="a folder of stage 40 instead of the built-in text")
    parser.add_argument("--output", default="data/bench/optimizers")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds must be at least 2: nothing can be compared with one")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
