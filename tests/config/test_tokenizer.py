"""The config of stage 30: what only one of its modes reads."""

import pytest

from utils.config.tokenizer import TokenizerConfig

ADOPT = {"output": "data/x/tokenizer", "mode": "adopt", "source": {"path": "data/raw/theirs"}}


@pytest.mark.parametrize(
    "unread", [{"recipe": "llama_bpe"}, {"allow_no_gguf": True}, {"sample_mebibytes": 8}, {"seed": 0}]
)
def test_what_only_training_reads_is_refused_when_adopting(unread: dict):
    name = next(iter(unread))
    with pytest.raises(ValueError, match=f'"{name}" is read by mode "train" only; leave it out'):
        TokenizerConfig.model_validate(ADOPT | unread)
    TokenizerConfig.model_validate(ADOPT)
