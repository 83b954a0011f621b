import torch

from tests.training.toy_stage import toy_model
from utils.training.samples import greedy_samples


def test_greedy_samples_equal_generate_and_stop_at_the_end_id():
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    ours = greedy_samples(model, [[4, 5], [9]], 6, end_ids=[])
    for prompt, ids in zip([[4, 5], [9]], ours, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert whole[0, len(prompt) :].tolist() == ids
    assert greedy_samples(model, [[4, 5]], 6, end_ids=[ours[0][0]]) == [[]]


def test_sampling_keeps_mode_and_random_state():
    model = toy_model().train()
    state = torch.get_rng_state()
    greedy_samples(model, [[4]], 3, [2])
    assert model.training and torch.equal(state, torch.get_rng_state())
