"""Parts that generation tests share: a small config, and a run of it without a stage."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from utils.config.generate import GenerateConfig
from utils.generate.run import Generated, generate
from utils.generate.write import write_outputs

DEMO = Path(__file__).resolve().parents[2] / "config" / "demo" / "10_generate.json"


def small_document(**rows: int) -> dict:
    """The demo config with other row counts; datasets that are not named are left out."""
    document = json.loads(DEMO.read_text())
    document = {key: value for key, value in document.items() if not key.startswith("_")}
    document["datasets"] = {
        name: document["datasets"][name] | {"rows": count, "num_subtopics": min(count, 8)}
        for name, count in rows.items()
    }
    return document


@dataclass
class Session:
    """Runs a config in a folder; `events` holds what it logged."""

    folder: Path
    events: list[tuple[str, str]] = field(default_factory=list)

    def run(self, document: dict, stopping: Callable[[], bool] = lambda: False) -> Generated | None:
        config = GenerateConfig.model_validate(document)
        self.folder.mkdir(parents=True, exist_ok=True)
        generated = generate(
            config, self.folder, lambda event, text="", **_: self.events.append((event, text)), stopping
        )
        if generated is not None:
            write_outputs(config, generated, self.folder)
        return generated

    def rows(self, dataset: str) -> list[dict]:
        return [
            json.loads(line) for line in (self.folder / dataset / "dataset.jsonl").read_text().splitlines()
        ]

    def outputs(self) -> dict[str, bytes]:
        """Every output file by path, the journal left out."""
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in found
            if ".journal" not in path.parts
        }
