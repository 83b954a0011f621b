"""
Models between memory and disk: fp32 safetensors in transformers' own layout, tokenizer files byte for byte.
Importing this module teaches transformers' Auto classes to read VesperLM.

    model = build_initialised(load_architecture("demo", workspace), vocab_size, special_ids, seed=0)
    model = load_model(stage.input("base").path)
    save_model(model, stage.partial)
    copy_tokenizer(stage.input("tokenizer").path, stage.partial)
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from utils.config.architecture import Architecture
from utils.models.llama import (
    build_llama,
    expert_fields,
    from_config,
    initial_weights,
    initialise,
    routes_in_fp32,
    shared_fields,
    trains_padding,
)
from utils.models.vesper import VesperConfig, VesperForCausalLM
from utils.pipeline.errors import UpstreamError

AutoConfig.register("vesper", VesperConfig, exist_ok=True)
AutoModelForCausalLM.register(VesperConfig, VesperForCausalLM, exist_ok=True)

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def build_model(
    architecture: Architecture, vocab_size: int, special_ids: dict[str, int], attention: str = "sdpa"
) -> PreTrainedModel:
    """The model of an architecture, before `utils.models.llama.initialise` draws its weights."""
    if architecture.family == "llama":
        return build_llama(architecture, vocab_size, special_ids, attention)
    config = VesperConfig(
        architectures=["VesperForCausalLM"],
        hidden_act=architecture.gate,
        gamma=architecture.softplus_share,
        **shared_fields(architecture, vocab_size, special_ids),
        **(expert_fields(architecture.moe) if architecture.moe else {}),
    )
    return from_config(VesperForCausalLM, config, attention)


def build_initialised(
    architecture: Architecture,
    vocab_size: int,
    special_ids: dict[str, int],
    attention: str = "sdpa",
    *,
    seed: int,
    on_meta: bool = False,
) -> PreTrainedModel:
    """
    The model of an architecture with its initial weights and its adapters.

    With `on_meta` its parameters are shapes without memory, and `model.initial_weights()` gives their names
    and values, whole and one at a time, to processes that each keep a part. Buffers are real either way.
    """
    with torch.device("meta") if on_meta else nullcontext():
        model = build_model(architecture, vocab_size, special_ids, attention)
    if on_meta:
        decoder = model.get_decoder()
        decoder.rotary_emb = type(decoder.rotary_emb)(config=model.config)  # it has buffers only
        model.initial_weights = partial(initial_weights, model, architecture, seed)
    else:
        initialise(model, architecture, seed)
    if architecture.adapter:
        model.adapt(architecture.adapter, seed)
    return model


def load_model(folder: Path, attention: str = "sdpa") -> PreTrainedModel:
    """The fp32 model in `folder`, never fetched from anywhere, never running code from the folder."""
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
        )
    trains_padding(model)
    routes_in_fp32(model)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (fp32) into `folder`."""
    with _quiet():
        model.save_pretrained(folder, max_shard_size="100GB")


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """
    Copy the tokenizer's files without re-saving them, and return their names. UpstreamError if the model is
    missing.
    """
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.model", "tokenizer.json"} & set(names):
        raise UpstreamError(
            f"{source} holds no tokenizer.model and no tokenizer.json", fix="run stage 30 again"
        )
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars: only the stage's log speaks."""
    was_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()
