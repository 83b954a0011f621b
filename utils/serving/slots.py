"""
Several answers of one model at once: each has a slot, and all of them take their next token in one step.

    slots = CheckpointSlots(model, num_slots=4)
    logits = slots.begin(0, prompt_ids)            # [vocabulary], of the token after the prompt
    logits = slots.step({0: token, 2: other})      # {0: [vocabulary], 2: [vocabulary]}
    slots.end(0)

An answer joins between steps and leaves between steps; its greedy text does not depend on its neighbours.

Legend: B answers under way, T tokens, H key/value heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from utils.pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from utils.serving.grammar import Grammar


class Slots(Protocol):
    """A model with `num_slots` sequences; every sequence under way takes part in each step."""

    num_slots: int
    constraint: Callable[[str], Grammar] | None
    """Makes what keeps an answer to a grammar; None where answers cannot be kept to one."""

    def begin(self, slot: int, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Logits after the prompt, [vocabulary]; `every`: after each token, [tokens, vocabulary]."""

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Append a token to each sequence under way; logits of the next one by slot."""

    def end(self, slot: int) -> None:
        """Forget a sequence."""

    def close(self) -> None:
        """Free what the slots hold; the model stays."""


class CheckpointSlots:
    """
    Slots of a transformers model: one cache whose rows are padded on the left to the longest sequence.

    ConfigError for more than one slot over a model with sliding windows, whose cache has no such rows.
    """

    constraint = None

    def __init__(self, model: PreTrainedModel, num_slots: int) -> None:
        from transformers import DynamicCache

        if num_slots > 1 and any(layer.is_sliding for layer in DynamicCache(config=model.config).layers):
            raise ConfigError("a model with sliding windows answers one at a time", fix="--slots 1")
        self.model = model.eval()
        self.num_slots = num_slots
        self._rows: list[int] = []
        self._mask_BT: torch.Tensor | None = None
        self._cache = None

    def begin(self, slot: int, ids: Sequence[int], every: bool = False) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = torch.tensor([list(map(int, ids))], device=self.model.device)
            output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=0 if every else 1)
            self._join(slot, output.past_key_values, torch.ones_like(tokens))
        logits = output.logits[0].float().cpu().numpy()
        return logits if every else logits[-1]

    def step(self, tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        import torch

        with torch.inference_mode():
            column = torch.tensor([[tokens[slot]] for slot in self._rows], device=self.model.device)
            self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(column)], dim=1)
            output = self.model(
                input_ids=column,
                attention_mask=self._mask_BT,
                position_ids=self._mask_BT.sum(1, keepdim=True) - 1,
                past_key_values=self._cache,
                use_cache=True,
            )
        self._cache = output.past_key_values
        return dict(zip(self._rows, output.logits[:, -1].float().cpu().numpy(), strict=True))

    def end(self, slot: int) -> None:
        import torch

        if slot not in self._rows:
            return
        keep = [row for row, other in enumerate(self._rows) if other != slot]
        self._rows.remove(slot)
        if not keep:
            self._mask_BT = self._cache = None
            return
        with torch.inference_mode():
            kept = torch.tensor(keep, device=self.model.device)
            self._cache.batch_select_indices(kept)
            self._mask_BT = self._mask_BT[kept]
            self._drop_padding()

    def close(self) -> None:
        self._rows, self._mask_BT, self._cache = [], None, None

    def _join(self, slot: int, cache: object, mask_BT: torch.Tensor) -> None:
        """Put a sequence of its own beside those under way, the shorter ones padded on the left."""
        import torch
        from torch.nn.functional import pad

        self._rows.append(slot)
        if self._cache is None:
            self._cache, self._mask_BT = cache, mask_BT
            return
        width = max(self._mask_BT.shape[1], mask_BT.shape[1])
        for ours, theirs in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                parts_BHTd = (getattr(ours, name), getattr(theirs, name))
                padded = [pad(part, (0, 0, width - part.shape[2], 0)) for part in parts_BHTd]
                setattr(ours, name, torch.cat(padded))
        masks = [pad(mask, (width - mask.shape[1], 0)) for mask in (self._mask_BT, mask_BT)]
        self._mask_BT = torch.cat(masks)

    def _drop_padding(self) -> None:
        """Cut columns that are padding in every row."""
        width = int(self._mask_BT.sum(1).max())
        if width == self._mask_BT.shape[1]:
            return
        self._mask_BT = self._mask_BT[:, -width:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[:, :, -width:], layer.values[:, :, -width:]
