"""
What to tell somebody whose training step does not fit into memory: where the bytes are, and which edits help.

    raise out_of_memory(situation, error, step=12, stored=True)

The edits come in the order of what they cost: smaller micro-batches cost speed alone, recomputed layers a
third more work, a faster attention an installation; shorter rows and a smaller model are another result. Each
comes with the bytes that a step would hold, measured on this model where that can be done.
"""

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from utils.config.architecture import Architecture
from utils.config.pretrain import PretrainConfig
from utils.config.sft import TuningRun
from utils.config.training import TrainingConfig
from utils.pipeline.config import load_config
from utils.pipeline.errors import StageError
from utils.pipeline.workspace import Workspace
from utils.training.attention import resolve_attention
from utils.training.layers import decoder_layers, recompute_layers
from utils.training.loss import causal_model
from utils.training.memory import Footprint, megabytes, peak_bytes
from utils.training.rehearsal import Rehearsal

FEWEST_ROW_TOKENS = 8


class Edit(NamedTuple):
    """A change of the config of `stage`, and the bytes that a step would then hold."""

    stage: str
    change: dict[str, object]
    peak: int

    def __str__(self) -> str:
        where = f" in the config of {self.stage}" if self.stage else ""
        return f"{json.dumps(self.change)[1:-1]}{where}: about {megabytes(self.peak)}"


@dataclass(frozen=True)
class Situation:
    """A step of `micro_rows` rows that did not fit; `smaller` is the next size that divides them, or 0."""

    config: TrainingConfig
    workspace: Workspace
    rehearsal: Rehearsal
    micro_rows: int
    smaller: int

    @property
    def row_tokens(self) -> int:
        return self.rehearsal.batch(1).tokens.shape[1] - 1

    def footprint(self) -> Footprint:
        return self.rehearsal.footprint(self.micro_rows)


def out_of_memory(situation: Situation, error: BaseException, step: int, stored: bool) -> StageError:
    """The error of stage code 4: the peak, what a step holds, and the edits; `stored`: a rerun goes on."""
    rehearsal, rows = situation.rehearsal, situation.micro_rows
    device = rehearsal.machine.device
    held = peak_bytes(device)
    traceback.clear_frames(error.__traceback__)  # they hold the activations of the step that failed
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with rehearsal.without_trace():
        footprint, tokens = situation.footprint(), situation.row_tokens
        edits = possible_edits(situation, footprint)
    message = (
        f"out of memory on {device.type} in step {step}, {megabytes(held)} held at most "
        f"({(str(error) or type(error).__name__).splitlines()[0]})\n"
        f"  a step    {footprint.report()}\n"
        f"            {rows} rows x {tokens} tokens at once: about {megabytes(footprint.peak(rows))}"
    )
    choices = "\n            ".join(map(str, edits)) or "a machine with more memory"
    again = f"rerun: it continues with {situation.smaller} rows at once; or one of\n            "
    return StageError(
        message,
        fix=(again if stored else "one of\n            ") + choices,
        peak_bytes=held,
        edits=[each._asdict() for each in edits],
    )


def possible_edits(situation: Situation, footprint: Footprint) -> list[Edit]:
    """Edits of the config that lower the peak, the cheapest first."""
    rows, edits = situation.micro_rows, []
    if situation.smaller:
        edits.append(Edit("", {"micro_batch_rows": situation.smaller}, footprint.peak(situation.smaller)))
    if not situation.config.activation_checkpointing:
        with _recomputed(situation):
            peak = situation.footprint().peak(rows)
        edits.append(Edit("", {"activation_checkpointing": True}, peak))
    return [
        *edits,
        *_leaner_attention(situation),
        *_shorter_rows(situation, footprint),
        *_smaller_model(situation, footprint),
    ]


@contextmanager
def _recomputed(situation: Situation) -> Iterator[None]:
    model = situation.rehearsal.loss_model.model
    recompute_layers(model)
    try:
        yield
    finally:
        for layer in decoder_layers(model):
            layer.gradient_checkpointing = False


def _leaner_attention(situation: Situation) -> Iterator[Edit]:
    """Attention that keeps no matrix of tokens x tokens, where the run has the one form that does."""
    model, machine = situation.rehearsal.loss_model.model, situation.rehearsal.machine
    settings = causal_model(model).config
    used, wanted = settings._attn_implementation, situation.config.model_copy(update={"attention": "auto"})
    best = resolve_attention(wanted, machine.device, machine.precision).resolved
    if used != "eager":
        return
    settings._attn_implementation = "sdpa"  # saves what flash attention saves, and the mask
    peak = situation.footprint().peak(situation.micro_rows)
    settings._attn_implementation = used
    yield Edit("", {"attention": best}, peak)


def _shorter_rows(situation: Situation, footprint: Footprint) -> Iterator[Edit]:
    """Rows of half the length; with attention of tokens x tokens they keep even less than stated."""
    config, peak = situation.config, replace(footprint, row=footprint.row // 2).peak(situation.micro_rows)
    if isinstance(config, PretrainConfig):
        yield Edit("40_pack_dataset", {"sequence_length_tokens": situation.row_tokens // 2}, peak)
    elif isinstance(config, TuningRun) and config.row_tokens >= 2 * FEWEST_ROW_TOKENS:
        yield Edit("", {"row_tokens": config.row_tokens // 2}, peak)


def _smaller_model(situation: Situation, footprint: Footprint) -> Iterator[Edit]:
    """
    The next smaller preset of the same kind: weights scaled by parameters, activations by depth and width.
    """
    config = situation.config
    if not isinstance(config, PretrainConfig):
        return
    presets = {path.stem: _preset(path.stem, situation.workspace)
               for path in situation.workspace.path("config/architectures").glob("*.json")}  # fmt: skip
    here = presets[config.model]
    kind, context = (here.family, here.moe is None), situation.row_tokens
    smaller = {
        name: each
        for name, each in presets.items()
        if (each.family, each.moe is None) == kind
        and each.declared_parameters < here.declared_parameters
        and each.context_length_tokens >= context
    }
    if smaller:
        name = max(smaller, key=lambda each: smaller[each].declared_parameters)
        peak = _scaled(footprint, here, smaller[name]).peak(situation.micro_rows)
        yield Edit("", {"model": name}, peak)


def _preset(name: str, workspace: Workspace) -> Architecture:
    return load_config(Path(f"config/architectures/{name}.json"), Architecture, workspace).config


def _scaled(footprint: Footprint, here: Architecture, other: Architecture) -> Footprint:
    weights = other.declared_parameters / here.declared_parameters
    depth = other.num_layers / here.num_layers
    width = (2 * other.hidden_size + other.ffn_size) / (2 * here.hidden_size + here.ffn_size)
    return Footprint(
        parameters=round(weights * footprint.parameters),
        gradients=round(weights * footprint.gradients),
        moments=round(weights * footprint.moments),
        copies=round(weights * footprint.copies),
        row=round(depth * width * footprint.row),
    )
