"""
The results for people: table.md with models side by side, and samples.jsonl with their answers to the same
questions.

    (folder / "table.md").write_text(render_table(results))
    base | sft | dpo, each number with its 95 % interval and n, verdicts below
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from utils.evaluation.answers import normalise, token_f1
from utils.evaluation.held_out import Question
from utils.evaluation.protocol import Written

PERCENT = {"exact_match", "token_f1", "preference_accuracy", "implicit_reward_accuracy"}


def render_table(results: dict) -> str:
    """Markdown: metrics by model, baselines of the text measures, pairwise verdicts."""
    models = list(results["models"])
    lines = ["# Evaluation", "", "Brackets hold 95 % intervals (Wilson for shares, bootstrap otherwise).", ""]
    lines += [_row(["metric", "n", *models, "baseline"]), _row(["---"] * (len(models) + 3))]
    for name, metric in results["metrics"].items():
        cells = [
            _estimate(name, metric["models"][model]) if model in metric["models"] else "" for model in models
        ]
        n = next(iter(metric["models"].values()))["n"]
        lines.append(_row([name, f"{n:,}", *cells, _baseline(name, metric)]))
        if name.startswith("nll_per_token:"):
            cells = [_perplexity(metric["models"][model]) for model in models]
            lines.append(_row([name.replace("nll_per_token", "perplexity"), f"{n:,}", *cells, ""]))
    lines += ["", *_baseline_lines(results["validation"]), "", "## Is the difference more than chance?", ""]
    lines += [_row(["metric", "models", "difference", "95 % interval", "n", "verdict"]), _row(["---"] * 6)]
    lines += [_comparison(entry) for entry in results["comparisons"]]
    return "\n".join(lines) + "\n"


def render_samples(
    questions: Sequence[Question], answers: Mapping[str, Sequence[Written]], worst_first: str
) -> str:
    """
    One JSON line per question with every model's answer; those that `worst_first` answered worst come
    first.
    """
    order = sorted(
        range(len(questions)),
        key=lambda i: (token_f1(answers[worst_first][i].text, questions[i].reference), i),
    )
    return "".join(
        json.dumps(
            {
                "id": questions[i].id,
                "messages": questions[i].messages,
                "reference": questions[i].reference,
                "answers": {
                    name: {
                        "text": written[i].text,
                        "exact": normalise(written[i].text) == normalise(questions[i].reference),
                    }
                    for name, written in answers.items()
                },
            },
            sort_keys=True,
        )
        + "\n"
        for i in order
    )


def _baseline_lines(validation: Mapping[str, float]) -> list[str]:
    """The base model's validation loss beside what counting words of the same data would reach."""
    if not validation:
        return []
    return ["Nats per token on the packed validation split (stage 50):", ""] + [
        f"- {name.replace('_', ' ')}: {value:.4f}" for name, value in validation.items()
    ]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if name in PERCENT else f"{value:.4f}"


def _estimate(name: str, found: Mapping[str, float]) -> str:
    low, high = _number(name, found["low"]), _number(name, found["high"])
    return f"{_number(name, found['value'])} [{low}, {high}]"


def _perplexity(found: Mapping[str, float]) -> str:
    value, low, high = (math.exp(found[key]) for key in ("value", "low", "high"))
    return f"{value:,.2f} [{low:,.2f}, {high:,.2f}]"


def _baseline(name: str, metric: dict) -> str:
    if metric["baseline"] is None:
        return ""
    return f"{_number(name, metric['baseline'])} ({metric['baseline_means']})"


def _comparison(entry: dict) -> str:
    name = entry["metric"]
    interval = f"[{_difference(name, entry['low'])}, {_difference(name, entry['high'])}]"
    models = f"{entry['model']} against {entry['against']}"
    difference = _difference(name, entry["difference"])
    return _row([name, models, difference, interval, f"{entry['n']:,}", entry["verdict"]])


def _difference(name: str, value: float) -> str:
    return f"{100 * value:+.1f} %" if name in PERCENT else f"{value:+.2g}"
