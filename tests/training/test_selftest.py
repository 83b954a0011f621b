from types import SimpleNamespace

import pytest
import torch

from tests.training.toy_stage import VOCAB, CountingRows, ToyBatch, toy_model
from utils.pipeline.errors import StageError
from utils.training import loss as loss_module
from utils.training.loss import (
    IGNORED,
    NextTokenLoss,
    decoder_hidden,
    head_loss,
    next_token_loss,
    next_token_targets,
)
from utils.training.precision import FP32
from utils.training.selftest import (
    check_alignment,
    check_causality,
    check_ids,
    check_initial_loss,
    check_isolation,
    check_offset,
)


@pytest.fixture
def model():
    return toy_model().eval()


@pytest.fixture
def batch():
    return CountingRows().rows(range(4))


def test_a_sound_model_passes(model, batch):
    check_ids(model, [batch], {"unk": 0, "bos": 1, "eos": 2, "pad": 3})
    assert check_alignment(model, next_token_loss, batch, FP32) == pytest.approx(3.489, abs=0.01)
    check_causality(model, batch)
    assert check_isolation(model, batch)


def test_targets_shifted_twice_are_refused(model, batch, monkeypatch):
    """The defect of a published pipeline: reader and loss both shift."""
    original = loss_module.next_token_targets

    def shifted_again(rows, device="cpu"):
        inputs, targets, position = original(rows, device)
        return inputs, torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], -100)], 1), position

    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a model with opinions, so that another target costs another loss
    monkeypatch.setattr(loss_module, "next_token_targets", shifted_again)
    with pytest.raises(StageError, match="self-test: the loss is .* but predicting the next token costs"):
        check_alignment(model, next_token_loss, batch, FP32)


class ShiftedAgain(NextTokenLoss):
    """An objective that shifts the targets of `next_token_targets` once more, and counts what is left."""

    def weigh(self, batch):
        return float((self._targets(batch) != IGNORED).sum())

    def __call__(self, model, batch):
        inputs, _, position = next_token_targets(batch)
        return head_loss(model, decoder_hidden(model, inputs, position), self._targets(batch))

    def _targets(self, batch):
        targets = next_token_targets(batch)[1]
        return torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORED)], 1)


class CountsTooMuch(NextTokenLoss):
    """An objective whose weight is that of all ids, padding and first ones included."""

    def weigh(self, batch):
        return float(batch.tokens.numel())


@pytest.mark.parametrize("objective", [ShiftedAgain, CountsTooMuch])
def test_an_objective_that_is_not_the_next_token_is_refused(model, batch, objective):
    """What is checked is what the trainer will minimise, not what validation measures."""
    with pytest.raises(StageError, match="self-test: the loss is .* but predicting the next token costs"):
        check_alignment(model, objective(), batch, FP32)


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_ids_out_of_range_are_refused(model, batch, wrong):
    batch.tokens[2, 5] = wrong
    with pytest.raises(StageError, match=f"self-test: a row has ids from .*{wrong}.*knows 0 to {VOCAB - 1}"):
        check_ids(model, [CountingRows().rows(range(4)), batch], {"bos": 1, "eos": 2, "pad": 3})


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"eos": 5}, "eos is 2 in the model, 5 in the tokenizer"),
        ({"pad": -1}, "pad is 3 in the model, -1 in the tokenizer"),
    ],
)
def test_special_ids_that_are_not_the_tokenizer_s_are_refused(model, batch, changed, text):
    with pytest.raises(StageError, match=f"self-test: {text}"):
        check_ids(model, [batch], {"bos": 1, "eos": 2, "pad": 3} | changed)


def test_an_id_that_neither_has_is_no_difference(model, batch):
    model.config.bos_token_id = None
    check_ids(model, [batch], {"bos": -1, "eos": 2, "pad": 3})


def test_attention_that_sees_the_future_is_refused(model, batch):
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    single = ToyBatch(batch.tokens, torch.zeros_like(batch.document), torch.arange(13).expand(4, -1))
    with pytest.raises(StageError, match="the last input changes earlier outputs"):
        check_causality(model, single)


def test_documents_that_see_each_other_are_refused(model, batch, monkeypatch):
    def joined(model, inputs, position):
        return model.model(input_ids=inputs, use_cache=False).last_hidden_state

    monkeypatch.setattr("utils.training.selftest.decoder_hidden", joined)
    with pytest.raises(StageError, match="documents are not isolated"):
        check_isolation(model, batch)


def test_rows_of_one_document_leave_isolation_open(model):
    row = torch.arange(13)[None]
    assert not check_isolation(model, ToyBatch(row, torch.zeros_like(row), row))


def test_a_wrong_initial_loss_is_refused():
    check_initial_loss(8.30, 8.37)
    with pytest.raises(StageError, match="loss 9.000 at step 0, expected 8.370 within 0.25"):
        check_initial_loss(9.0, 8.37)
    with pytest.raises(StageError):
        check_initial_loss(float("nan"), 8.37)


class Foreteller(torch.nn.Module):
    """Sure of the id that is `distance` places on, in rows that count upwards."""

    def __init__(self, distance: int, certainty: float = 9.0) -> None:
        super().__init__()
        self.distance, self.certainty = distance, certainty
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, position_ids, use_cache):
        assert len(input_ids) == 1, "the logits of all rows at once may be gigabytes"
        ids = (input_ids + self.distance) % VOCAB
        return SimpleNamespace(logits=self.certainty * torch.nn.functional.one_hot(ids, VOCAB).float())


def test_a_model_of_the_token_after_next_is_refused(batch):
    following, later = check_offset(Foreteller(1), batch)
    assert following < 0.1 and later > 8
    with pytest.raises(
        StageError, match="predicts the token after next .* inputs or targets are shifted twice"
    ):
        check_offset(Foreteller(2), batch)


def test_a_model_that_ignores_its_context_is_not_blamed_for_rare_first_tokens(batch):
    """Blind to what comes before, it may well be better at later tokens: the first ones are the rare ones."""

    class Blind(Foreteller):
        def forward(self, input_ids, position_ids, use_cache):
            counts = torch.bincount(batch.tokens[:, 4:].flatten(), minlength=VOCAB) + 0.01
            logits = counts.log().expand(*input_ids.shape, VOCAB)
            return SimpleNamespace(logits=logits)

    following, later = check_offset(Blind(0), batch)
    assert later < following
