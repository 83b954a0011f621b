"""
Configs of the toy chain: the kinds of fields, inputs and promises of the twelve real ones, and far fewer.

    config_of("40_pack_dataset", "demo")        # the JSON of a stage
"""

from typing import Annotated, ClassVar

from utils.pipeline.config import (
    InputFolder,
    Neutral,
    Runtime,
    Secret,
    Section,
    StageConfig,
    source_file,
)
from utils.pipeline.external import ExternalSource
from utils.pipeline.workspace import Workspace


class Executor(Section):
    """A runtime section."""

    workers: int = 0
    """How many."""


class Rules(Section):
    """A nested semantic section."""

    lowercase: bool = False
    """Whether to fold case."""
    banned: list[str] = []
    """Words that remove a line."""


class CorpusConfig(StageConfig):
    """Texts to shards."""

    stage: ClassVar[str] = "20_prepare_corpus"

    books: Runtime[list[str]] = ["raw/books/*.txt"]
    against: Annotated[list[str], Neutral([])] = []  # evaluation set
    web: Annotated[str, Neutral("")] = ""  # revision of a dataset of the Hub
    seed: int = 0
    rules: Rules = Rules()
    executor: Runtime[Executor] = Executor()
    log_every: Runtime[int] = 10
    cut: Annotated[float, Neutral(1.0)] = 1.0
    api_key: Secret = ""

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        books = ExternalSource.local("books", self.books, workspace)
        web = ExternalSource.of_dataset("web", "toy/web", "", "train", self.web)
        exam = [ExternalSource.evaluation_set("exam", self.against, workspace)] if self.against else []
        return [books, *([web] if self.web else []), *exam]


class OneCorpus(Section):
    """Only texts."""

    corpus: InputFolder


class TokenizerConfig(StageConfig):
    """Adopts one of the prepared tokenizers."""

    stage: ClassVar[str] = "30_train_tokenizer"

    inputs: OneCorpus
    sample: int = 0


class CorpusAndTokenizer(Section):
    """Texts and the tokenizer to read them with."""

    corpus: InputFolder
    tokenizer: InputFolder


class PackConfig(StageConfig):
    """Shards to ids."""

    stage: ClassVar[str] = "40_pack_dataset"

    inputs: CorpusAndTokenizer
    sequence_length_tokens: int = 256
    mode: str = "best_fit"
    executor: Runtime[Executor] = Executor()


class DataEntry(Section):
    """One dataset of a mixture."""

    path: InputFolder
    weight: float = 1.0


class PretrainInputs(Section):
    """A tokenizer and data."""

    tokenizer: InputFolder
    data: list[DataEntry]


class Optimizer(Section):
    """One number."""

    learning_rate: float = 4e-4


class PretrainConfig(StageConfig):
    """Ids to weights, with checkpoints."""

    stage: ClassVar[str] = "50_pretrain"
    determinism: ClassVar = "seeded"
    keeps_partial: ClassVar[bool] = True

    inputs: PretrainInputs
    optimizer: Optimizer = Optimizer()
    steps: int = 400
    checkpoint_every: int = 100
    seed: int = 0
    log_every: Runtime[int] = 10


class ChatConfig(StageConfig):
    """Texts to chat rows under a template."""

    stage: ClassVar[str] = "60_prepare_sft"

    inputs: CorpusAndTokenizer
    template: Annotated[str, source_file("config/templates/{}.jinja")] = "plain"


class TuneInputs(Section):
    """A base model and rows."""

    base: InputFolder
    data: list[DataEntry]


class TuneConfig(StageConfig):
    """Base and rows to an adapter."""

    stage: ClassVar[str] = "70_train_sft"
    determinism: ClassVar = "seeded"

    inputs: TuneInputs
    rank: int = 4


class EvaluateInputs(Section):
    """A model and a set of rows."""

    base: InputFolder
    evaluation: InputFolder


class EvaluateConfig(StageConfig):
    """Model and rows to a table."""

    stage: ClassVar[str] = "100_evaluate"
    determinism: ClassVar = "seeded"
    held_out_sources: ClassVar = ("texts",)

    inputs: EvaluateInputs
    texts: Runtime[list[str]] = []

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        return [ExternalSource.local("texts", self.texts, workspace)] if self.texts else []


class MergeInputs(Section):
    """A base and an adapter."""

    base: InputFolder
    adapter: InputFolder


class MergeConfig(StageConfig):
    """Adapter into base."""

    stage: ClassVar[str] = "110_merge_lora"
    determinism: ClassVar = "seeded"

    inputs: MergeInputs


class OneModel(Section):
    """A model."""

    model: InputFolder


class GGUFConfig(StageConfig):
    """Model to one file."""

    stage: ClassVar[str] = "120_convert_gguf"
    determinism: ClassVar = "seeded"

    inputs: OneModel


CLASSES: dict[str, type[StageConfig]] = {
    config_class.stage: config_class
    for config_class in (
        CorpusConfig, TokenizerConfig, PackConfig, PretrainConfig, ChatConfig, TuneConfig, EvaluateConfig,
        MergeConfig, GGUFConfig,
    )
}  # fmt: skip

FOLDERS = {
    "20_prepare_corpus": "data/{}/corpus",
    "30_train_tokenizer": "data/{}/tokenizer",
    "40_pack_dataset": "data/{}/packed",
    "50_pretrain": "checkpoints/{}/base",
    "60_prepare_sft": "data/{}/sft",
    "70_train_sft": "checkpoints/{}/sft",
    "100_evaluate": "data/{}/evaluation",
    "110_merge_lora": "checkpoints/{}/merged",
    "120_convert_gguf": "checkpoints/{}/gguf",
}

INPUTS = {
    "30_train_tokenizer": {"corpus": "20_prepare_corpus"},
    "40_pack_dataset": {"corpus": "20_prepare_corpus", "tokenizer": "30_train_tokenizer"},
    "50_pretrain": {"tokenizer": "30_train_tokenizer", "data": ["40_pack_dataset"]},
    "60_prepare_sft": {"corpus": "20_prepare_corpus", "tokenizer": "30_train_tokenizer"},
    "70_train_sft": {"base": "50_pretrain", "data": ["60_prepare_sft"]},
    "100_evaluate": {"base": "50_pretrain", "evaluation": "60_prepare_sft"},
    "110_merge_lora": {"base": "50_pretrain", "adapter": "70_train_sft"},
    "120_convert_gguf": {"model": "110_merge_lora"},
}


def config_of(stage: str, profile: str) -> dict:
    """The smallest config of a stage in a profile."""

    def folder(parent: str) -> str:
        return FOLDERS[parent].format(profile)

    inputs = {
        role: folder(parent) if isinstance(parent, str) else [{"path": folder(one)} for one in parent]
        for role, parent in INPUTS.get(stage, {}).items()
    }
    return {"output": folder(stage)} | ({"inputs": inputs} if inputs else {})
