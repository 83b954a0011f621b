"""
LoRA on and off a model: wrap for training, save and attach adapters, fold two into one.

Built on PEFT, so its users can load what we write. An adapter folder holds adapter_config.json and
adapter_model.safetensors and never weights of the base; the manifest says which base it belongs to. Experts
that are fused into one parameter [E, n, m] get an A and a B each (PEFT's `target_parameters`).

    model = prepare_for_tuning(load_model(base), config.tuning, token_rows=[4, 5])
    save_tuned(model, folder, base_name="checkpoints/demo/base", stop_ids=[2, 5])
    model = attach_adapter(load_model(base), folder)
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from utils.config.sft import TuningConfig
from utils.models.flylora import train_adapters
from utils.models.load import save_model
from utils.pipeline.errors import ConfigError, UpstreamError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class LoRAShape:
    """Rank, scale (alpha / rank), dropout and targets of an adapter."""

    rank: int
    alpha: float
    dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR


def prepare_for_tuning(
    model: nn.Module, tuning: TuningConfig, token_rows: Sequence[int], seed: int = 0
) -> nn.Module:
    """The model as stage 70 trains it: all weights, or frozen with an adapter on it or in it."""
    if tuning.mode == "full":
        return model.requires_grad_(True)
    rows = token_rows if tuning.train_markers else ()
    if tuning.mode == "adapter":
        return train_adapters(model, tuning.adapter, seed, rows)
    return add_adapter(
        model, LoRAShape(tuning.rank, tuning.alpha, tuning.dropout, tuning.target_modules), rows
    )


def save_tuned(
    model: nn.Module, folder: Path, base_name: str, stop_ids: Sequence[int], below: Path | None = None
) -> None:
    """
    Adapter or full weights, and a generation_config.json that stops at the end of a turn.

    `below` is the folder of an adapter that was merged before this one was trained: one adapter that does
    both is written.
    """
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    plain.generation_config.eos_token_id = list(stop_ids)
    if not isinstance(model, PeftModel):
        save_model(model, folder)
        return
    parts = adapter_parts(model, base_name)
    write_adapter(folder, *(stack_adapters(read_adapter(below), parts) if below else parts))
    plain.generation_config.save_pretrained(folder)


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter instead of full weights."""
    return (folder / CONFIG_FILE).is_file()


def add_adapter(model: nn.Module, shape: LoRAShape, token_rows: Sequence[int] = ()) -> PeftModel:
    """
    The model frozen, with a fresh adapter that changes nothing yet (B = 0).

    `token_rows` are embedding rows that are trained as well; a tied head follows them. ConfigError for a
    target that matches no linear layer and no experts, and for dropout on experts, which PEFT has not.
    """
    if getattr(model.config, "adapter", None):
        raise ConfigError(
            "the model has adapters of its own; two kinds may not be mixed",
            fix='tune it with "mode": "adapter" or "full"; stage 90 with "adapter": "continue" or "none"',
        )
    linear, experts = _targets(model, shape.target_modules)
    if experts and shape.dropout:
        raise ConfigError(
            f"dropout {shape.dropout:g} is not possible on the experts ({', '.join(experts)})",
            fix='set "dropout": 0, or name "target_modules" without them',
        )
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules=linear,
        target_parameters=experts or None,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=sorted(token_rows) or None,
    )
    with quiet():
        return get_peft_model(model, config)


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT asks transformers for names it has deprecated; the reader of a log can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _targets(model: nn.Module, wanted: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Last names of the linear layers and of the fused experts that `wanted` means."""
    head = model.get_output_embeddings()
    linear = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    experts = {name.split(".")[-1] for name, each in model.named_parameters() if each.ndim == 3}
    chosen = linear | experts if wanted == ALL_LINEAR else set(wanted)
    if missing := sorted(chosen - linear - experts):
        raise ConfigError(
            f'target_modules: no linear layer is called "{missing[0]}"',
            fix=f"available: {', '.join(sorted(linear | experts))}",
        )
    return sorted(chosen & linear), sorted(chosen & experts)


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Trainable and all parameters."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def save_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write the adapter with sorted keys, so that equal weights are equal bytes."""
    write_adapter(folder, *adapter_parts(model, base_name))


def adapter_parts(model: PeftModel, base_name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Config and tensors of the model's adapter, as an adapter folder holds them."""
    document = model.peft_config["default"].to_dict()
    document |= {"base_model_name_or_path": base_name, "inference_mode": True}
    document.pop("peft_version", None)
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in document.items()}
    return json.loads(json.dumps(plain, default=str)), get_peft_model_state_dict(
        model, save_embedding_layers=False
    )


def write_adapter(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write an adapter from its parts."""
    text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    save_file(plain, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def read_adapter(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The config and the tensors of an adapter folder."""
    return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")), load_file(folder / WEIGHTS_FILE)


def attach_adapter(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """The model with the adapter of `folder`. UpstreamError when the two do not belong together."""
    try:
        with quiet():
            return PeftModel.from_pretrained(
                model, str(folder), is_trainable=trainable, local_files_only=True
            )
    except (RuntimeError, ValueError, KeyError) as problem:
        raise UpstreamError(f"the adapter in {folder.name} does not fit this base: {problem}") from problem


def merge_adapter(model: PeftModel) -> nn.Module:
    """The plain model with the adapter's update added to its weights."""
    return model.merge_and_unload()


def stack_adapters(first: tuple[dict, dict], second: tuple[dict, dict]) -> tuple[dict, dict]:
    """
    One adapter that does what `first` and, on top of it, `second` do: s1 B1 A1 + s2 B2 A2 = [s1 B1, s2 B2]
    [A1; A2].

    So an adapter trained over merged weights can be published over the original base. Trained embedding rows
    are those of `second` where it has any (they start from the first's), else those of `first`. The rows of
    A are ordered by expert and rank, the columns of B by rank and expert; without experts there is one.
    """
    (config, tensors), (other_config, other) = first, second
    for key in ("target_modules", "target_parameters"):
        one, two = (sorted(part.get(key) or []) for part in (config, other_config))
        if one != two:
            raise ConfigError(
                "a new adapter over an adapter must have the same target_modules",
                fix=f"use {sorted({*one, *two})}",
            )
    ranks = config["r"], other_config["r"]
    scales = [part["lora_alpha"] / part["r"] for part in (config, other_config)]
    stacked = other | {name: each for name, each in tensors.items() if name not in other}
    for name in sorted(tensors.keys() & other.keys()):
        pair = tensors[name], other[name]
        if ".lora_A." in name:
            parts = [each.unflatten(0, (-1, rank)) for each, rank in zip(pair, ranks, strict=True)]
            stacked[name] = torch.cat(parts, dim=1).flatten(0, 1)
        elif ".lora_B." in name:
            scaled = [each * scale for each, scale in zip(pair, scales, strict=True)]
            parts = [each.unflatten(1, (rank, -1)) for each, rank in zip(scaled, ranks, strict=True)]
            stacked[name] = torch.cat(parts, dim=1).flatten(1, 2)
    rows = other_config["trainable_token_indices"] or config["trainable_token_indices"]
    shape = {"r": sum(ranks), "lora_alpha": sum(ranks), "lora_dropout": 0.0, "trainable_token_indices": rows}
    return config | shape, stacked


def without_dropout(model: nn.Module) -> nn.Module:
    """
    The model with every dropout at 0: policy and reference of a preference method must see the same
    network.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
