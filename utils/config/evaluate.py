"""
Config of stage 100: which models, and what they are asked.

    {"output": "data/demo/evaluation", "seed": 7,
     "inputs": {"base": "checkpoints/demo/base", "sft": "checkpoints/demo/sft", "dpo":
     "checkpoints/demo/preferences",
                "corpus": "data/demo/corpus", "sft_data": "data/demo/sft", "preference_data":
                "data/demo/preferences"},
     "generation": {"limit_rows": 200}}
"""

from typing import ClassVar, Literal

from pydantic import Field

from utils.pipeline.config import InputFolder, Runtime, Section, StageConfig
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace


class EvaluateInputs(Section):
    """The models side by side, and the artifacts whose held-out parts they are measured on."""

    base: InputFolder
    """Base model (stage 50)."""
    sft: InputFolder = ""
    """Supervised model (stage 70): adapter or full weights; "" leaves it out."""
    dpo: InputFolder = ""
    """Preference-tuned model (stage 90): adapter or full weights; "" leaves it out."""
    corpus: InputFolder
    """Corpus (stage 20) whose validation documents are scored."""
    sft_data: InputFolder
    """Chat data (stage 60) whose held-out questions are asked."""
    preference_data: InputFolder
    """Preference data (stage 80) whose held-out pairs are ordered."""


class PerplexityConfig(Section):
    """Text that is scored token by token."""

    limit_tokens: int = Field(default=65_536, ge=0)
    """Tokens of each set, from its first documents on, whole documents; 0 scores all."""
    texts: list[str] = []
    """
    Glob patterns of further local .txt files, scored as a set of their own called "texts". The corpus must
    name the same files in `decontaminate.against`.
    """


class GenerationConfig(Section):
    """Held-out questions that every model answers greedily."""

    split: Literal["val", "test"] = "test"
    """Held-out split of the chat data."""
    limit_rows: int = Field(default=200, ge=0)
    """Questions asked, the first in file order; 0 asks all."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer in tokens."""


class PreferenceEvaluationConfig(Section):
    """Held-out pairs that every model orders."""

    split: Literal["val", "test"] = "test"
    """Held-out split of the preference data."""
    limit_pairs: int = Field(default=0, ge=0)
    """Pairs scored, the first in file order; 0 scores all."""


class EvaluateConfig(StageConfig):
    """Stage 100."""

    stage: ClassVar[str] = "100_evaluate"
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "seeded"
    # not the test rows of sft_data and preference_data: those are made with the corpus's own tokenizer, so no
    # corpus can be made against them
    held_out_sources: ClassVar[tuple[str, ...]] = ("texts",)

    inputs: EvaluateInputs
    """The models, and what they are measured on."""
    seed: int = 7
    """Seed of the bootstrap."""
    bootstrap_resamples: int = Field(default=10_000, ge=100)
    """Resamples behind every bootstrap interval."""
    perplexity: PerplexityConfig = PerplexityConfig()
    """Texts that are scored token by token."""
    generation: GenerationConfig = GenerationConfig()
    """Held-out questions that are answered greedily."""
    preferences: PreferenceEvaluationConfig = PreferenceEvaluationConfig()
    """Held-out pairs that are ordered by log-probability."""
    cpu_threads: Runtime[int] = Field(default=0, ge=0)
    """Threads of torch on a CPU; 0 leaves torch's own choice."""

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The local text files, when there are any."""
        texts = self.perplexity.texts
        return [ExternalSource.local("texts", texts, workspace)] if texts else []
