"""
10 -- generate: synthetic text, chats and preference pairs from any OpenAI-compatible API.

    python scripts/10_generate.py --config config/demo/10_generate.json

Reads   a provider: an API whose key is in the environment, or the offline teacher, which the stage starts
Writes  <dataset>/dataset.jsonl for each dataset of the config, failures.jsonl, DATA_CARD.md, manifest.json

Counts are exact or the stage fails. Every reply is journalled when it arrives: after kill -9 the same command
asks only for what is missing, and so does one whose config only asks for more.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from anywhere

from utils.config.generate import GenerateConfig
from utils.pipeline.environment import code_modules
from utils.pipeline.stage import Stage, run_stage
from utils.pipeline.workspace import Workspace


def main(config: GenerateConfig, stage: Stage) -> dict:
    from utils.generate.run import generate

    with ThreadPoolExecutor(1) as beside:  # what the manifest says of the code, while replies are awaited
        beside.submit(code_modules, stage.workspace.path("scripts/10_generate.py"), stage.workspace.root)
        generated = generate(config, stage.partial, stage.workspace, stage.log, lambda: stage.stopping)
    if generated is None:
        stage.stop_point()
    for name, counts in generated.metrics["datasets"].items():
        stage.log(
            "generated", f"{name:<12}{counts['rows']:>8,} rows  {counts['mode']}", dataset=name, **counts
        )
    stage.run_info(calls_made=generated.calls_made, usage=generated.usage)
    return generated.metrics


def forecast(config: GenerateConfig, workspace: Workspace) -> str:
    """What --dry-run says besides: calls, tokens, money, time of what is not made yet."""
    from utils.generate.estimate import Made, estimate
    from utils.generate.given import Given
    from utils.generate.recorded import still_standing

    given = Given.read(config, workspace)
    made = {name: Made.of(state) for name, state in still_standing(config, given, workspace).items()}
    return estimate(config, len(given.topics), made).text()


if __name__ == "__main__":
    run_stage("10_generate", GenerateConfig, main, forecast)
