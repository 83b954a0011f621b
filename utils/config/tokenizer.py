"""
Config of stage 30: the one tokenizer of a profile, trained on the corpus or adopted, and then frozen.

    {"output": "data/demo/tokenizer", "inputs": {"corpus": "data/demo/corpus"}, "vocab_size": 4096}
    {"output": "data/tuned/tokenizer", "mode": "adopt",
     "source": {"id": "Qwen/Qwen2.5-0.5B", "revision": "060db6499f32faf8b98477b0a26969ef7d8b9987"}}
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from utils.pipeline.config import InputFolder, OutputFolder, Section, StageConfig
from utils.pipeline.errors import ConfigError
from utils.pipeline.external import ExternalSource
from utils.pipeline.tokenizer_files import ADOPTED_FILES
from utils.pipeline.workspace import Workspace

SOURCE = "tokenizer"
LEAST_PIECES = 300
TRAINING_ONLY = ("recipe", "allow_no_gguf", "sample_mebibytes", "seed")


class TokenizerInputs(Section):
    """What stage 30 reads."""

    corpus: InputFolder = ""
    """
    Artifact of stage 20: trained on its train split, measured on its val split. "" measures an adopted
    tokenizer on built-in probes only.
    """


class AdoptedSource(Section):
    """Where an adopted tokenizer comes from: give `id` and `revision`, or `path`."""

    id: str = Field(default="", pattern=r"^([\w.-]+(/[\w.-]+)?)?$")
    """Model on the Hugging Face Hub; of its files only those of the tokenizer are fetched."""
    revision: str = ""
    """Commit of it, 40 hex digits: a branch may hold another tokenizer tomorrow."""
    path: str = ""
    """Local folder with tokenizer.model or tokenizer.json, relative to the repository root."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.id and self.path:
            raise ValueError('give "id" or "path", not both')
        if bool(self.id) != bool(self.revision):
            raise ValueError('"id" and "revision" need each other')
        if self.revision and not _is_commit(self.revision):
            raise ValueError(
                f'"{self.revision}" is no commit of 40 hex digits; for its newest one type: python -c '
                f"\"import huggingface_hub as h; print(h.model_info('{self.id}').sha)\""
            )
        return self


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


class TokenizerConfig(StageConfig):
    """Stage 30."""

    stage: ClassVar[str] = "30_train_tokenizer"
    stage_version: ClassVar[int] = 2
    determinism: ClassVar[str] = "bitwise"

    output: OutputFolder
    """Folder of the tokenizer."""
    inputs: TokenizerInputs = TokenizerInputs()
    """The corpus."""
    mode: Literal["train", "adopt"] = "train"
    """`train` makes a tokenizer from the corpus; `adopt` copies somebody else's, byte for byte."""
    source: AdoptedSource = AdoptedSource()
    """Where to adopt it from."""
    recipe: Literal["llama_bpe", "unigram"] = "llama_bpe"
    """
    `llama_bpe`: SentencePiece BPE with equal ids in sentencepiece, tokenizers and llama.cpp. `unigram`: no
    GGUF can be made of what is trained on it.
    """
    allow_no_gguf: bool = False
    """Needed by recipe `unigram`: says that nobody will ask for a GGUF."""
    vocab_size: int = Field(default=0, ge=0, le=1_000_000)
    """Number of pieces to train, the 20 control symbols and 256 byte pieces included; at least 300."""
    sample_mebibytes: int = Field(default=64, ge=1)
    """Train on documents chosen by hash until they hold this much text."""
    min_chars_per_token: float = Field(default=3.0, ge=0)
    """
    Fail when a token of validation text holds fewer characters than this on average; reported only when
    adopted.
    """
    seed: int = 0
    """Seed of the choice of documents."""

    @model_validator(mode="after")
    def _fits_the_mode(self) -> Self:
        named = bool(self.source.id or self.source.path)
        if self.mode == "adopt":
            if not named:
                raise ValueError('mode "adopt" needs "source": {"id", "revision"} or {"path"}')
            if self.vocab_size:
                raise ValueError('"vocab_size" is the adopted tokenizer\'s own in mode "adopt"; leave it out')
            if unread := [name for name in TRAINING_ONLY if name in self.model_fields_set]:
                raise ValueError(f'"{unread[0]}" is read by mode "train" only; leave it out')
            return self
        if named:
            raise ValueError('"source" needs mode "adopt"')
        if not self.inputs.corpus:
            raise ValueError('mode "train" needs "inputs.corpus", the folder of stage 20')
        if self.vocab_size < LEAST_PIECES:
            raise ValueError(f'mode "train" needs a "vocab_size" of at least {LEAST_PIECES}')
        if self.recipe == "unigram" and not self.allow_no_gguf:
            raise ValueError('recipe "unigram" cannot become a GGUF; "allow_no_gguf": true accepts that')
        return self

    def external_sources(self, workspace: Workspace) -> list[ExternalSource]:
        """The files of a local folder, or a commit of the Hub; what is fetched is recorded as outputs."""
        if self.mode == "train":
            return []
        if self.source.id:
            parts = [self.source.id, "", "", self.source.revision]
            return [ExternalSource.of_hub(SOURCE, self.source.id, self.source.revision, parts)]
        folder = workspace.path(self.source.path)
        names = [name for name in ADOPTED_FILES if (folder / name).is_file()]
        if not names:
            raise ConfigError(
                f'source "{SOURCE}": {self.source.path} holds no tokenizer files',
                fix=f"put a tokenizer.json or a tokenizer.model there: {self.source.path}",
            )
        return [ExternalSource.local(SOURCE, [f"{self.source.path}/{name}" for name in names], workspace)]
