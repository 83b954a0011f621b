"""DPO against TRL's trainer on the same ids, and against a scalar oracle in float64."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from utils.preferences.losses import dpo_loss, dpo_start
from utils.training.pairs import PairBatch, PreferenceObjective, answer_logps, cached_reference

PAIRS = [
    ([1, 5, 6], [7, 8, 2], [9, 2]),
    ([1, 9], [10, 2], [11, 12, 13, 2]),
    ([1, 4, 4, 6], [5, 2], [6, 6, 2]),
]
BETA = 0.3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def one_document_per_row(pairs: list) -> PairBatch:
    documents = [(prompt, answer) for prompt, *answers in pairs for answer in answers]
    shape = (len(documents), max(len(p) + len(a) for p, a in documents))
    tokens, document = np.full(shape, 3), np.full(shape, -1, np.int32)
    position, trained = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    for i, (prompt, answer) in enumerate(documents):
        end = len(prompt) + len(answer)
        tokens[i, :end], document[i, :end], position[i, :end] = prompt + answer, i, np.arange(end)
        trained[i, len(prompt) : end] = 1
    return PairBatch(
        tokens, document, position, trained, np.arange(len(pairs)), np.full((len(pairs), 2), np.nan)
    )


def scalar_dpo(lp: list[float], ref: list[float], beta: float, smoothing: float) -> float:
    z = beta * ((lp[0] - ref[0]) - (lp[1] - ref[1]))
    return -(1 - smoothing) * math.log(1 / (1 + math.exp(-z))) - smoothing * math.log(1 / (1 + math.exp(z)))


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.1), (2.0, 0.3)])
def test_dpo_equals_the_scalar_formula(beta: float, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    lp, ref = (-5 * torch.rand(7, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    terms = dpo_loss(lp, ref, beta, smoothing)
    for i in range(7):
        assert float(terms.loss[i]) == pytest.approx(
            scalar_dpo(lp[i].tolist(), ref[i].tolist(), beta, smoothing), rel=1e-12
        )
    assert torch.allclose(terms.margin, beta * ((lp - ref)[:, 0] - (lp - ref)[:, 1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_starts_at_ln_2(smoothing: float) -> None:
    lp = torch.randn(5, 2, dtype=torch.float64) * 30
    assert dpo_start() == pytest.approx(0.693147, abs=1e-6)
    assert dpo_loss(lp, lp, 0.1, smoothing).loss.tolist() == pytest.approx([dpo_start()] * 5, abs=1e-12)


def test_no_gradient_reaches_the_reference() -> None:
    lp, ref = torch.zeros(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    dpo_loss(lp, ref, 0.1).loss.sum().backward()
    assert ref.grad is None
    assert lp.grad[0].tolist() == pytest.approx([-0.05, 0.05])


def test_loss_and_gradient_equal_trl(tmp_path: Path) -> None:
    theirs, reference = trl_loss_model(tmp_path)
    ours = tiny_llama(0)
    batch = one_document_per_row(PAIRS)
    with torch.no_grad():
        batch = batch._replace(reference=answer_logps(reference, batch).numpy())
    objective = PreferenceObjective(partial(dpo_loss, beta=BETA), cached_reference)
    sums = objective(ours, batch)
    loss = sums.loss_sum / objective.weigh(batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(theirs[0], rel=1e-5)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[1][name], rtol=1e-5, atol=1e-7, msg=name)


def trl_loss_model(folder: Path) -> tuple[tuple[float, dict[str, torch.Tensor]], nn.Module]:
    """Loss and gradients of TRL's DPOTrainer on PAIRS, and the reference model it used."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    arguments = DPOConfig(
        output_dir=str(folder), report_to=[], per_device_train_batch_size=2, use_cpu=True, beta=BETA,
        bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    model, reference = tiny_llama(0), tiny_llama(1)
    unused = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=arguments, train_dataset=unused, processing_class=tokenizer
    )
    rows = [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r} for p, c, r in PAIRS]
    loss = trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)
    loss.backward()
    return (float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}), tiny_llama(
        1
    )
