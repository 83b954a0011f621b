"""
Statistics and the DATA_CARD of a prepared chat dataset; counts only, so that two builds give the same bytes.

    stats = dataset_stats("chat", build.stats, tally, formats={"mine": ["qa"]}, notes={})
    write_description(stage, "Conversations", stats, encoder, template="chatml")
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from utils.chat.masks import ChatEncoder
from utils.chat.prepare import Tally
from utils.config.chat_data import ChatSource
from utils.pipeline.stage import Stage
from utils.pipeline.tokenizer_files import TEMPLATE_FILE

LENGTH_BIAS = 0.7


@dataclass
class SplitStats:
    """Lengths of what one split holds."""

    tokens: list[int] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def add(self, tokens: int, trained: int, turns: int) -> None:
        self.tokens.append(tokens)
        self.trained.append(trained)
        self.turns.append(turns)

    def summary(self) -> dict:
        return {
            "sequences": len(self.tokens),
            "turns": sum(self.turns),
            "tokens": sum(self.tokens),
            "trained_tokens": sum(self.trained),
            "trained_share": round(sum(self.trained) / max(1, sum(self.tokens)), 4),
            "tokens_p50": int(np.percentile(self.tokens, 50)) if self.tokens else 0,
            "tokens_p90": int(np.percentile(self.tokens, 90)) if self.tokens else 0,
            "tokens_max": max(self.tokens, default=0),
        }


def dataset_stats(layout: str, splits: Mapping[str, SplitStats], tally: Tally, **more: object) -> dict:
    """The content of stats.json; `layout` is "chat" (stage 60) or "pairs" (stage 80)."""
    return {
        "layout": layout,
        "rows": {
            "read": sum(tally.read.values()),
            "kept": sum(tally.kept.values()),
            "rejected": sum(tally.rejected.values()),
        },
        "splits": {name: split.summary() for name, split in splits.items()},
        "rejected_by_reason": tally.reasons,
        "sources": tally.by_source(),
        **more,
    }


def write_description(
    stage: Stage,
    title: str,
    stats: Mapping,
    encoder: ChatEncoder,
    template: str,
    sources: Sequence[ChatSource] = (),
) -> None:
    """stats.json, DATA_CARD.md and the template itself, and one log line per split."""
    card = data_card(title, stats, template, encoder.end_of_turn, encoder.has_control_marks)
    card += "".join(_origin(stage, source) for source in sources)
    (stage.partial / TEMPLATE_FILE).write_text(encoder.template.source, encoding="utf-8")
    (stage.partial / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    (stage.partial / "DATA_CARD.md").write_text(card, encoding="utf-8")
    for split, row in stats["splits"].items():
        share = f"{row['trained_share']:.0%} trained"
        stage.log("split", f"{split}: {row['sequences']:,} sequences, {row['tokens']:,} tokens, {share}")


def _origin(stage: Stage, source: ChatSource) -> str:
    """A line on a dataset of the Hub and on a licence; "" where there is nothing to say."""
    said = []
    if source.kind == "hub":
        commit = stage.source(source.name).external.resolved_revision
        said += [f"`{source.id}` of the Hugging Face Hub", f"split {source.split}", f"commit {commit}"]
    said += [f"licence {source.licence}"] if source.licence else []
    return f"\nSource {source.name}: {', '.join(said)}.\n" if said else ""


def data_card(title: str, stats: Mapping, template: str, end_of_turn: str, control_marks: bool) -> str:
    """DATA_CARD.md: what was read, what was kept, what was left out and why."""
    rows = stats["rows"]
    lines = [
        f"# {title}",
        "",
        f"{rows['read']:,} rows read, {rows['kept']:,} kept, {rows['rejected']:,} left out;",
        "rejected.jsonl.zst holds each of those with its reason.",
        "",
        "| split | sequences | turns | tokens | trained | p50 | p90 | max |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, split in stats["splits"].items():
        lines.append(
            f"| {name} | {split['sequences']:,} | {split['turns']:,} | {split['tokens']:,} "
            f"| {split['trained_share']:.1%} | {split['tokens_p50']:,} | {split['tokens_p90']:,} "
            f"| {split['tokens_max']:,} |"
        )
    lines += ["", "| source | format | read | kept | left out |", "|---|---|---|---|---|"]
    for name, source in stats["sources"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in source["rejected"].items()) or "-"
        formats = ", ".join(dict.fromkeys(stats["formats"][name]))
        lines.append(f"| {name} | {formats} | {source['read']:,} | {source['kept']:,} | {reasons} |")
    lines += [
        "",
        f"Template `{template}`; an answer ends with `{end_of_turn}`, which is always trained.",
        _marks(template, control_marks),
    ]
    return "\n".join([*lines, *_notes(stats), ""])


def _marks(template: str, control_marks: bool) -> str:
    if control_marks:
        return "Turn marks are control ids: no text that a user writes can forge a turn."
    return f"The turn marks of `{template}` are plain text: a user can write them and so forge a turn."


def _notes(stats: Mapping) -> list[str]:
    """Sentences about what deserves a reader's attention."""
    found, notes = [], stats["notes"]
    if notes.get("dropped_old_turns"):
        found.append(f"{notes['dropped_old_turns']:,} rows were too long and lost their oldest exchanges.")
    if notes.get("spelled_markers"):
        count = notes["spelled_markers"]
        found.append(f"Messages spell control markers {count:,} times; each is encoded as plain text.")
    if stats["layout"] == "pairs":
        pairs = stats["rows"]["kept"]
        share = notes.get("longer_chosen", 0) / pairs
        difference = f"mean difference {notes.get('length_difference_tokens', 0) / pairs:+.1f} tokens"
        found.append(f"The chosen answer is the longer one in {share:.1%} of pairs ({difference}).")
        if share > LENGTH_BIAS:
            found.append("Warning: length bias; a model can win by writing more.")
    return ["", *found] if found else []
