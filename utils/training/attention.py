"""
Which form of attention runs, and which tokens it lets see each other.

Documents of a row are kept apart by positions that restart. SDPA, eager and tiled attention read them and
build a block mask, or none at all when every row of the micro-batch is one document. Flash attention would
read them only in a batch of one row, so it gets the boundaries of all rows (`document_spans`).

Importing this module teaches transformers our tiled attention, which training in bf16 on a CPU uses.

    attention = resolve_attention(config, machine.device, machine.precision)      # Choice
    model = load_model(folder, attention.resolved)
    decoder(input_ids=..., position_ids=position_BT, use_cache=False, **document_spans(decoder, position_BT))

B rows, T tokens.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kernels.tiled_attention import tiled_attention
from utils.config.training import TrainingConfig
from utils.pipeline.errors import ConfigError
from utils.training.choice import Choice
from utils.training.precision import Precision

FLASH, TILED = "flash_attention_2", "tiled"
FIRST_FLASH_CAPABILITY = (8, 0)
INSTALL = "pip install flash-attn --no-build-isolation"


def resolve_attention(config: TrainingConfig, device: torch.device, precision: Precision) -> Choice:
    """The form of attention of a run. ConfigError for one that is asked for and cannot run here."""
    asked = config.attention
    if asked in ("sdpa", "eager"):
        return Choice(asked, asked)
    if device.type == "cpu" and (asked == TILED or (asked == "auto" and precision.name == "bf16")):
        return Choice(asked, TILED, "asked for" if asked == TILED else "bf16 on a CPU: faster than SDPA")
    if asked == TILED:
        raise ConfigError(
            f'"attention": {TILED} is for a CPU, this is {device.type}', fix='set "attention": "auto"'
        )
    obstacle = _flash_obstacle(device, precision, config.deterministic)
    if not obstacle:
        return Choice(asked, FLASH, "asked for" if asked == FLASH else "installed, and the GPU can run it")
    if asked == "auto":
        return Choice(asked, "sdpa", obstacle)
    raise ConfigError(
        f'"attention": {FLASH} cannot run: {obstacle}',
        fix=f'set "attention": "auto", or on a GPU that can run it: {INSTALL}',
    )


def _flash_obstacle(device: torch.device, precision: Precision, deterministic: bool) -> str:
    """The first reason why flash attention cannot run, or ""."""
    if device.type != "cuda":
        return f"flash attention needs CUDA, this is {device.type}"
    if (capability := torch.cuda.get_device_capability(device)) < FIRST_FLASH_CAPABILITY:
        return "flash attention needs CUDA capability 8.0, this GPU has {}.{}".format(*capability)
    if precision.name == "fp32":
        return "flash attention computes in 16 bits, the precision is fp32"
    if deterministic:
        return 'the backward pass of flash attention is not deterministic, and "deterministic" is set'
    return "" if importlib.util.find_spec("flash_attn") else "flash-attn is not installed"


def tiled_attention_forward(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **options: object,
) -> tuple[Tensor, None]:
    """
    Tiled attention as transformers calls it, for passes over whole rows; SDPA where keys come from a cache.
    Output [B, T, H, D].
    """
    if query_BHTD.shape[2] != key_BGTD.shape[2] or dropout:
        return sdpa_attention_forward(
            module, query_BHTD, key_BGTD, value_BGTD, attention_mask, dropout, scaling, **options
        )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query_BHTD.dtype
    groups = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD, value_BHTD = repeat_kv(key_BGTD, groups), repeat_kv(value_BGTD, groups)
    inputs = (each.to(dtype) for each in (query_BHTD, key_BHTD, value_BHTD))
    return tiled_attention(*inputs, attention_mask, scaling).transpose(1, 2), None


AttentionInterface.register(TILED, tiled_attention_forward)
AttentionMaskInterface.register(TILED, sdpa_mask)


def document_spans(decoder: nn.Module, position_BT: Tensor) -> dict[str, Tensor | int]:
    """
    The documents of all rows as flash attention wants them; nothing for other forms, which read positions.

    A document begins with each row and wherever a position is not the one before plus 1. The longest span is
    bounded by the row, so nothing waits for the device but the number of documents.
    """
    if decoder.config._attn_implementation != FLASH:
        return {}
    begins = torch.ones_like(position_BT, dtype=torch.bool)
    begins[:, 1:] = position_BT.diff(dim=1) != 1
    starts = begins.flatten().nonzero().squeeze(1)
    edges, longest = F.pad(starts, (0, 1), value=position_BT.numel()).int(), position_BT.shape[1]
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


def whole_rows(batch: object) -> object:
    """The batch with positions that run through each row, so that every token sees all before it."""
    positions = np.broadcast_to(np.arange(batch.tokens.shape[1]), tuple(batch.tokens.shape))
    if isinstance(batch.position, Tensor):
        return batch._replace(position=torch.from_numpy(positions.copy()).to(batch.position))
    return batch._replace(position=positions.astype(batch.position.dtype))


@contextmanager
def any_precision(model: nn.Module) -> Iterator[None]:
    """The region in which a model may be run outside mixed precision, as for samples: SDPA for flash."""
    config = model.config
    used = config._attn_implementation
    config._attn_implementation = "sdpa" if used == FLASH else used
    try:
        yield
    finally:
        config._attn_implementation = used
