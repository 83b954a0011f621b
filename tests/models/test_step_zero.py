"""What a freshly initialised model loses, against ln V + d s^2 / 2, for every preset up to `base`."""

import pytest
import torch
from torch.nn import functional as F

from utils.models.llama import initialise
from utils.models.load import build_model
from utils.models.presets import count_parameters, expected_initial_loss, load_architecture
from utils.pipeline.workspace import REPOSITORY

LARGEST = 124_275_456
NAMES = sorted(path.stem for path in REPOSITORY.path("config/architectures").glob("*.json"))
SHAPES = {name: load_architecture(name, REPOSITORY) for name in NAMES}
BUILT = [name for name, shape in SHAPES.items() if shape.declared_parameters <= LARGEST]


def test_the_presets_up_to_base_are_built():
    assert {"smoke", "demo", "micro", "tiny", "small", "medium", "base", "tiny_moe"} <= set(BUILT)
    assert {"vesper_tiny", "vesper_small", "vesper_medium", "vesper_tiny_moe"} <= set(BUILT)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_the_loss_at_step_zero_is_the_stated_one(name):
    torch.set_num_threads(1)
    shape = SHAPES[name]
    vocabulary = shape.reference_vocab_size
    assert count_parameters(shape, vocabulary).total == shape.declared_parameters
    model = build_model(shape, vocabulary, {"bos": 1, "eos": 2, "pad": 3})
    initialise(model, shape, seed=0)
    ids = torch.randint(4, vocabulary, (1, 49), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits[0]
    loss = float(F.cross_entropy(logits, ids[0, 1:]))
    assert loss == pytest.approx(expected_initial_loss(shape, vocabulary), abs=0.25)
