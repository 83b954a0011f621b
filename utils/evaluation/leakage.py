"""
Refuse to evaluate on prompts that a compared model was trained on.

    refuse_leaks("sft test", test_prompts, training={"sft train": prompt_hashes(train_prompts)})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from utils.pipeline.errors import UpstreamError
from utils.pipeline.hashing import unit_hash

EXAMPLES = 3


def prompt_hash(prompt: str) -> int:
    """
    64 bits of a first user turn, lower-cased with blanks collapsed, as the split of stages 60 and 80 sees
    it.
    """
    return unit_hash("prompt", 0, " ".join(prompt.lower().split()))


def prompt_hashes(prompts: Iterable[str]) -> set[int]:
    return {prompt_hash(prompt) for prompt in prompts}


def refuse_leaks(name: str, prompts: Iterable[str], training: Mapping[str, set[int]]) -> None:
    """UpstreamError (exit 3) with counts and examples when evaluation prompts occur in a training set."""
    prompts = list(prompts)
    for trained_on, hashes in training.items():
        leaked = [prompt for prompt in prompts if prompt_hash(prompt) in hashes]
        if leaked:
            examples = "; ".join(ascii(prompt[:60]) for prompt in leaked[:EXAMPLES])
            raise UpstreamError(
                f"{len(leaked)} of {len(prompts)} prompts of {name} were trained on in {trained_on}: "
                f"{examples}",
                fix="use the same seed and split fractions in stages 60 and 80, and rebuild them",
            )
