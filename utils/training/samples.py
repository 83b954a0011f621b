"""
What the model says now: greedy continuations of fixed prompts, so that two evaluations can be compared by
eye.

    texts = greedy_samples(model, [[1, 410, 87]], new_tokens=48, end_ids=[2])
"""

import torch
from torch import nn

from utils.training.loss import device_of


@torch.no_grad()
def greedy_samples(
    model: nn.Module, prompts: list[list[int]], new_tokens: int, end_ids: list[int]
) -> list[list[int]]:
    """New ids for each prompt, without the id that ended them. No random state is touched."""
    was_training = model.training
    model.eval()
    samples = [_continue(model, prompt, new_tokens, set(end_ids)) for prompt in prompts]
    model.train(was_training)
    return samples


def _continue(model: nn.Module, prompt: list[int], new_tokens: int, end_ids: set[int]) -> list[int]:
    ids, cache = torch.tensor([prompt], device=device_of(model)), None
    produced: list[int] = []
    for _ in range(new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        following = int(output.logits[0, -1].argmax())
        if following in end_ids:
            break
        produced.append(following)
        ids, cache = torch.tensor([[following]], device=ids.device), output.past_key_values
    return produced
