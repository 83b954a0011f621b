"""
What a transform says of itself: the metrics of its manifest and DATA_CARD.md. No times, no counts of retries.

    metrics = write_card(config, transformed, stage.partial)
"""

import json
from pathlib import Path

from utils.config.transform import TransformConfig
from utils.generate.transform_run import Transformed

SAMPLES = 3
EXCERPT_CHARACTERS = 160


def write_card(config: TransformConfig, made: Transformed, folder: Path) -> dict:
    """Write the card and return the metrics."""
    metrics = {
        "datasets": {config.dataset: {"mode": "dpo", "rows": made.rows, "left_out": made.failed}},
        "usage": made.usage,
    }
    with (folder / config.dataset / "dataset.jsonl").open(encoding="utf-8") as file:
        samples = [line for line, _ in zip(file, range(SAMPLES), strict=False)]
    (folder / "DATA_CARD.md").write_text(_card(config, made, samples), encoding="utf-8", newline="\n")
    return metrics


def _card(config: TransformConfig, made: Transformed, samples: list[str]) -> str:
    model = config.models[config.rejected_model]
    sources = ", ".join(source.name for source in config.sources)
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in made.failed.items()) or "none"
    thinking = "taken out" if config.reasoning == "strip" else "kept as `<think>` before the answer"
    shown = "\n".join(_shortened(line.rstrip("\n")) for line in samples)
    return f"""# Preference pairs

Chosen answers come from the sources ({sources}); the rejected ones were written by {model.model}
({model.provider}) at temperature {model.temperature:g}, seed {config.seed}. Thinking is {thinking}.

| dataset | rows | left out, by reason |
| --- | --- | --- |
| {config.dataset} | {made.rows:,} | {left_out} |

Rows stand in the order of the sources; failures.jsonl names those that were left out.

## Tokens as the provider counts them

```
{json.dumps(made.usage, indent=1)}
```

## Samples

```
{shown}
```
"""


def _shortened(line: str) -> str:
    return line if len(line) <= EXCERPT_CHARACTERS else line[:EXCERPT_CHARACTERS] + " ..."
