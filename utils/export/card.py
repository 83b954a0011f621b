"""
Cards and the Modelfile: what a stranger needs to know and type, every number from a manifest, no dates.

    merged_card("checkpoints/demo/merged", metrics, lineage, waivers)
    gguf_card(CardFacts(name="demo", files=report["files"], lineage=lineage, ...))
    modelfile("model-q8_0.gguf", rendered_probe, context_tokens=256, stop=["<|im_end|>"], system="")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SYSTEM_TEXT, USER_TEXT, ASSISTANT_TEXT = "SYSTEM TEXT", "USER TEXT", "ASSISTANT TEXT"


@dataclass(frozen=True)
class CardFacts:
    """What stands on the card of a GGUF folder."""

    name: str
    license: str
    parameters: int
    context_tokens: int
    files: Mapping[str, Mapping]
    lineage: Sequence[Mapping]
    evaluation_table: str = ""
    waivers: Sequence[Mapping] = field(default_factory=list)


def merged_card(name: str, metrics: Mapping, lineage: Sequence[Mapping], waivers: Sequence[Mapping]) -> str:
    """MODEL_CARD.md of stage 110: parity numbers and lineage."""
    lines = [f"# Merged model {name}", "", "| measured | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in metrics.items()]
    return "\n".join([*lines, "", *_lineage_lines(lineage), *_waiver_lines(waivers)]) + "\n"


def gguf_card(facts: CardFacts) -> str:
    """
    MODEL_CARD.md of stage 120: front matter, files with their distance to the checkpoint, lineage, how to
    run.
    """
    front = ["---", "library_name: gguf", "pipeline_tag: text-generation", "tags: [gguf, llama, lockstep]"]
    front += [f"license: {facts.license}"] if facts.license else []
    file = f"model-{preferred_type(list(facts.files))}.gguf"
    lines = [
        *front,
        "---",
        "",
        f"# {facts.name}",
        "",
        f"{facts.parameters:,} parameters, context {facts.context_tokens:,} tokens. Made by Lockstep; each "
        "file carries its lineage and proves itself: `python tools/pipeline.py verify FILE`.",
        "",
        "## Files",
        "",
        "| file | bytes | bits per weight | mean KL to checkpoint (nats) | top-1 agreement |",
        "|---|---|---|---|---|",
        *(_file_row(file_type, report) for file_type, report in facts.files.items()),
        "",
        "## Run it",
        "",
        "```",
        f"python tools/chat.py --model {file}",
        f"llama-cli -m {file} -cnv",
        f"ollama create {facts.name} -f Modelfile && ollama run {facts.name}",
        "```",
        "",
        "In LM Studio: My Models, Import, choose the file; the chat template is inside.",
        "",
    ]
    if facts.evaluation_table:
        lines += [
            facts.evaluation_table.replace("\n## ", "\n### ").replace("# Evaluation", "## Evaluation", 1)
        ]
    return "\n".join([*lines, *_lineage_lines(facts.lineage), *_waiver_lines(facts.waivers)]) + "\n"


def preferred_type(types: Sequence[str]) -> str:
    """The file to start with: q8_0, which is half of F16 and hardly differs from it, or the first."""
    return "q8_0" if "q8_0" in types else types[0]


def modelfile(file: str, rendered: str, context_tokens: int, stop: Sequence[str], system: str) -> str:
    """The Ollama Modelfile for a file; `rendered` is the chat template over `probe_messages`, without BOS."""
    lines = [
        f"FROM ./{file}",
        f'TEMPLATE """{ollama_template(rendered)}"""',
        f"PARAMETER num_ctx {context_tokens}",
    ]
    lines += [f"PARAMETER stop {json.dumps(text)}" for text in stop]
    lines += [f'SYSTEM """{system}"""'] if system else []
    return "\n".join(lines) + "\n"


def probe_messages() -> list[dict[str, str]]:
    """One turn of each role, whose rendering shows what the template puts around a text."""
    texts = {"system": SYSTEM_TEXT, "user": USER_TEXT, "assistant": ASSISTANT_TEXT}
    return [{"role": role, "content": text} for role, text in texts.items()]


def ollama_template(rendered: str) -> str:
    """The same turns in Ollama's template language, read off the rendering of `probe_messages`."""
    before_system, rest = rendered.split(SYSTEM_TEXT)
    between, rest = rest.split(USER_TEXT)
    after_user, after_assistant = rest.split(ASSISTANT_TEXT)
    cut = len(between) - len(_user_header(between, before_system))
    system = before_system + "{{ .System }}" + between[:cut]
    user = between[cut:] + "{{ .Prompt }}"
    return f"{{{{ if .System }}}}{system}{{{{ end }}}}{user}{after_user}{{{{ .Response }}}}{after_assistant}"


def _user_header(between: str, before_system: str) -> str:
    """The part of `between` that opens the user's turn: it starts as the system's turn starts."""
    opening = before_system.split("system")[0].split("System")[0]
    return between[between.rindex(opening) :] if opening and opening in between else between.lstrip("\n")


def _file_row(file_type: str, report: Mapping) -> str:
    bits = 8 * report["bytes_per_weight"]
    return (
        f"| model-{file_type}.gguf | {report['bytes']:,} | {bits:.2f} | {report['mean_kl']:.1e} | "
        f"{100 * report['top1_agreement']:.2f} % |"
    )


def _lineage_lines(lineage: Sequence[Mapping]) -> list[str]:
    lines = ["## Lineage", "", "| stage | folder | output digest | made from |", "|---|---|---|---|"]
    for entry in lineage:
        parents = ", ".join(f"{role} {found[:12]}" for role, found in entry["parents"].items())
        sources = ", ".join(f"{source['name']} {source['digest'][:12]}" for source in entry["sources"])
        made_from = "; ".join(part for part in (parents, sources) if part)
        lines.append(f"| {entry['stage']} | {entry['path']} | {entry['output_digest'][:12]} | {made_from} |")
    return lines


def _waiver_lines(waivers: Sequence[Mapping]) -> list[str]:
    if not waivers:
        return []
    rows = [f"- {w['stage']} {w['role']}: {w['verdict']} {w['component']}: {w['reason']}" for w in waivers]
    return ["", "## Allowed mismatches", "", *rows]


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
