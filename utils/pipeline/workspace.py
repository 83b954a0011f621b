"""
Where things are: the root that relative paths start from, and which config class belongs to which stage.

Passed explicitly, so that a test can run the same code over a toy chain in a temporary folder.

    workspace = REPOSITORY
    workspace.path("data/demo/packed"), workspace.config_class("40_pack_dataset")
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from utils.pipeline.errors import ConfigError
from utils.pipeline.hashing import REPOSITORY_ROOT, DigestCache

STAGES: Mapping[str, str] = {
    "10_generate": "utils.config.generate:GenerateConfig",
    "15_sft_to_dpo": "utils.config.transform:SFTToDPOConfig",
    "15_regen_rejected": "utils.config.transform:RegenRejectedConfig",
    "20_prepare_corpus": "utils.config.corpus:CorpusConfig",
    "30_train_tokenizer": "utils.config.tokenizer:TokenizerConfig",
    "40_pack_dataset": "utils.config.pack:PackConfig",
    "50_pretrain": "utils.config.pretrain:PretrainConfig",
    "60_prepare_sft": "utils.config.sft_data:SFTDataConfig",
    "70_train_sft": "utils.config.sft:SFTConfig",
    "80_prepare_preferences": "utils.config.preference_data:PreferenceDataConfig",
    "90_train_preferences": "utils.config.preferences:PreferencesConfig",
    "100_evaluate": "utils.config.evaluate:EvaluateConfig",
    "110_merge_lora": "utils.config.merge:MergeConfig",
    "120_convert_gguf": "utils.config.gguf:GGUFConfig",
}

TOOLS: Mapping[str, tuple[str, ...]] = {
    "15_sft_to_dpo": ("tools/transform.py", "sft-to-dpo"),
    "15_regen_rejected": ("tools/transform.py", "regen-rejected"),
}
"""Links of the chain that are not among the twelve stages: the program and its command."""


def program_of(stage: str) -> tuple[str, ...]:
    """What is typed after `python` to run a stage, up to its options."""
    return TOOLS.get(stage, (f"scripts/{stage}.py",))


@dataclass(frozen=True)
class Workspace:
    """A root folder and the stages that live in it."""

    root: Path
    stages: Mapping[str, str]  # stage name -> "module:ConfigClass", imported on use

    def path(self, relative: str | Path) -> Path:
        """The absolute place of a path that is relative to the root (absolute ones stay)."""
        return self.root / relative

    def relative(self, path: str | Path) -> str:
        """The path as manifests and messages write it: POSIX, relative to the root when inside it."""
        absolute = Path(path) if Path(path).is_absolute() else self.root / path
        inside = absolute.is_relative_to(self.root)
        return (absolute.relative_to(self.root) if inside else absolute).as_posix()

    def config_class(self, stage: str) -> type:
        """The config class of a stage. ConfigError if there is no such stage."""
        if stage not in self.stages:
            raise ConfigError(f'there is no stage "{stage}"; the stages are {", ".join(self.stages)}')
        module, name = self.stages[stage].split(":")
        return getattr(importlib.import_module(module), name)

    @property
    def records(self) -> Path:
        """Locks, digest cache, archive of manifests; deleting it costs explanations, never correctness."""
        return self.root / "data" / ".lockstep"

    @property
    def digest_cache(self) -> DigestCache:
        return DigestCache(self.records / "digests.sqlite")


REPOSITORY = Workspace(REPOSITORY_ROOT, STAGES)
