"""
What the model says now: continuations of fixed prompts, so that two evaluations can be compared by eye.

    texts = continuations(model, [[1, 410, 87]], new_tokens=48, end_ids=[2])                     # greedy
    texts = continuations(model, [[1, 410, 87]], 48, [2], temperature=0.8, seed=0)               # drawn
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils.training.loss import device_of

Choose = Callable[[Tensor], int]


@torch.no_grad()
def continuations(
    model: nn.Module,
    prompts: list[list[int]],
    new_tokens: int,
    end_ids: list[int],
    temperature: float = 0.0,
    seed: int = 0,
    stopping: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """
    New ids for each prompt, without the id that ended them: the likeliest ones at temperature 0, else drawn
    by a generator of their own. No other random state is touched. Once `stopping`, nothing is added any more.
    """
    was_training = model.training
    model.eval()
    samples = [
        _continue(model, prompt, new_tokens, set(end_ids), _chooser(temperature, seed), stopping)
        for prompt in prompts
    ]
    model.train(was_training)
    return samples


def _chooser(temperature: float, seed: int) -> Choose:
    """Logits [V] -> id; drawn on the CPU, so that every device draws alike."""
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor) -> int:
        shares = torch.softmax(logits.float().cpu() / temperature, -1)
        return int(torch.multinomial(shares, 1, generator=generator))

    return draw


def _continue(
    model: nn.Module,
    prompt: list[int],
    new_tokens: int,
    end_ids: set[int],
    choose: Choose,
    stopping: Callable[[], bool],
) -> list[int]:
    ids, cache = torch.tensor([prompt], device=device_of(model)), None
    produced: list[int] = []
    for _ in range(new_tokens):
        if stopping():
            break
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        following = choose(output.logits[0, -1])
        if following in end_ids:
            break
        produced.append(following)
        ids, cache = torch.tensor([[following]], device=ids.device), output.past_key_values
    return produced
