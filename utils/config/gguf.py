"""
Config of stage 120: which GGUF files to write and how hard to check them.

    {"output": "checkpoints/demo/gguf", "name": "lockstep-demo",
     "inputs": {"model": "checkpoints/demo/merged", "corpus": "data/demo/corpus", "prompts": "data/demo/sft",
                "evaluation": "data/demo/evaluation"},
     "outputs": ["f16", "q8_0", "q4_k_m"]}
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.pipeline.config import InputFolder, Runtime, Section, StageConfig

FileType = Literal["f32", "f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k"]


class GGUFInputs(Section):
    """What is converted, and the texts that prove it."""

    model: InputFolder
    """Merged or full checkpoint (stage 110, 70, 90 or 50)."""
    corpus: InputFolder
    """Corpus (stage 20) whose validation texts check token ids."""
    prompts: InputFolder
    """Chat data (stage 60) whose held-out conversations check prompts, logits and greedy answers."""
    evaluation: InputFolder = ""
    """Evaluation (stage 100) whose table goes on the model card; "" writes none."""


class GGUFVerification(Section):
    """Size of the gates; their limits are fixed."""

    texts: int = Field(default=2_000, ge=1)
    """Corpus texts whose token ids are compared, besides the built-in torture list."""
    sequences: int = Field(default=24, ge=2)
    """Held-out conversations whose logits are compared."""
    prompts: int = Field(default=20, ge=1)
    """Held-out questions that are answered greedily by checkpoint and file."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of those answers."""


class GGUFConfig(StageConfig):
    """Stage 120."""

    stage: ClassVar[str] = "120_convert_gguf"
    determinism: ClassVar[Literal["bitwise", "seeded", "stochastic"]] = "seeded"

    inputs: GGUFInputs
    """What is converted, and what proves it."""
    name: str = Field(min_length=1)
    """Name of the model, in the files and on the card."""
    license: str = ""
    """Licence of the model as an SPDX id; "" says nothing."""
    outputs: Annotated[list[FileType], Field(min_length=1)] = ["f16", "q8_0", "q4_k_m"]
    """Files to write, model-<type>.gguf each."""
    system: str = ""
    """System prompt of the Modelfile."""
    verify: GGUFVerification = GGUFVerification()
    """How much evidence the gates look at."""
    llama_timeout_seconds: Runtime[float] = Field(default=600.0, gt=0)
    """Longest time one call into llama.cpp may take before it is stopped."""
    threads: Runtime[int] = Field(default=1, ge=1)
    """Threads of llama.cpp; on busy cores two can be many times slower than one."""

    @model_validator(mode="after")
    def _each_type_once(self) -> Self:
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError(f"outputs names a type twice: {', '.join(self.outputs)}")
        return self
