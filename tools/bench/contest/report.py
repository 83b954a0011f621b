"""
What a contest leaves: report.json with every number, SVG plots, and one HTML page of them.

    write_report(folder, form, tuned, finals, seeds)       # returns the verdict

`tuned` and `finals` map an arm to its runs, each {"spec": ..., "key": ..., "result": ...}.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tools.bench.contest.analysis import RULE, Paired, summarise, verdict
from tools.bench.contest.arms import ARMS, PROTOCOL, Form
from tools.bench.contest.plots import Line, chart, page
from utils.pipeline.hashing import canonical_json, sha256_hex

Runs = Mapping[str, Sequence[dict]]


def write_report(folder: Path, form: Form, tuned: Runs, finals: Runs, seeds: Sequence[int]) -> str:
    """
    Judge, write, and return the verdict. ValueError when arms did not start from the same place or under the
    same settings.
    """
    _same_start(finals)
    _same_settings(finals)
    losses = {arm: [run["result"]["val_loss"] for run in runs] for arm, runs in finals.items()}
    said, compared = verdict(losses)
    summary = _summaries(finals)
    report = {
        "protocol": PROTOCOL,
        "rule": RULE,
        "verdict": said,
        "form": asdict(form),
        "seeds": list(seeds),
        "arms": {arm: ARMS[arm] for arm in finals},
        "paired": {arm: asdict(each) for arm, each in compared.items()},
        "summary": summary,
        "trials": {arm: [_brief(run) for run in runs] for arm, runs in tuned.items()},
        "chosen": {arm: runs[0]["spec"] for arm, runs in finals.items()},
        "runs": [run for runs in finals.values() for run in runs],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="ascii")
    charts = _charts(tuned, finals)
    for name, svg in charts.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    text = f"<p>{RULE}</p><p><b>{said}</b></p><pre>{table(summary, compared)}</pre>"
    (folder / "report.html").write_text(page("Optimizers", list(charts.values()), text), encoding="utf-8")
    return said


def table(summary: Mapping[str, dict], compared: Mapping[str, Paired]) -> str:
    """Arms by final loss, with F's improvement over each."""
    lines = [f"{'arm':<4}{'val loss':>10}{'at equal time':>15}{'ms':>8}   improvement of F, 95 % interval"]
    for arm, row in sorted(summary.items(), key=lambda item: item[1]["val_loss"]):
        gain = ""
        if arm in compared:
            found = compared[arm]
            gain = f"{found.mean:+.2%} [{found.t_interval[0]:+.2%}, {found.t_interval[1]:+.2%}]"
        numbers = f"{row['val_loss']:>10.4f}{row['val_loss_at_equal_time']:>15.4f}{row['optimizer_ms']:>8.2f}"
        lines.append(f"{arm:<4}{numbers}   {gain or '-'}  {ARMS[arm]}")
    return "\n".join(lines)


def _summaries(finals: Runs) -> dict[str, dict]:
    seconds = min(statistics.fmean(run["result"]["seconds"] for run in runs) for runs in finals.values())
    targets = [run["result"]["curve"][-1][1] for run in finals.get("A", next(iter(finals.values())))]
    return {arm: summarise([run["result"] for run in runs], seconds, targets) for arm, runs in finals.items()}


def _same_start(finals: Runs) -> None:
    """Initial weights and row order of a seed must be those of every other arm."""
    known: dict[int, tuple[str, str]] = {}
    for arm, runs in finals.items():
        for run in runs:
            found = run["result"]["init_sha256"], run["result"]["data_sha256"]
            if known.setdefault(run["spec"]["seed"], found) != found:
                raise ValueError(f"arm {arm}, seed {run['spec']['seed']}: other initial weights or rows")


def _same_settings(finals: Runs) -> None:
    """Batch, precision, clipping, groups and warm-up must be the same in all runs."""
    known: dict = {}
    for arm, runs in finals.items():
        for run in runs:
            found = run["result"]["settings"]
            known = known or found
            if run["result"]["settings_sha256"] != sha256_hex(canonical_json(known)):
                differs = [name for name in sorted(known | found) if known.get(name) != found.get(name)]
                raise ValueError(f"arm {arm}, seed {run['spec']['seed']}: other {', '.join(differs)}")


def _brief(run: dict) -> dict:
    return {"spec": run["spec"], "key": run["key"], "val_loss": run["result"]["val_loss"]}


def _charts(tuned: Runs, finals: Runs) -> dict[str, str]:
    results = {arm: [run["result"] for run in runs] for arm, runs in finals.items()}
    by_rate = {
        arm: Line(*zip(*sorted((run["spec"]["rate"], _capped(run)) for run in runs), strict=True))
        for arm, runs in tuned.items()
        if runs
    }
    charts = {
        "val_loss": chart("held-out loss", "tokens", {arm: _curve(runs) for arm, runs in results.items()}),
        "learning_rates": chart("final loss of the trials", "learning rate", by_rate, log_x=True),
    }
    for name in ("eta", "s", "b", "grad_norm", "optimizer_ms"):
        lines = {arm: _series(runs[0]["series"][name]) for arm, runs in results.items()}
        charts[name] = chart(f"{name}, first seed", "step", lines)
    return {name: svg for name, svg in charts.items() if svg}


def _capped(run: dict) -> float:
    """A diverged trial must not flatten the others in a plot."""
    return min(run["result"]["val_loss"], 8.0)


def _curve(runs: Sequence[dict]) -> Line:
    tokens = [point[0] for point in runs[0]["curve"]]
    columns = list(zip(*([point[1] for point in run["curve"]] for run in runs), strict=True))
    means = [statistics.fmean(column) for column in columns]
    spread = [
        1.96 * statistics.stdev(column) / len(column) ** 0.5 if len(column) > 1 else 0.0 for column in columns
    ]
    lows, highs = ([m + sign * s for m, s in zip(means, spread, strict=True)] for sign in (-1, 1))
    return Line(tokens, means, lows, highs)


def _series(values: Sequence[float | None]) -> Line:
    known = [(step, value) for step, value in enumerate(values) if value is not None]
    return Line(*zip(*known, strict=True)) if known else Line((), ())
