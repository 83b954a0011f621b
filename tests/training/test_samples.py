import torch

from tests.training.toy_stage import toy_model
from utils.training.samples import continuations


def test_greedy_continuations_equal_generate_and_stop_at_the_end_id():
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    ours = continuations(model, [[4, 5], [9]], 6, end_ids=[])
    for prompt, ids in zip([[4, 5], [9]], ours, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert whole[0, len(prompt) :].tolist() == ids
    assert continuations(model, [[4, 5]], 6, end_ids=[ours[0][0]]) == [[]]


def test_nothing_is_added_once_it_is_to_stop():
    looks = iter([False] * 3 + [True] * 3)
    found = continuations(toy_model(), [[4, 5], [9], [7]], 6, end_ids=[], stopping=lambda: next(looks))
    assert [len(ids) for ids in found] == [3, 0, 0]
    assert found[0] == continuations(toy_model(), [[4, 5]], 3, end_ids=[])[0]


def test_sampling_keeps_mode_and_random_state():
    model = toy_model().train()
    state = torch.get_rng_state()
    for temperature in (0.0, 0.8):
        continuations(model, [[4]], 3, [2], temperature)
    assert model.training and torch.equal(state, torch.get_rng_state())


def test_drawn_continuations_hang_on_their_seed_and_follow_the_model():
    model = toy_model()

    def draw(seed, temperature=0.8):
        return continuations(model, [[4, 5]], 30, [], temperature, seed)[0]

    assert draw(0) == draw(0) != draw(1)
    assert draw(0, temperature=1e-6) == continuations(model, [[4, 5]], 30, [])[0]
    with torch.no_grad():
        model.lm_head.weight.zero_()
    counts = torch.bincount(torch.tensor([draw(seed) for seed in range(20)]).flatten(), minlength=32)
    assert counts.min() > 4 and counts.max() < 45
